"""How fast sparse should be to be worth its trouble, and whether recorded tables reach that."""

import numpy as np
import pandas as pd

from esparse_lab.gemm.table5 import end_to_end_table

_PAIR = ["m", "k", "n"]


def best_dtypes(beside: pd.DataFrame) -> pd.DataFrame:
    """Of each shape of a `beside_table5` the dtype whose sparse product gains most on its dense."""
    best = beside.groupby(_PAIR, sort=False).speedup.idxmax()
    return beside.loc[best].reset_index(drop=True)


def few_token_table(timings: pd.DataFrame) -> pd.DataFrame:
    """A `gemm_table` of few tokens, with each weight's fastest dense product beside every row.

    cuBLAS can be slower for 1 token than for 8, and padding is open to whoever multiplies dense.

    Returns:
        The table with the columns dense_best_ms (the least dense time of this weight at any number
        of tokens in the table), speedup_of_best (by that time) and most_speedup (what the floor
        allows).
    """
    weight = timings.groupby(["k", "n", "dtype"]).dense_ms.transform("min")
    return timings.assign(
        dense_best_ms=weight,
        speedup_of_best=weight / timings.sparse_ms,
        most_speedup=timings.dense_ms / timings.floor_ms,
    )


def speed_bars(
    beside: pd.DataFrame | None, few: pd.DataFrame | None, runs: pd.DataFrame | None
) -> pd.DataFrame:
    """Every bar that was set before anything was measured, and what the tables say of it.

    Args:
        beside: as of `beside_table5`; None where it was not measured, as are the others.
        few: `few_token_table`.
        runs: as `end_to_end_table` takes them; of the sparse forms cuSPARSELt alone counts.

    Columns: what, over (what the ratio is taken of), asked and reached (times as fast as dense; NaN
    where not measured), decided_by (the least of them), met ("yes", "no" or "not
    measured yet").
    """
    rows = []
    best = None if beside is None else best_dtypes(beside)
    for stage, label in (("Context-stage", "context"), ("Decoder", "decode")):
        part = None if best is None else best[best.stage == stage]
        if label == "context":
            rows.append(("Table 5, context", "each product", 1.35, *_least(part)))
        asked = 1.45 if label == "context" else 1.6
        rows.append((f"Table 5, {label}", "average", asked, *_mean(part)))
    rows.append(("Table 5", "each product", 1.0, *_least(best)))
    for pattern, asked in (("4:8", 1.3), ("2:4", 1.6)):
        part = None
        if few is not None:
            part = few[(few.kernel == "compressed") & (few.pattern == pattern)]
        what = f"1 to 16 tokens, compressed {pattern}"
        rows += [(what, "each product", asked, *_least(part))]
        rows += [(what, "average", asked, *_mean(part))]
    pairs = None if runs is None else end_to_end_table(runs).query("form == 'cusparselt 2:4'")
    for phase, batch, asked in (("decode", 16, 1.35), ("prefill", 4, 1.25)):
        part = None
        if pairs is not None:
            part = pairs[(pairs.phase == phase) & (pairs.batch == batch)]
        what = f"whole model, {phase}, batch {batch}"
        rows.append((what, "each shape", asked, *_least(part)))
    frame = pd.DataFrame(rows, columns=["what", "over", "asked", "reached", "decided_by"])
    met = np.where(frame.reached >= frame.asked, "yes", "no")
    return frame.assign(met=np.where(frame.reached.isna(), "not measured yet", met))


def _least(part: pd.DataFrame | None) -> tuple[float, str]:
    if part is None or part.empty:
        return np.nan, ""
    one = part.loc[part.speedup.idxmin()]
    if "k" not in part:
        return one.speedup, f"{one['shape']}, {one.form}"
    return one.speedup, f"{one.m:,} × {one.k:,} × {one.n:,}, {one['dtype']}"


def _mean(part: pd.DataFrame | None) -> tuple[float, str]:
    if part is None or part.empty:
        return np.nan, ""
    return part.speedup.mean(), f"{len(part)} products"
