"""Two models on the same items: how far apart, and how sure that is."""

from math import comb

import numpy as np
import pandas as pd

from esparse_lab.errors import InputError
from esparse_lab.tasks.evaluation import MEAN

KEYS = ["task", "item", "question", "metric"]


def paired_difference(
    items: pd.DataFrame,
    baseline: pd.DataFrame,
    *,
    confidence: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """By how much a model differs from another on the same items, with a confidence interval.

    Items on which both are right, or both wrong, say nothing about the difference; a comparison of
    the two standard errors would count them.

    Args:
        items: `TaskScores.items` of one model, such as a pruned one.
        baseline: of the other, such as the dense one; the same items.
        confidence: of the interval, between 0 and 1.
        draws: resamples of the paired bootstrap, which draws the items of a task anew with both
            models' results on them (Efron & Tibshirani 1993, percentile interval).
        seed: of the draws.

    Returns:
        One row a task and metric, and the mean over tasks of each metric that all have, each task
        resampled by itself. Columns: task, metric, difference (model - baseline), low, high, gained
        and lost (items that this model alone, the baseline alone got right), items, p_value (exact
        McNemar test, two-sided; missing for a mean and for metrics beyond right and wrong).

    Raises:
        InputError: the two were not asked the same, or a setting is out of range.
    """
    if not 0 < confidence < 1 or draws < 1:
        raise InputError(
            f"Expected a confidence between 0 and 1 and draws of at least 1, got {confidence} and "
            f"{draws}."
        )
    both = items.merge(
        baseline, on=KEYS, how="outer", suffixes=("", "_baseline"), indicator=True, sort=False
    )
    alone = both[both._merge != "both"]
    if len(alone) or both.empty:
        first = "no items at all" if both.empty else f"{alone.task.iloc[0]} {alone.item.iloc[0]}"
        raise InputError(
            f"The two models were not asked the same questions: {len(alone)} results of one have "
            f"no partner, beginning with {first}. Take the same files, tasks and limit for both."
        )
    both["difference"] = both.value - both.value_baseline
    generator = np.random.default_rng(seed)
    tail = (1 - confidence) / 2
    rows, drawn = [], {}
    order = items[["task", "metric"]].drop_duplicates().itertuples(index=False)
    groups = both.groupby(["task", "metric"])
    for task, metric in order:
        of_task = groups.get_group((task, metric))
        found, counts = np.unique(of_task.difference, return_counts=True)
        size = len(of_task)
        # Items with the same difference are alike: how often each is drawn is multinomial.
        means = generator.multinomial(size, counts / size, draws) @ found / size
        drawn.setdefault(metric, {})[task] = means
        gained, lost = (int((sign * of_task.difference > 0).sum()) for sign in (1, -1))
        binary = of_task[["value", "value_baseline"]].isin((0, 1)).all(axis=None)
        p_value = mcnemar(gained, lost) if binary else float("nan")
        observed = of_task.difference.mean()
        low, high = np.quantile(means, [tail, 1 - tail])
        rows.append((task, metric, observed, low, high, gained, lost, size, p_value))
    counted = ["gained", "lost", "items"]
    columns = ["task", "metric", "difference", "low", "high", *counted, "p_value"]
    table = pd.DataFrame(rows, columns=columns)
    n_tasks = table.task.nunique()
    for metric, of_metric in drawn.items():
        if len(of_metric) == n_tasks > 1:
            part = table[(table.metric == metric) & (table.task != MEAN)]
            low, high = np.quantile(np.mean(list(of_metric.values()), axis=0), [tail, 1 - tail])
            sums = (int(part[name].sum()) for name in counted)
            row = (MEAN, metric, part.difference.mean(), low, high, *sums, float("nan"))
            table.loc[len(table)] = row
    return table


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided McNemar test: the chance of so uneven a split of a fair coin's throws.

    >>> mcnemar(0, 5)
    0.0625
    """
    throws = gained + lost
    return min(1.0, 2 * sum(comb(throws, k) for k in range(min(gained, lost) + 1)) / 2**throws)
