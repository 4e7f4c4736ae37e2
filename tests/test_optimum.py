"""The best order of a few channels against every permutation, and the bound against both."""

import itertools
import math

import pytest
import torch
from plain_orders import kept_score

from esparse_lab import (
    RIVALS,
    SEARCHES,
    InputError,
    Pattern,
    optimal_order,
    recoverable,
    retained_share,
    search_order,
)


@pytest.mark.parametrize(
    ("pattern", "n_channels"),
    [("2:4", 8), ("1:4", 8), ("3:4", 7), ("1:2", 6), ("2:3", 8), ("2:4", 3), ("4:8", 8)],
)
def test_no_permutation_beats_the_optimal_order(pattern, n_channels, scores):
    pattern, scores = Pattern.parse(pattern), scores[:, :n_channels]
    rows = scores.double().tolist()
    found = optimal_order(scores, pattern).index.tolist()
    assert sorted(found) == list(range(n_channels))
    best = max(kept_score(rows, p, pattern) for p in itertools.permutations(range(n_channels)))
    assert kept_score(rows, found, pattern) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "2:3"])
@pytest.mark.parametrize("n_channels", [12, 11])
def test_searches_stay_below_the_optimum_and_that_below_the_bound(pattern, n_channels, scores):
    pattern, scores = Pattern.parse(pattern), scores[:, :n_channels]
    limits = recoverable(scores, pattern)
    best = retained_share(scores, pattern, optimal_order(scores, pattern))
    assert limits.stored == pytest.approx(retained_share(scores, pattern), rel=1e-9)
    assert limits.stored < best <= limits.bound
    for search in (SEARCHES | RIVALS).values():
        if "block=256" not in repr(search) or 256 % pattern.m == 0:
            found = retained_share(scores, pattern, search_order(scores, pattern, search))
            assert found <= best * (1 + 1e-9)
            assert limits.recovered(found) - 1e-9 <= limits.recovered(best) <= 1 + 1e-9


def test_the_bound_by_hand():
    # Stored order keeps 4 + 3 and 5 + 1 of 16; the four largest are 5, 4, 3 and 2.
    scores = torch.tensor([[4.0, 3, 2, 1, 5, 1, 0, 0]])
    limits = recoverable(scores, Pattern(2, 4))
    assert (limits.stored, limits.bound) == (13 / 16, 14 / 16)
    assert limits.recovered(13.5 / 16) == pytest.approx(0.5)
    # A last group of three keeps two as well; one of one channel keeps that.
    assert recoverable(scores[:, :7], Pattern(2, 4)).bound == 14 / 16
    assert recoverable(scores[:, :5], Pattern(2, 4)).bound == 12 / 15


def test_where_nothing_can_be_won_no_share_of_it_is_claimed():
    assert math.isnan(recoverable(torch.ones(3, 8), Pattern(2, 4)).recovered(0.5))
    assert recoverable(torch.zeros(3, 8), Pattern(2, 4)).bound == 0


def test_too_many_channels_say_why():
    with pytest.raises(InputError, match=r"17 channels are too many .* up to 16"):
        optimal_order(torch.ones(2, 17), Pattern(2, 4))
