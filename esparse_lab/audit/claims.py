"""The text's claims, each an expression over the tables' cells."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd

from esparse_lab.audit.expressions import Evaluation
from esparse_lab.audit.finding import Finding
from esparse_lab.audit.printed import Printed, fits
from esparse_lab.errors import InputError


@dataclass(frozen=True)
class Claim:
    """One way to read one claim; a claim holds if one of its readings does.

    Attributes:
        claim: its name; readings of one claim share it and follow each other.
        place: section, caption or abstract.
        quote: the sentence's part, verbatim.
        stated: the number as printed; "" where the claim is a comparison.
        reading: what the number is taken to be.
        expression: the same over cells; see `expressions`.
        matter: "print" or "substance", should it fail.
    """

    claim: str
    place: str
    quote: str
    stated: str
    reading: str
    expression: str
    matter: str


@dataclass(frozen=True)
class Verdict:
    """What a claim comes to: whether it holds, its value, and the computation in words."""

    holds: bool
    value: float
    words: str


def read_claims(path: Path) -> list[Claim]:
    """The rows of a claims.csv; none where there is no such file."""
    if not path.is_file():
        return []
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if [*frame] != [*Claim.__annotations__]:
        raise InputError(f"{path} has the columns {[*frame]}, expected {[*Claim.__annotations__]}.")
    return [Claim(*row) for row in frame.itertuples(index=False)]


def judge(claim: Claim, printed: Printed) -> Verdict:
    """One reading of a claim against the tables.

    Raises:
        InputError: the expression cannot be evaluated; names the claim.
    """
    try:
        found = Evaluation(claim.expression, printed)
    except InputError as error:
        raise InputError(f"Claim {claim.claim!r}: {error}") from None
    if claim.stated:
        low = high = value = float(found.value)
        if not fits(claim.stated, value, value):
            low, high = printed.reach(
                lambda p: float(Evaluation(claim.expression, p).value), sorted({*found.touched})
            )
        return Verdict(fits(claim.stated, low, high), value, f"{claim.reading} = {value:.4g}")
    labels = found.value.index if isinstance(found.value, pd.Series) else [""]
    sides = np.broadcast_arrays(*map(np.ravel, (*found.sides, found.value)))
    rows = [row for row in zip(labels, *sides, strict=True) if np.isfinite(row[1:3]).all()]
    exceptions = [f"{label}: {a:.4g} against {b:.4g}" for label, a, b, holds in rows if not holds]
    if len(rows) == 1:
        words = f"{claim.reading}: {rows[0][1]:.4g} against {rows[0][2]:.4g}"
    else:
        words = f"{claim.reading}: not so in {len(exceptions)} of {len(rows)}"
        words += f" ({'; '.join(exceptions)})" if exceptions else ""
    return Verdict(not exceptions, float(len(exceptions)), words)


def standing(claims: list[Claim], printed: Printed) -> set[str]:
    """Quotes of the claims that hold."""
    return {c.quote for c in claims if judge(c, printed).holds}


def claim_table(printed: Printed, right: Printed, path: Path) -> pd.DataFrame:
    """Every claim, whether or not it holds; one row a reading.

    Columns: those of `Claim`, holds_printed and holds_recomputed (on the tables as printed, and
    with wrong results recomputed), value and arithmetic (of the latter).
    """
    columns = ["holds_printed", "holds_recomputed", "value", "arithmetic"]
    rows = [
        (*vars(claim).values(), before.holds, after.holds, after.value, after.words)
        for claim, before, after in _judged(printed, right, path)
    ]
    return pd.DataFrame(rows, columns=[*Claim.__annotations__, *columns])


def failed_claims(printed: Printed, right: Printed, path: Path) -> Iterator[Finding]:
    """Claims that fail on the tables as printed or with their results recomputed."""
    for _, group in groupby(_judged(printed, right, path), key=lambda judged: judged[0].claim):
        claims, on_printed, on_right = zip(*group, strict=True)
        first = claims[0]
        holds_printed, holds_right = (any(v.holds for v in vs) for vs in (on_printed, on_right))
        if holds_printed and holds_right:
            continue
        shown = on_printed if holds_right else on_right
        words = "; ".join(v.words for v in shown)
        if holds_printed:
            words += f"; on the cells as printed: {'; '.join(v.words for v in on_printed)}"
        elif holds_right:
            words += "; it holds once wrong results are recomputed"
        finding = Finding(
            *("text disagrees", "print" if holds_right else first.matter, "claim", first.place),
            f"“{first.quote}”",
            words,
        )
        if first.stated:
            values = " or ".join(f"{v.value:.4g}" for v in shown)
            difference = float(first.stated) - shown[0].value
            finding = replace(
                finding, published=first.stated, recomputed=values, difference=difference
            )
        yield finding


def _judged(printed: Printed, right: Printed, path: Path) -> list[tuple[Claim, Verdict, Verdict]]:
    return [(c, judge(c, printed), judge(c, right)) for c in read_claims(path)]
