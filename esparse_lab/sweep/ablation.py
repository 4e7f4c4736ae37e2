"""The parts of E-Sparse in any order: each alone, each left out. Table 4 adds them in one order."""

from itertools import combinations

import pandas as pd

from esparse_lab.sweep.summary import DIFFERENCE, GROUP, RATIO, paired_table, summary_table

PARTS = ("entropy", "GNS", "LBS")
SUBSETS = [subset for size in range(4) for subset in combinations(PARTS, size)]
NAMES = {
    subset: {
        0: "norm alone (Wanda)",
        1: f"{subset[0]} alone" if subset else "",
        2: f"all but {' '.join(set(PARTS) - set(subset))}",
        3: "all (E-Sparse)",
    }[len(subset)]
    for subset in SUBSETS
}


def ablation_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Every combination of entropy, GNS and LBS that was measured; takes `load_cells`.

    Columns: parts (such as "GNS alone" or "all but GNS"), pattern, and those of `summary_table`;
    rows by pattern, from the norm alone to all parts.
    """
    summary = summary_table(cells)
    rows = [
        summary[summary.recipe == _label(subset, pattern)].assign(parts=name, pattern=pattern)
        for pattern in _patterns(cells)
        for subset, name in NAMES.items()
    ]
    frame = pd.concat(rows or [summary[:0].assign(parts="", pattern="")], ignore_index=True)
    return frame[["parts", "pattern", *summary]]


def parts_table(cells: pd.DataFrame, **interval: float) -> pd.DataFrame:
    """What each part changes beside each choice of the others, on the same seeds and windows.

    Args:
        cells: as for `paired_table`.
        interval: confidence, draws and seed of `paired_table`.

    Returns:
        Columns: part, beside (what else was on: "norm", "GNS + LBS"), pattern, and those of
        `paired_table`, whose baseline is the same without the part. Without rows where no two such
        recipes were measured.
    """
    rows = []
    for pattern in _patterns(cells):
        for part in PARTS:
            for others in (subset for subset in SUBSETS if part not in subset):
                without, having = _label(others, pattern), _label((*others, part), pattern)
                pair = cells[cells.recipe.isin([without, having])]
                if pair.recipe.nunique() == 2:
                    found = paired_table(pair, without, **interval)
                    beside = " + ".join(others) or "norm"
                    rows.append(found.assign(part=part, beside=beside, pattern=pattern))
    columns = ["part", "beside", "pattern", *GROUP, "baseline", "seeds", *DIFFERENCE, *RATIO]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)


def _patterns(cells: pd.DataFrame) -> list[str]:
    return [pattern for pattern in cells.pattern.unique() if pattern]


def _label(parts: tuple[str, ...], pattern: str) -> str:
    """The recipe's label, such as "esparse 2:4, gns+lbs"."""
    search = "+".join(part.lower() for part in PARTS[1:] if part in parts)
    name = "esparse" if "entropy" in parts else "wanda"
    return f"{name} {pattern}" + (f", {search}" if search else "")
