"""Dividing a number of weights among layers: worked by hand, and against every assignment."""

from itertools import product

import numpy as np
import pytest

from esparse_lab import InputError
from esparse_lab.budget import kept_per_row, levelled, nearest_choices


def test_densities_are_moved_together_and_cut_at_the_spread():
    scores, sizes = np.array([0.0, 0.1, 0.2]), np.array([1, 1, 2])
    # Moved by 0.375 they average 0.5; the first is then cut at 0.4 and the rest give it back:
    # 0.4 + (s + 0.1) + 2 (s + 0.2) = 2.
    s = (2 - 0.4 - 0.5) / 3
    assert levelled(scores, sizes, 0.5, 0.1) == pytest.approx([0.4, s + 0.1, s + 0.2], abs=1e-12)
    assert levelled(scores, sizes, 0.5, 0.2) == pytest.approx([0.375, 0.475, 0.575], abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_densities_average_to_the_target_over_weights(seed):
    rng = np.random.default_rng(seed)
    scores, sizes = rng.normal(0, 0.2, 20), rng.integers(1, 1000, 20)
    densities = levelled(scores, sizes, 0.6, 0.1)
    assert (densities * sizes).sum() / sizes.sum() == pytest.approx(0.6, abs=1e-12)
    assert densities.min() >= 0.5
    assert densities.max() <= 0.7
    assert (np.diff(densities[scores.argsort()]) >= 0).all()


def test_rows_keep_whole_numbers_of_weights():
    wanted, rows, columns = np.array([0.54, 0.47]), np.array([2, 4]), np.array([10, 10])
    # Rounded to 5 and 5 they keep 2 * 5 + 4 * 5 = 30.
    assert kept_per_row(wanted, rows, columns, 30).tolist() == [5, 5]
    # Two more fit the first layer alone; four fewer fit both, and the second is further above.
    assert kept_per_row(wanted, rows, columns, 32).tolist() == [6, 5]
    assert kept_per_row(wanted, rows, columns, 26).tolist() == [5, 4]
    # One more fits none: less than a row of the smallest layer is left over.
    assert kept_per_row(wanted, rows, columns, 31).tolist() == [5, 5]


@pytest.mark.parametrize("seed", range(8))
def test_rows_meet_the_total_to_less_than_the_smallest_layer(seed):
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(3, 60, 12), rng.integers(8, 90, 12)
    target = rng.uniform(0.3, 0.7)
    wanted = levelled(rng.normal(0, 0.1, 12), rows * columns, target, 0.2)
    total = round(target * int(rows @ columns))
    kept = kept_per_row(wanted, rows, columns, total)
    assert abs(int(kept @ rows) - total) < rows.min()
    assert (kept >= 1).all()
    assert (kept <= columns).all()


def test_every_row_keeps_a_weight():
    rows, columns = np.array([4, 4]), np.array([10, 10])
    with pytest.raises(InputError, match=r"cannot keep 0\.05 of all weights, nearest is 0\.1;"):
        kept_per_row(np.array([0.05, 0.05]), rows, columns, 4)


def nearest_by_trying_all(wanted, sizes, kept, total):
    """The smallest sum of squares over all assignments that keep `total`, or None."""
    sums = [
        sum(
            size * (row[c] / size - want) ** 2
            for size, row, want, c in zip(sizes, kept, wanted, chosen, strict=True)
        )
        for chosen in product(range(kept.shape[1]), repeat=len(kept))
        if sum(row[c] for row, c in zip(kept, chosen, strict=True)) == total
    ]
    return min(sums, default=None)


@pytest.mark.parametrize("menu", [(0.375, 0.5, 0.625), (0.5, 1.0), (1.0, 0.25, 0.5)])
@pytest.mark.parametrize("seed", range(6))
def test_choices_are_the_nearest_of_all_assignments(seed, menu):
    rng = np.random.default_rng(seed)
    sizes = 8 * rng.choice([3, 4, 7, 12], 7)
    wanted = rng.uniform(0.3, 0.9, 7)
    kept = np.rint(sizes[:, None] * np.array(menu)).astype(np.int64)
    some = rng.integers(0, len(menu), 7)  # so the total has an assignment
    total = int(kept[np.arange(7), some].sum())
    choices = nearest_choices(wanted, sizes, kept, total)
    taken = kept[np.arange(7), choices]
    assert taken.sum() == total
    cost = float((sizes * (taken / sizes - wanted) ** 2).sum())
    assert cost == pytest.approx(nearest_by_trying_all(wanted, sizes, kept, total), rel=1e-12)


def test_dense_goes_to_those_that_want_it_most_for_their_size():
    # Of 4, 4 and 8 weights at 2:4, four more may stay: both small layers or the large one. Dense
    # costs size * (3/4 - wanted) more than 2:4: 4 * (0.05 + 0.25) against 8 * 0.1, or 8 * 0.2.
    sizes = np.array([4, 4, 8])
    kept = np.stack([sizes // 2, sizes], axis=1)
    assert nearest_choices(np.array([0.7, 0.5, 0.65]), sizes, kept, 12).tolist() == [0, 0, 1]
    assert nearest_choices(np.array([0.7, 0.5, 0.55]), sizes, kept, 12).tolist() == [1, 1, 0]


def test_a_total_that_is_not_reached_is_met_from_below_within_a_step():
    sizes = np.array([4, 100])
    kept = np.stack([sizes // 2, sizes], axis=1)  # reaches 52, 54, 102 and 104
    wanted = np.array([0.5, 0.5])
    assert nearest_choices(wanted, sizes, kept, 53).tolist() == [0, 0]
    assert nearest_choices(wanted, sizes, kept, 55).tolist() == [1, 0]
    with pytest.raises(InputError, match=r"reaches 0\.5 to 1, and below the target 0\.5192\."):
        nearest_choices(wanted, sizes, kept, 73)
    with pytest.raises(InputError, match=r"cannot keep 0\.4038 .* reaches 0\.5 to 1\."):
        nearest_choices(wanted, sizes, kept, 42)
    with pytest.raises(InputError, match=r"reaches 0\.5 to 0\.5, and below the target 0\.5\."):
        nearest_choices(wanted, sizes, kept[:, :1], 53)


def test_sizes_with_nothing_in_common_are_refused_before_memory_runs_out():
    kept = np.array([[0, 1], [0, 2 * 10**9]])
    with pytest.raises(InputError, match="only 1 weights in common"):
        nearest_choices(np.array([0.5, 0.5]), np.array([1, 2 * 10**9]), kept, 10**9)
