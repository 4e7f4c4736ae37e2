"""What the paper leaves unsaid: error bars, guessing, and the choices a reader has to make."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from esparse_lab.audit.cells import ITEMS
from esparse_lab.audit.finding import Finding
from esparse_lab.audit.printed import Printed
from esparse_lab.audit.recomputed import size_table
from esparse_lab.errors import InputError

CHOICES = {"hellaswag": 4, "piqa": 2, "openbookqa": 4, "sciq": 4, "logiqa": 4}
"""Answers that a question of each task offers."""

GAP_COLUMNS = ["gap", "subject", "silence", "here", "option"]
GAP_COLUMNS += ["table", "quantity", "vary", "where", "shown_in"]


def within_noise(printed: Printed) -> Iterator[Finding]:
    """Leads of E-Sparse's average over another pruned one that sampling could give.

    The error is that of two means on unlike questions: per-question results, which would allow the
    smaller paired error, are not published.
    """
    cells = printed.select(2, task=[*ITEMS])
    if cells.empty:
        return
    share = cells.number / 100
    cells = cells.assign(variance=share * (1 - share) / cells.task.map(ITEMS))
    rows = cells.groupby(["model", "method"], sort=False).agg(
        mean=("number", "mean"), variance=("variance", "sum"), tasks=("task", "count")
    )
    leads = []
    for (model, method), row in rows.iterrows():
        if method in ("dense", "esparse", "magnitude") or (model, "esparse") not in rows.index:
            continue
        ours = rows.loc[(model, "esparse")]
        error = 100 * np.sqrt(ours.variance + row.variance) / row.tasks
        lead = ours["mean"] - row["mean"]
        if abs(lead) < 2 * error:
            leads.append(f"{model} over {method} {lead:.2f} ± {error:.2f}")
    others = sum(m not in ("dense", "esparse", "magnitude") for _, m in rows.index)
    if leads:
        yield Finding(
            *("unsaid", "substance", "noise", "Table 2", "error bars of the averages"),
            f"lead ± its standard error in points, unpaired: {'; '.join(leads)}",
            recomputed=f"{len(leads)} of {others} leads below two standard errors",
        )


def guesses(printed: Printed) -> Iterator[Finding]:
    """Tasks where most rows are no better than guessing, so that they only add noise to means."""
    for task, n in ITEMS.items():
        cells = printed.select(2, task=task)
        chance = 1 / CHOICES[task]
        limit = 100 * (chance + 2 * np.sqrt(chance * (1 - chance) / n))
        low = cells[cells.number < limit]
        if len(low) > len(cells) / 2:
            yield Finding(
                *("unsaid", "substance", "guessing", "Table 2", cells.column.iloc[0]),
                f"{len(low)} of {len(cells)} rows are below {limit:.1f} %, two standard errors "
                f"above guessing among {CHOICES[task]} answers; whether accuracy is normalised by "
                "length is not said",
                f"{cells.number.min():g} to {cells.number.max():g}",
                f"{100 * chance:g}",
            )


def dense_in_less_memory(printed: Printed) -> Iterator[Finding]:
    """Sparse models behind a dense one that takes less memory; the tables never compare the two."""
    sizes = size_table(printed)
    dense, sparse = sizes[sizes.method == "dense"], sizes[sizes.method == "esparse"]
    better = []
    for one in sparse.itertuples():
        fits = dense[(dense.gb < one.gb) & (dense.perplexity < one.perplexity)]
        better += [
            f"{one.model} 2:4 {one.gb:.2f} GB {one.perplexity:g}, {other.model} {other.gb:.2f} GB "
            f"{other.perplexity:g}"
            for other in fits.tail(1).itertuples()
        ]
    if better:
        yield Finding(
            *("unsaid", "substance", "memory", "Tables 1 and 6", "sparse beside smaller dense"),
            f"true size of the weights and perplexity: {'; '.join(better)}",
            recomputed=f"{len(better)} of {len(sparse)} sparse models",
        )


def gaps(path: Path, reference: Path) -> Iterator[Finding]:
    """The choices that the paper leaves open, with their effect where a table here measures it.

    Further lines of a gap hold its number and another measurement alone.
    """
    if not path.is_file():
        return
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if [*frame] != GAP_COLUMNS:
        raise InputError(f"{path} has the columns {[*frame]}, expected {GAP_COLUMNS}.")
    for number, lines in frame.groupby("gap", sort=False):
        gap, *_ = lines.itertuples(index=False)
        effects = {line: _effect(line, reference) for line in lines.itertuples(index=False)}
        measured = {line.shown_in: None for line, effect in effects.items() if effect}
        matter = "not measured yet" if gap.option else "nothing to measure"
        yield Finding(
            *("unsaid", "measured" if measured else matter, f"gap {number}", "the text"),
            gap.subject,
            f"{gap.silence}. Here: {gap.here}"
            + (f"; else {gap.option}" if gap.option else "")
            + (f"; measured by {', '.join(measured)}" if measured else ""),
            recomputed="; ".join(filter(None, effects.values())),
        )


def _effect(gap, reference: Path) -> str:
    """Least and greatest measured quantity over the values of one setting, all else equal."""
    paths = sorted((reference / "tables").glob(gap.table)) if gap.table else []
    if not paths:
        return ""
    cells = pd.concat([pd.read_csv(path, dtype=str, keep_default_na=False) for path in paths])
    for condition in filter(None, gap.where.split("; ")):
        column, equals, value = condition.partition("=")
        unlike = column.endswith("!")
        column = column.rstrip("!")
        if not equals or column not in cells:
            raise InputError(f"Gap {gap.gap}: {condition!r} names no column of {gap.table}.")
        cells = cells[(cells[column] != value) if unlike else cells[column].isin(value.split("|"))]
    if not {gap.vary, gap.quantity} <= {*cells}:
        raise InputError(f"Gap {gap.gap}: {gap.table} lacks {gap.vary!r} or {gap.quantity!r}.")
    means = cells[gap.quantity].astype(float).groupby(cells[gap.vary]).mean().sort_values()
    if len(means) < 2:
        return ""
    choice = "" if gap.vary == "recipe" else f"{gap.vary} "
    ends = (f"{_plain(means.iloc[i])} ({choice}{means.index[i]})" for i in (0, -1))
    runs = f", {len(paths)} runs" if len(paths) > 1 else ""
    if "seeds" in cells:
        counts = cells.seeds.astype(int)
        runs = f", means of {' to '.join(map(str, sorted({counts.min(), counts.max()})))} seeds"
    return f"{gap.quantity.replace('_', ' ')} {' to '.join(ends)}, {len(means)} values{runs}"


def _plain(number: float) -> str:
    return f"{number:.4g}" if number < 10_000 else f"{number:,.0f}"
