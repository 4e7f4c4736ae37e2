"""Divide a number of weights to keep among layers, exactly."""

import math

import numpy as np

from esparse_lab.errors import InputError

# A table of one byte a cell; models of today need up to half of it, most of them a thousandth.
CELLS_AT_MOST = 1 << 30


def levelled(scores: np.ndarray, sizes: np.ndarray, target: float, spread: float) -> np.ndarray:
    """Densities [layer] whose mean over all weights is `target`.

    Args:
        scores: what the densities would be but for a number that is added to all of them, [layer].
        sizes: weights of each layer, [layer].
        target: the mean to reach.
        spread: no density is further than this from `target`; those that would be are cut there.
    """
    low, high = target - spread, target + spread
    under, over = low - scores.max(), high - scores.min()
    for _ in range(100):
        densities = np.clip(scores + (under + over) / 2, low, high)
        if np.average(densities, weights=sizes) < target:
            under = (under + over) / 2
        else:
            over = (under + over) / 2
    return densities


def kept_per_row(
    wanted: np.ndarray, rows: np.ndarray, columns: np.ndarray, total: int
) -> np.ndarray:
    """How many weights each row of a layer keeps, int64 [layer], 1 to all, near `wanted`.

    `total` weights are kept to within less than the rows of the smallest layer. Layers that
    rounding left furthest behind are the first to keep one more (or one less) in each row.

    Args:
        wanted: densities, [layer].
        rows: outputs of each layer, [layer].
        columns: inputs of each layer, [layer].
        total: weights to keep in all layers together.

    Raises:
        InputError: if even the fewest or the most weights per row miss the total.
    """
    kept = np.clip(np.rint(wanted * columns), 1, columns).astype(np.int64)
    while True:
        missing = total - int(kept @ rows)
        after = kept + np.sign(missing)
        fits = (rows <= abs(missing)) & (after >= 1) & (after <= columns)
        if not fits.any():
            break
        behind = np.sign(missing) * (wanted - kept / columns)
        layer = np.where(fits, behind, -np.inf).argmax()
        kept[layer] = after[layer]
    if abs(missing) >= rows.min():
        size = int(rows @ columns)
        raise InputError(
            f"Whole numbers of weights in each row cannot keep {total / size:.4g} of all weights, "
            f"nearest is {(total - missing) / size:.4g}; every row keeps at least one weight. "
            "Take a target further from 0 and 1."
        )
    return kept


def nearest_choices(
    wanted: np.ndarray, sizes: np.ndarray, kept: np.ndarray, total: int
) -> np.ndarray:
    """Which choice each layer gets, int64 [layer], so that `total` weights are kept.

    Minimises the sum of size * (density of the choice - wanted)^2: the multiple-choice knapsack
    problem, solved exactly by dynamic programming over the total in units of what all steps from
    choice to choice have in common. Of equal sums, choices that come first.

    A total that no assignment has is replaced by the next one below, if that is nearer than the
    smallest step from choice to choice.

    Args:
        wanted: densities, [layer].
        sizes: weights of each layer, [layer].
        kept: weights that each layer keeps under each choice, int64 [layer, choice].
        total: weights to keep in all layers together.

    Raises:
        InputError: if no assignment comes that near, or the table would be too large.
    """
    least = kept.min(axis=1)
    steps = kept - least[:, None]
    unit = max(1, int(np.gcd.reduce(steps, axis=None)))
    steps //= unit
    budget = min((total - int(least.sum())) // unit, int(steps.max(axis=1).sum()))
    if len(kept) * (budget + 1) > CELLS_AT_MOST:
        raise InputError(
            f"The layers' sizes have only {unit} weights in common, too few to divide {total:,} "
            "weights among them exactly. Take a menu whose patterns share one M, or unstructured."
        )
    cost = sizes[:, None] * (kept / sizes[:, None] - wanted[:, None]) ** 2
    reached = -math.inf
    if budget >= 0:
        choices = _cheapest(cost, steps, budget)
        reached = int(np.take_along_axis(kept, choices[:, None], 1).sum())
    between = np.diff(np.sort(kept, axis=1), axis=1)
    if total - reached >= min(between[between > 0], default=1):
        size = int(sizes.sum())
        raise InputError(
            f"The menu cannot keep {total / size:.4g} of all weights: it reaches "
            f"{least.sum() / size:.4g} to {kept.max(axis=1).sum() / size:.4g}"
            + (f", and below the target {reached / size:.4g}" if budget >= 0 else "")
            + ". Take a target that it reaches, or another menu."
        )
    return choices


def _cheapest(cost: np.ndarray, steps: np.ndarray, budget: int) -> np.ndarray:
    """The cheapest choices whose steps add up to `budget` or to the most below it, [layer]."""
    best = np.full(budget + 1, np.inf)
    best[0] = 0
    taken = np.zeros((len(cost), budget + 1), dtype=np.uint8)
    for layer in range(len(cost)):
        sums = np.full((cost.shape[1], budget + 1), np.inf)
        for choice, step in enumerate(steps[layer]):
            if step <= budget:
                sums[choice, step:] = best[: budget + 1 - step] + cost[layer, choice]
        taken[layer] = sums.argmin(axis=0)
        best = sums.min(axis=0)
    left = int(np.flatnonzero(np.isfinite(best))[-1])
    choices = np.zeros(len(cost), dtype=np.int64)
    for layer in reversed(range(len(cost))):
        choices[layer] = taken[layer, left]
        left -= steps[layer, choices[layer]]
    return choices
