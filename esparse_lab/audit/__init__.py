"""The paper's tables and sentences, recomputed from its own printed cells.

`audit` reads the CSVs of data/paper (or a folder of the same form) and returns its findings as a
tidy table. Nothing is written down as a result: change a cell and the findings follow. The laws
that are checked stand one to a function, in `recomputed`, `cells`, `claims`, `products` and
`unsaid`.
"""

from pathlib import Path

import pandas as pd

from esparse_lab.audit.cells import copied, disordered, impossible, printed_twice, truncated
from esparse_lab.audit.claims import claim_table, failed_claims
from esparse_lab.audit.finding import SEVERITIES, Finding, as_text
from esparse_lab.audit.printed import Printed
from esparse_lab.audit.products import product_rates, shapes_of_no_model, too_fast
from esparse_lab.audit.recomputed import (
    corrected,
    recomputed_table,
    size_table,
    wrong_results,
    wrong_sizes,
)
from esparse_lab.audit.unsaid import dense_in_less_memory, gaps, guesses, within_noise
from esparse_lab.tables import PAPER_TABLES, REFERENCE

__all__ = [
    "SEVERITIES",
    "Finding",
    "Printed",
    "as_text",
    "audit",
    "claims_of",
    "product_rates",
    "recomputed_table",
    "size_table",
]


def claims_of(folder: Path = PAPER_TABLES) -> pd.DataFrame:
    """Every claim in `claims.csv` of a folder and whether it holds; see `claim_table`."""
    printed = Printed.read(folder)
    return claim_table(printed, corrected(printed), folder / "claims.csv")


def audit(folder: Path = PAPER_TABLES, reference: Path = REFERENCE) -> pd.DataFrame:
    """Every finding about the tables in a folder.

    Args:
        folder: holds `table1.csv` to `table6.csv`, or some of them; with `claims.csv` the text is
            checked too, with `gaps.csv` what it leaves unsaid.
        reference: where measured tables are, for the effect of what is left unsaid.

    Returns:
        One row a finding, the gravest severity first: the fields of `Finding`.

    Raises:
        InputError: no table there, or a file that cannot be read as one.
    """
    printed = Printed.read(folder)
    right = corrected(printed)
    claims, silences = folder / "claims.csv", folder / "gaps.csv"
    found = [
        *wrong_results(printed, claims),
        *wrong_sizes(printed),
        *impossible(printed),
        *too_fast(printed),
        *copied(printed),
        *printed_twice(printed),
        *disordered(printed),
        *failed_claims(printed, right, claims),
        *truncated(printed),
        *within_noise(printed),
        *guesses(printed),
        *dense_in_less_memory(printed),
        *shapes_of_no_model(printed),
        *gaps(silences, reference),
    ]
    found.sort(key=lambda f: SEVERITIES.index(f.severity))  # stable: the order above stays
    return pd.DataFrame(found, columns=list(Finding.__annotations__))
