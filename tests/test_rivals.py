"""Other projects' searches, against hand-worked deals, brute force and laws."""

import itertools
import sys

import pytest
import torch
from plain_orders import kept_score

from esparse_lab import (
    RIVALS,
    BlockShuffle,
    EsparseError,
    GlobalShuffle,
    InputError,
    Pattern,
    RandomOrders,
    SlotAssignment,
    StripePairs,
    retained_share,
    rivals,
    search_order,
    search_steps,
)

PATTERNS = [Pattern(2, 4), Pattern(1, 4), Pattern(3, 4), Pattern(2, 3)]
SEARCHES = [
    # Blocks of 256, as these have them, hold no whole groups of 3.
    *(RIVALS[name] for name in sorted(RIVALS.keys() - {"lbs", "gns+lbs+assignment", "best-of"})),
    StripePairs(GlobalShuffle()),
    SlotAssignment(BlockShuffle(block=12), 3),
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("search", SEARCHES, ids=repr)
@pytest.mark.parametrize("n_channels", [24, 21, 22, 3])
def test_every_rival_yields_honest_permutations(search, pattern, n_channels, scores):
    scores = scores[:, :n_channels]
    shares = []
    for step in search_steps(scores, pattern, search):
        index = step.order.index.tolist()
        assert sorted(index) == list(range(n_channels))
        kept = kept_score(scores.double().tolist(), index, pattern)
        assert step.retained_share == pytest.approx(kept / float(scores.double().sum()), rel=1e-6)
        shares.append(step.retained_share)
    if not isinstance(search, GlobalShuffle):
        steady = shares[2:] if isinstance(search, SlotAssignment | StripePairs) else shares
        assert all(b >= a - 1e-7 for a, b in itertools.pairwise(steady))


def test_serpentine_deals_by_hand():
    # Best first 8 7 | 6 5 | 4 3 | 2 1; every second round is dealt from the last group backwards.
    scores = torch.tensor([[3.0, 8, 1, 6, 2, 7, 4, 5]])
    order = search_order(scores, Pattern(2, 4), RIVALS["serpentine"])
    assert scores[0, order.index].tolist() == [8, 5, 4, 1, 7, 6, 3, 2]


def test_serpentine_deals_into_a_short_last_group():
    # Rounds 6 5 | 4 3 backwards | 2 and 1 to the first group alone, which has room.
    scores = torch.tensor([[6.0, 5, 4, 3, 2, 1]])
    order = search_order(scores, Pattern(2, 4), RIVALS["serpentine"])
    assert scores[0, order.index].tolist() == [6, 3, 2, 1, 5, 4]


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(1, 3)], ids=str)
@pytest.mark.parametrize("short", [0, 1])
def test_each_slot_is_assigned_as_well_as_can_be(pattern, short, scores):
    n_channels = 4 * pattern.m - short
    rows = scores[:, :n_channels].double().tolist()
    order = list(range(n_channels))
    steps = list(search_steps(scores[:, :n_channels], pattern, SlotAssignment(start=None)))
    assert len(steps) == 1 + pattern.m
    for slot, step in enumerate(steps[1:]):
        holes = range(slot, n_channels, pattern.m)
        best = 0.0
        for channels in itertools.permutations(order[hole] for hole in holes):
            trial = order.copy()
            for hole, channel in zip(holes, channels, strict=True):
                trial[hole] = channel
            best = max(best, kept_score(rows, trial, pattern))
        order = step.order.index.tolist()
        assert kept_score(rows, order, pattern) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_stripes_leave_no_pair_of_groups_that_gains(pattern, scores):
    m = pattern.m
    order = search_order(scores, pattern, StripePairs()).index.tolist()
    rows = scores.double().tolist()
    groups = [order[start : start + m] for start in range(0, 24, m)]
    total = kept_score(rows, order, pattern)
    for a, b in itertools.combinations(groups, 2):
        now = kept_score(rows, a + b, pattern)
        for first in itertools.combinations(a + b, m):
            rest = [c for c in a + b if c not in first]
            assert kept_score(rows, [*first, *rest], pattern) - now < 1e-6 * total


def test_stripes_in_small_pieces_find_the_same(monkeypatch, scores):
    scores = (scores * 1000).round()  # sums of whole numbers do not depend on their order
    whole = search_order(scores, Pattern(2, 4), StripePairs()).index
    monkeypatch.setitem(rivals.HELD_AT_MOST, "cpu", 700)
    assert torch.equal(search_order(scores, Pattern(2, 4), StripePairs()).index, whole)


def test_two_groups_are_parted_at_once_in_the_best_way():
    generator = torch.Generator().manual_seed(5)
    scores = torch.rand(3, 8, generator=generator)
    steps = list(search_steps(scores, Pattern(2, 4), StripePairs()))
    rows = scores.double().tolist()
    best = max(kept_score(rows, p, Pattern(2, 4)) for p in itertools.permutations(range(8)))
    assert steps[1].retained_share == pytest.approx(best / float(scores.sum()), rel=1e-6)
    assert [step.swaps for step in steps] == [0, 1]


def test_random_orders_follow_their_seed_and_improve_with_their_number(scores):
    few, same, other = (
        search_order(scores, Pattern(2, 4), RandomOrders(5, seed)).index for seed in (0, 0, 1)
    )
    assert torch.equal(few, same)
    assert not torch.equal(few, other)
    shares = [
        retained_share(scores, Pattern(2, 4), search_order(scores, Pattern(2, 4), RandomOrders(n)))
        for n in (1, 10, 100)
    ]
    assert shares == sorted(shares)
    assert shares[0] < shares[2]
    drawn = search_order(torch.ones(2, 24), Pattern(2, 4), RandomOrders(1, stored=False)).index
    assert drawn.tolist() != list(range(24))


@pytest.mark.parametrize("search", RIVALS.values(), ids=RIVALS)
def test_rivals_are_deterministic(search, scores):
    first, second = (search_order(scores, Pattern(2, 4), search).index for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("search", [BlockShuffle(block=8), StripePairs(), RandomOrders()], ids=repr)
def test_a_search_without_time_ends_where_it_starts(search, scores):
    whole = list(search_steps(scores, Pattern(2, 4), search, seconds=60))
    cut = list(search_steps(scores, Pattern(2, 4), search, seconds=0))
    assert len(whole) > len(cut) == 1
    assert torch.equal(cut[0].order.index, whole[0].order.index)
    assert (
        search_order(scores, Pattern(2, 4), search, seconds=0).index.tolist()
        == cut[0].order.index.tolist()
    )


def test_assignment_without_scipy_says_what_to_install(monkeypatch, scores):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(EsparseError, match=r"pip install 'esparse_lab\[rivals\]'"):
        search_order(scores, Pattern(2, 4), SlotAssignment())


def test_bad_settings_say_why():
    with pytest.raises(InputError, match="two groups of 16; take groups of up to 8"):
        search_order(torch.ones(2, 32), Pattern(8, 16), StripePairs())
    with pytest.raises(InputError, match="at least 1 order, got 0"):
        RandomOrders(0)
    with pytest.raises(InputError, match="at least 1, got 0"):
        SlotAssignment(rounds=0)
