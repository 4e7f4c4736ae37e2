"""Block shuffles in one kernel: what PyTorch finds, the same bits each time, alone or with others.

Whole numbers make all sums exact, so that equal gains are equal in both and orders can be compared.
"""

import pytest
import torch
from plain_orders import kept_score

from esparse_lab import (
    BlockShuffle,
    InputError,
    Pattern,
    device_code,
    retained_share,
    search_order,
    search_orders,
    search_steps,
)
from esparse_lab.shuffle_kernel import _team_size, shuffles

TWO_FOUR = Pattern(2, 4)
PATTERNS = [TWO_FOUR, Pattern(4, 8), Pattern(1, 4), Pattern(3, 4), Pattern(1, 2), Pattern(4, 16)]
SEARCHES = [
    BlockShuffle(),
    BlockShuffle(block=64, start=None),
    BlockShuffle(block=48, at_once=1),
    BlockShuffle(block=512, at_once=2),
]
SHAPES = [(40, 130), (1, 17), (300, 288), (2100, 64)]  # blocks that are not full; several chunks

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(device_code.unavailable()), reason=device_code.unavailable() or "runs"),
]


def needs_gpu(test):
    for mark in on_gpu:
        test = mark(test)
    return test


def whole_numbers(rows, channels):
    draw = torch.Generator().manual_seed(rows + channels)
    return torch.randint(0, 4, (rows, channels), generator=draw).float()


def uneven(rows, channels, device="cuda"):
    """Scores whose channels differ in scale."""
    draw = torch.Generator().manual_seed(rows + channels)
    scale = torch.randn(channels, generator=draw).exp()
    return (torch.randn(rows, channels, generator=draw).abs() * scale).to(device)


def last_step(scores, pattern, search):
    return list(search_steps(scores, pattern, search))[-1]


@needs_gpu
@pytest.mark.parametrize("search", SEARCHES, ids=repr)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_makes_the_swaps_of_pytorch(pattern, search, shape):
    scores = whole_numbers(*shape)
    fits = pattern.m > 2 or min(search.block, shape[1]) <= 256
    assert shuffles(scores.cuda(), pattern, search.block) == fits
    if not fits:
        pytest.skip("more than 256 channels in groups of two are left to PyTorch")
    found = search_order(scores.cuda(), pattern, search).index.cpu()
    assert torch.equal(found, last_step(scores, pattern, search).order.index)


@needs_gpu
@pytest.mark.parametrize("shape", [(512, 1024), (3072, 576)], ids=str)
def test_it_keeps_as_much_where_gains_round(shape):
    scores = uneven(*shape)
    slow = last_step(scores, TWO_FOUR, BlockShuffle())
    found = search_order(scores, TWO_FOUR, BlockShuffle())
    assert retained_share(scores, TWO_FOUR, found) == pytest.approx(slow.retained_share, abs=2e-4)


@needs_gpu
@pytest.mark.parametrize("at_once", [1, None])
def test_no_swap_is_left_that_adds_score(at_once):
    scores = uneven(50, 24)
    order = search_order(scores, TWO_FOUR, BlockShuffle(24, at_once=at_once)).index.tolist()
    rows = scores.double().tolist()
    total = kept_score(rows, order, TWO_FOUR)
    for i in range(24):
        for j in range(i):
            swapped = order.copy()
            swapped[i], swapped[j] = swapped[j], swapped[i]
            assert kept_score(rows, swapped, TWO_FOUR) <= total * (1 + 2e-6)


@needs_gpu
@pytest.mark.parametrize("pattern", [TWO_FOUR, Pattern(4, 8)], ids=str)
def test_others_do_not_change_a_bit(pattern):
    scores = [uneven(*shape) for shape in [(960, 576), (200, 70), (3072, 576), (64, 1536), (1, 9)]]
    alone = [search_order(s, pattern, BlockShuffle()).index for s in scores]
    for _ in range(3):
        together = search_orders(scores, pattern, BlockShuffle())
        assert all(torch.equal(a, t.index) for a, t in zip(alone, together, strict=True))


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_scores_of_any_dtype_are_read(dtype):
    scores = whole_numbers(30, 96)
    expected = last_step(scores, TWO_FOUR, BlockShuffle(32)).order.index
    found = search_order(scores.to("cuda", dtype), TWO_FOUR, BlockShuffle(32)).index
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])
def test_many_matrices_at_once_are_checked_and_ordered(device):
    scores = [uneven(9, 40, device), uneven(5, 18, device)]
    search = BlockShuffle(block=16)
    found = search_orders(scores, TWO_FOUR, search)
    for order, matrix in zip(found, scores, strict=True):
        assert torch.equal(order.index, search_order(matrix, TWO_FOUR, search).index)
    assert search_orders([], TWO_FOUR, search) == []
    for bad in (-scores[1], scores[1] / 0, scores[1][0]):
        with pytest.raises(InputError, match="matrix of finite numbers"):
            search_orders([scores[0], bad], TWO_FOUR, search)
    with pytest.raises(InputError, match="take a multiple, such as 8"):
        search_orders(scores, TWO_FOUR, BlockShuffle(block=6))


def test_a_cpu_keeps_the_steps_of_pytorch():
    assert not shuffles(torch.ones(4, 8), TWO_FOUR, 8)


@pytest.mark.parametrize(
    ("rows", "blocks", "size"),
    [
        ((4096,) * 16, 264, 16),  # 16 teams; 8 blocks are idle
        ((4096,) * 43, 264, 6),  # 44 teams
        ((576,), 72, 36),  # 9 chunks in 4 passes: more blocks would find nothing to do
    ],
)
def test_teams_take_what_the_device_has(rows, blocks, size):
    assert _team_size(rows, blocks) == size
