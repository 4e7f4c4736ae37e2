"""Printed results of arithmetic: averages, percentages, sizes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from esparse_lab.audit.claims import read_claims, standing
from esparse_lab.audit.finding import Finding
from esparse_lab.audit.printed import Printed, fits, step_of
from esparse_lab.footprint import LLAMA, paper_formula, table6_terms


@dataclass(frozen=True)
class Rule:
    """A column that follows from others of its row."""

    table: str
    column: str
    of: tuple[str, ...]
    compute: Callable[[np.ndarray], float]
    words: str


def _reduction(sizes: np.ndarray) -> float:
    return 100 * (1 - sizes[1] / sizes[0])


_TASKS = ("HellaSwag", "PiQA", "OpenBookQA", "SciQ", "LogiQA")
RULES = (
    Rule("2", "Avg.", _TASKS, np.mean, "({} + {} + {} + {} + {}) / 5"),
    Rule(
        "5", "Latency Reduction", ("Dense GEMM", "E-Sparse GEMM"), _reduction, "100 (1 - {1} / {0})"
    ),
    Rule(
        "6", "Memory Saving", ("Dense (FP16)", "Sparse (FP16)"), _reduction, "100 (1 - {1} / {0})"
    ),
)


def recomputed_table(printed: Printed) -> pd.DataFrame:
    """Every average and percentage of the tables, computed from its row.

    Columns: table, row, column, label (of the cell), value (as printed), recomputed, difference
    (published less recomputed), verdict ("agrees", "rounding" where cut digits explain
    the difference, "differs"), arithmetic.
    """
    rows = []
    for rule in RULES:
        for label, cell in printed.select(int(rule.table), column=rule.column).iterrows():
            row = printed.select(int(rule.table), row=cell.row).reset_index(names="place")
            given = row.set_index("column").loc[[*rule.of]]

            def result(p: Printed, rule: Rule = rule, given: pd.DataFrame = given) -> float:
                return float(rule.compute(p.numbers[given.place]))

            value = result(printed)
            verdict = "agrees"
            if abs(cell.number - value) > cell.step / 2 + 1e-9:
                verdict = (
                    "rounding"
                    if fits(cell.value, *printed.reach(result, given.place))
                    else "differs"
                )
            words = rule.words.format(*given.value)
            rows.append((*cell[["table", "row", "column"]], label, cell.value, value))
            rows[-1] += (cell.number - value, verdict, f"{words} = {value:.3f}")
    columns = ["table", "row", "column", "label", "value", "recomputed", "difference"]
    return pd.DataFrame(rows, columns=[*columns, "verdict", "arithmetic"])


def corrected(printed: Printed) -> Printed:
    """The tables with every result that differs replaced by the recomputed one."""
    wrong = recomputed_table(printed).query("verdict == 'differs'")
    return printed.replaced(dict(zip(wrong.label, wrong.recomputed, strict=True)))


def wrong_results(printed: Printed, claims: Path) -> Iterator[Finding]:
    """Averages and percentages that their row does not give, and which claims fall with them."""
    results, text = recomputed_table(printed), read_claims(claims)
    before = standing(text, printed)
    for cell in results[results.verdict != "agrees"].itertuples():
        matter, words = "rounding", cell.arithmetic
        if cell.verdict == "differs":
            fall = before - standing(
                [c for c in text if c.quote in before],
                printed.replaced({cell.label: cell.recomputed}),
            )
            matter = "substance" if fall else "print"
            words += "".join(f"; then “{quote}” no longer holds" for quote in sorted(fall))
            same = results[(results.table == cell.table) & (results.label != cell.label)]
            same = same[(same.recomputed - float(cell.value)).abs() < step_of(cell.value) / 2]
            words += "".join(f"; {cell.value} is the mean of the row {row}" for row in same.row)
        check = "average" if cell.column == "Avg." else "percentage"
        yield Finding.of_cell(("arithmetic error", matter, check), cell, cell.recomputed, words)


def wrong_sizes(printed: Printed) -> Iterator[Finding]:
    """Sizes of models (Table 6) that their weights do not have, in GB or in GiB."""
    true = table6_terms().groupby(["model", "form"]).gb.sum()
    forms = {"Dense (FP16)": "dense", "Sparse (FP16)": "compressed"}
    for cell in printed.select(6, column=[*forms], model=[*LLAMA]).itertuples():
        gb = true[cell.model, forms[cell.column]]
        if any(fits(cell.value, size, size) for size in (gb, gb * 1e9 / 2**30)):
            continue
        guess = dict(zip(forms.values(), paper_formula(LLAMA[cell.model]), strict=True))
        guess = guess[forms[cell.column]]
        words = "every weight at 2 bytes, 2:4 at 9/16 of that: "
        words += f"{gb:.3f} GB = {gb * 1e9 / 2**30:.3f} GiB"
        if fits(cell.value, guess, guess):
            words += "; with two of the three FFN matrices, one of the two vocabulary matrices and "
            words += f"units of 1000 MiB: {guess:.4f}"
        yield Finding.of_cell(("arithmetic error", "substance", "size"), cell, gb, words)


def size_table(printed: Printed) -> pd.DataFrame:
    """Perplexity beside what a model's weights truly take, dense and at 2:4.

    Columns: model, method, form ("dense" or "compressed"), gb (1e9 bytes), perplexity; the methods
    of Table 1 at 2:4 in its order, smallest model first.
    """
    terms = table6_terms().groupby(["model", "form"], as_index=False).gb.sum()
    cells = printed.select(1, model=[*LLAMA], pattern=["", "2:4"])
    cells = cells.assign(form=np.where(cells.method == "dense", "dense", "compressed"))
    cells = cells.rename(columns={"number": "perplexity"})
    return cells.merge(terms, on=["model", "form"])[["model", "method", "form", "gb", "perplexity"]]
