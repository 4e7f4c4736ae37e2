"""Cells against what they can be, and against each other."""

import math
from collections.abc import Iterator
from itertools import combinations

import pandas as pd

from esparse_lab.audit.finding import Finding
from esparse_lab.audit.printed import Printed

ITEMS = {"hellaswag": 10042, "piqa": 1838, "openbookqa": 500, "sciq": 1000, "logiqa": 651}
"""Questions of each task's split as lm-evaluation-harness runs it."""

SAME = 3  # equal cells of two rows or columns from which they are reported


def impossible(printed: Printed) -> Iterator[Finding]:
    """Accuracies that no whole number of right answers gives, rounded or cut off."""
    for cell in printed.select(2, task=[*ITEMS]).itertuples():
        if not any(_counts(cell)):
            n, near = ITEMS[cell.task], int(cell.number * ITEMS[cell.task] / 100)
            below, above = (100 * k / n for k in (near, near + 1))
            nearest = min(below, above, key=lambda value: abs(value - cell.number))
            words = f"{near} of {n} right are {below:.3f} %, {near + 1} are {above:.3f} %"
            yield Finding.of_cell(("impossible", "print", "count"), cell, nearest, words)


def truncated(printed: Printed) -> Iterator[Finding]:
    """Accuracies whose digits were cut off: as many right answers round to another number."""
    cells = [*printed.select(2, task=[*ITEMS]).itertuples()]
    kinds = [_counts(cell) for cell in cells]
    cut = [cell for cell, kind in zip(cells, kinds, strict=True) if kind == (False, True)]
    if cut:
        first, n = cut[0], ITEMS[cut[0].task]
        k = round(first.number * n / 100)
        yield Finding(
            *("arithmetic error", "rounding", "digits", "Table 2"),
            f"{len(cut)} of {len(cells)} accuracies",
            f"digits that can only have been cut off ({kinds.count((True, False))} can only have "
            f"been rounded); {first.row}, {first.column}: {k} of {n} right = {100 * k / n:.4f} %",
        )


def copied(printed: Printed) -> Iterator[Finding]:
    """Rows, and columns of two models, of Table 2 that share more cells than accident gives."""
    cells = printed.select(2, task=[*ITEMS])
    if cells.empty:
        return
    by_row = cells.pivot_table("number", ["model", "method"], "task", sort=False)
    for one, other in combinations(by_row.index, 2):
        equal = by_row.loc[one] == by_row.loc[other]
        yield from _same(" ".join(one), " ".join(other), by_row.loc[one], equal, [*by_row])
    by_column = cells.pivot(index="method", columns=["task", "model"], values="number")
    by_column = by_column.loc[[*dict.fromkeys(cells.method)]]
    for task in ITEMS:
        models = [m for t, m in by_column if t == task]
        for one, other in combinations(models, 2):
            a, b = by_column[task, one], by_column[task, other]
            tasks = [task] * len(a)
            yield from _same(f"{task}, {one}", f"{task}, {other}", a, a == b, tasks)


def _same(
    one: str, other: str, values: pd.Series, equal: pd.Series, tasks: list[str]
) -> Iterator[Finding]:
    if equal.sum() < SAME:
        return
    # Two runs of one true accuracy agree in their count with 1 / (2 sqrt(pi) sd) at most.
    chances = [
        1 / (2 * math.sqrt(math.pi * ITEMS[task] * p * (1 - p)))
        for task, p, same in zip(tasks, values / 100, equal, strict=True)
        if same
    ]
    shared = [f"{name} {value:g}" for name, value in values[equal].items()]
    yield Finding(
        *("copied", "substance", "copy", "Table 2"),
        f"{one} and {other}",
        f"{equal.sum()} of {len(equal)} cells are equal ({', '.join(shared)}); by accident in "
        f"{math.prod(chances):.0e} of cases at most, were the true accuracies the same",
    )


def printed_twice(printed: Printed) -> Iterator[Finding]:
    """One measurement in two places that are not equal: same method, pattern, search and model."""
    cells = printed.select(unit="perplexity")
    for _, group in cells.groupby(["method", "pattern", "search", "model"], sort=False):
        first = group.iloc[0]
        for cell in group[group.number != first.number].itertuples():
            words = f"Table {first.table}, {first.row}, {first.column} has {first.value} for this"
            kind = "arithmetic error", "print", "repeated"
            yield Finding.of_cell(kind, cell, first.number, words)


def disordered(printed: Printed) -> Iterator[Finding]:
    """A perplexity that is higher at 4:8 than at 2:4, although every 2:4 mask is a 4:8 mask."""
    cells = printed.select(unit="perplexity", pattern=["2:4", "4:8"])
    keys = ["table", "method", "search", "model"]
    for _, group in cells.groupby(keys, sort=False):
        numbers = group.set_index("pattern").number
        if len(numbers) == 2 and numbers["4:8"] > numbers["2:4"]:
            cell = next(group[group.pattern == "4:8"].itertuples())
            words = f"at 2:4, which leaves less freedom, it is {numbers['2:4']:g}: exchanged?"
            kind = "implausible", "print", "order"
            yield Finding.of_cell(kind, cell, numbers["2:4"], words)


def _counts(cell) -> tuple[bool, bool]:
    """Whether some count of right answers prints as this cell, rounded; and cut off."""
    n = ITEMS[cell.task]
    near = cell.number * n / 100
    off = [
        100 * k / n - cell.number for k in range(max(0, int(near) - 1), min(n, int(near) + 2) + 1)
    ]
    return (
        any(abs(o) <= cell.step / 2 + 1e-9 for o in off),
        any(-1e-9 <= o < cell.step - 1e-9 for o in off),
    )
