"""Channel order against brute force, the paper's algorithm written plainly, and laws."""

import itertools

import pytest
import torch
from plain_orders import kept_score

from esparse_lab import (
    BlockShuffle,
    ChannelOrder,
    GlobalShuffle,
    InputError,
    Pattern,
    require_nm,
    retained_share,
    search_order,
    search_steps,
)
from esparse_lab.permutation import ordered_mask

PATTERNS = [Pattern(2, 4), Pattern(4, 8), Pattern(1, 4), Pattern(3, 4)]
SEARCHES = [
    None,
    GlobalShuffle(),
    BlockShuffle(block=16),
    BlockShuffle(block=8, at_once=1),
    BlockShuffle(block=256, start=None),
]


def plain_block_shuffle(rows: list[list[float]], pattern: Pattern, block: int) -> list[int]:
    """Algorithm 1 without the global shuffle: the best swap of each block until none is left."""
    order = list(range(len(rows[0])))
    total = kept_score(rows, order, pattern)
    for start in range(0, len(order), block):
        inside = range(start, min(start + block, len(order)))
        while True:
            gains = {}
            for i, j in itertools.combinations(inside, 2):
                swapped = order.copy()
                swapped[i], swapped[j] = swapped[j], swapped[i]
                gains[i, j] = kept_score(rows, swapped, pattern) - total
            (i, j), gain = max(gains.items(), key=lambda item: item[1])
            if gain <= 1e-6 * total:
                break
            order[i], order[j] = order[j], order[i]
            total += gain
    return order


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("n_channels", [16, 18])
def test_block_shuffle_is_algorithm_1(pattern, n_channels):
    rows = torch.rand(5, n_channels, generator=torch.Generator().manual_seed(3))
    expected = plain_block_shuffle(rows.double().tolist(), pattern, block=8)
    found = search_order(rows, pattern, BlockShuffle(block=8, start=None, at_once=1))
    assert kept_score(rows.tolist(), found.index.tolist(), pattern) == pytest.approx(
        kept_score(rows.tolist(), expected, pattern), rel=1e-5
    )


@pytest.mark.parametrize("at_once", [1, None])
def test_no_swap_is_left_that_adds_score(at_once, scores):
    pattern = Pattern(2, 4)
    order = search_order(scores, pattern, BlockShuffle(block=24, at_once=at_once)).index.tolist()
    rows = scores.double().tolist()
    total = kept_score(rows, order, pattern)
    for i, j in itertools.combinations(range(24), 2):
        swapped = order.copy()
        swapped[i], swapped[j] = swapped[j], swapped[i]
        assert kept_score(rows, swapped, pattern) <= total * (1 + 2e-6)


def test_global_shuffle_deals_by_hand():
    # Means 1..8, two groups of four: 8 7 | 6 5 | 4 3 | 2 1 dealt in turn.
    scores = torch.tensor([[3.0, 8, 1, 6, 2, 7, 4, 5]])
    order = search_order(scores, Pattern(2, 4), GlobalShuffle())
    assert scores[0, order.index].tolist() == [8, 6, 4, 2, 7, 5, 3, 1]


def test_global_shuffle_ranks_channels_by_their_mean():
    # Means 4.5 5 4 3, largest values 9 5 8 3.
    scores = torch.tensor([[9.0, 5, 8, 3], [0, 5, 0, 3]])
    assert search_order(scores, Pattern(1, 2), GlobalShuffle()).index.tolist() == [1, 2, 0, 3]


def test_global_shuffle_deals_into_a_short_last_group():
    scores = torch.tensor([[6.0, 5, 4, 3, 2, 1]])
    order = search_order(scores, Pattern(2, 4), GlobalShuffle())
    assert scores[0, order.index].tolist() == [6, 4, 2, 1, 5, 3]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("search", SEARCHES, ids=repr)
@pytest.mark.parametrize("n_channels", [24, 21])
def test_every_search_yields_honest_permutations(search, pattern, n_channels, scores):
    scores = scores[:, :n_channels]
    steps = list(search_steps(scores, pattern, search))
    for step in steps:
        assert sorted(step.order.index.tolist()) == list(range(n_channels))
        kept = kept_score(scores.tolist(), step.order.index.tolist(), pattern)
        assert step.retained_share == pytest.approx(kept / float(scores.sum()), rel=1e-5)
        assert retained_share(scores, pattern, step.order) == pytest.approx(
            step.retained_share, rel=1e-6
        )
    if isinstance(search, BlockShuffle):
        shares = [step.retained_share for step in steps]
        assert shares == sorted(shares)
        assert steps[-1].swaps >= len(steps) - 1


def test_channels_stay_in_their_block(scores):
    order = search_order(scores, Pattern(2, 4), BlockShuffle(block=8, start=None)).index
    assert (order // 8).tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert order.tolist() != list(range(24))


def test_swaps_at_once_lose_nothing_that_matters():
    generator = torch.Generator().manual_seed(4)
    scores = torch.rand(32, 128, generator=generator) * torch.rand(128, generator=generator)
    one, many = (
        list(search_steps(scores, Pattern(2, 4), BlockShuffle(128, at_once=n)))[-1].retained_share
        for n in (1, None)
    )
    start = retained_share(
        scores, Pattern(2, 4), search_order(scores, Pattern(2, 4), GlobalShuffle())
    )
    assert many - start > 0.9 * (one - start) > 0


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_mask_is_nm_in_the_new_order(pattern, scores):
    order = search_order(scores, pattern, BlockShuffle(block=16))
    mask = ordered_mask(scores, pattern, order)
    require_nm(mask[:, order.index], pattern)
    assert float((scores * mask).sum() / scores.sum()) == pytest.approx(
        retained_share(scores, pattern, order), rel=1e-6
    )


def test_a_permuted_layer_computes_what_the_masked_one_does(scores):
    x = torch.randn(7, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    order = search_order(scores, Pattern(2, 4), BlockShuffle())
    masked = scores.double() * ordered_mask(scores, Pattern(2, 4), order)
    torch.testing.assert_close(x[:, order.index] @ masked[:, order.index].T, x @ masked.T)


def test_inverse_undoes_an_order(scores):
    order = search_order(scores, Pattern(2, 4), GlobalShuffle())
    assert torch.equal(scores[:, order.index][:, order.inverse], scores)


def test_search_is_deterministic(scores):
    first, second = (search_order(scores, Pattern(4, 8), BlockShuffle()).index for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.gpu
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_gpu_finds_as_much_as_cpu(pattern):
    generator = torch.Generator().manual_seed(9)
    scores = torch.rand(300, 520, generator=generator) * torch.rand(520, generator=generator)
    cpu = retained_share(scores, pattern, search_order(scores, pattern, BlockShuffle()))
    order = search_order(scores.cuda(), pattern, BlockShuffle())
    assert retained_share(scores.cuda(), pattern, order) == pytest.approx(cpu, abs=2e-4)


@pytest.mark.parametrize(
    ("scores", "search", "message"),
    [
        (torch.tensor([[1.0, -1.0]]), None, "at least 0"),
        (torch.tensor([[1.0, float("nan")]]), GlobalShuffle(), "finite"),
        (torch.ones(2, 8), BlockShuffle(block=6), "does not hold whole groups of 4; take .* 8"),
    ],
)
def test_bad_input_says_why(scores, search, message):
    with pytest.raises(InputError, match=message):
        list(search_steps(scores, Pattern(2, 4), search))


def test_bad_settings_and_orders_say_why():
    with pytest.raises(InputError, match="at least 2 channels"):
        BlockShuffle(block=1)
    with pytest.raises(InputError, match="at least 1 swap"):
        BlockShuffle(at_once=0)
    with pytest.raises(InputError, match="each of 0"):
        ChannelOrder(torch.tensor([0, 0, 1]))


def test_swaps_that_add_nothing_do_not_circle(monkeypatch):
    monkeypatch.setattr("esparse_lab.permutation.LEAST_GAIN", -1e-3)  # as if rounding were gain
    steps = list(search_steps(torch.ones(3, 16), Pattern(2, 4), BlockShuffle(block=8)))
    assert [step.swaps for step in steps] == [0]


def test_all_zero_scores_end_at_once():
    steps = list(search_steps(torch.zeros(3, 16), Pattern(2, 4), BlockShuffle(block=8)))
    assert steps[-1].swaps == 0
