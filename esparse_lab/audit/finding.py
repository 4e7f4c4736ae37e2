"""What an audit finds, and how grave it is."""

import math
import textwrap
from dataclasses import dataclass

import pandas as pd

SEVERITIES = (
    "arithmetic error",
    "impossible",
    "copied",
    "implausible",
    "text disagrees",
    "unsaid",
)
"""The gravest first is not meant as blame: `Finding.matter` says what follows from each."""


@dataclass(frozen=True)
class Finding:
    """One line of an audit.

    Attributes:
        severity: one of `SEVERITIES`.
        matter: "rounding": how digits were cut explains it; "print": the printed thing is wrong,
            but no claim of the text falls with it; "substance": a claim falls, or a number does
            not stand for what it seems to. For a gap in the text "measured" or "not measured yet".
        check: name of the check that found it.
        place: table or section.
        subject: row and column, or the sentence.
        arithmetic: the computation, in one line.
        published: as printed.
        recomputed: by this audit.
        difference: published less recomputed; NaN where that has no meaning.
    """

    severity: str
    matter: str
    check: str
    place: str
    subject: str
    arithmetic: str
    published: str = ""
    recomputed: str = ""
    difference: float = math.nan

    @classmethod
    def of_cell(
        cls, kind: tuple[str, str, str], cell, recomputed: float, arithmetic: str
    ) -> "Finding":
        """A cell that should be another number; kind is severity, matter and check."""
        place, subject = f"Table {cell.table}", f"{cell.row}, {cell.column}"
        difference, shown = float(cell.value) - recomputed, f"{recomputed:.3f}"
        return cls(*kind, place, subject, arithmetic, cell.value, shown, difference)


def as_text(findings: pd.DataFrame, width: int = 100) -> str:
    """Findings as lines for a terminal, grouped by severity, their arithmetic below each."""
    lines = []
    for severity, group in findings.groupby("severity", sort=False):
        lines.append(f"{severity} ({len(group)})")
        for f in group.itertuples():
            numbers = f"{f.published} -> {f.recomputed}" if f.published else f.recomputed
            numbers += "" if math.isnan(f.difference) else f" ({f.difference:+.3f})"
            heading = f"[{f.matter}] {f.place}, {f.subject}" + (f": {numbers}" if numbers else "")
            lines += textwrap.wrap(heading, width, initial_indent="  ", subsequent_indent="    ")
            lines += textwrap.wrap(
                f.arithmetic, width, initial_indent="      ", subsequent_indent="      "
            )
        lines.append("")
    return "\n".join(lines)
