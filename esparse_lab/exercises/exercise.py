"""An exercise that knows its solution, the mistakes that people make, and hints."""

import html
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import Tensor

from esparse_lab.errors import InputError

Status = Literal["right", "wrong", "open"]
# Word, sign and colour each say it alone: for grey print, screen readers and a quick look.
_SAYS: dict[Status, str] = {
    "right": "✓ Right.",
    "wrong": "✗ Not yet.",
    "open": "○ Not answered yet.",
}
_COLOURS: dict[Status, str] = {"right": "#009E73", "wrong": "#D55E00", "open": "#8A8A8A"}


@dataclass(frozen=True)
class Verdict:
    """What a check says; a notebook shows it as a box with the hints folded away.

    Attributes:
        status: "right", "wrong" or "open" (not answered).
        why: the reason, in a sentence or two.
        hints: to be unfolded one by one; none once the answer is right.
    """

    status: Status
    why: str
    hints: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"{_SAYS[self.status]} {self.why}"

    def _repr_html_(self) -> str:
        folded = "".join(
            f"<details><summary>Hint {number} of {len(self.hints)}</summary>"
            f"<p style='margin:.2em 0 .4em 1em'>{html.escape(hint)}</p></details>"
            for number, hint in enumerate(self.hints, start=1)
        )
        return (
            f"<div style='border-left:5px solid {_COLOURS[self.status]};padding:.3em 1em;"
            f"max-width:46rem'><strong>{_SAYS[self.status]}</strong> {html.escape(self.why)}"
            f"{folded}</div>"
        )


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that people give, and what went wrong."""

    answer: float | list | Tensor | np.ndarray
    why: str


@dataclass(frozen=True)
class Exercise:
    """A question whose answer is a number or an array.

    Attributes:
        solution: the right answer.
        lesson: what to take away, said when the answer is right.
        hints: from a nudge to nearly the solution.
        mistakes: known wrong answers; the first that fits is named.
        tolerance: relative; by default, whoever writes down four digits is right.
    """

    solution: float | list | Tensor | np.ndarray
    lesson: str
    hints: tuple[str, ...]
    mistakes: tuple[Mistake, ...] = field(default=(), repr=False)
    tolerance: float = 1e-3

    def check(self, answer: object) -> Verdict:
        """Whether `answer` is right, and if not, why; None is "not answered yet".

        Numbers, nested lists, arrays and tensors are compared to `tolerance`. Nothing
        raises: a notebook with open or wrong answers runs to its end.
        """
        if answer is None or answer is ...:
            return Verdict("open", "Put your answer in place of None, run the cell.", self.hints)
        expected = _array(self.solution)
        try:
            given = _array(answer)
        except (TypeError, ValueError, RuntimeError):
            wanted = f"numbers of shape {list(expected.shape)}" if expected.ndim else "one number"
            shown = f"{str(answer)[:40]!r} ({type(answer).__name__})"
            return Verdict("wrong", f"Expected {wanted}, got {shown}.", self.hints)
        if self._same(given, expected):
            return Verdict("right", self.lesson)
        for mistake in self.mistakes:
            if self._same(given, _array(mistake.answer)):
                return Verdict("wrong", mistake.why, self.hints)
        return Verdict("wrong", self._difference(given, expected), self.hints)

    def hint(self, number: int = 1) -> str:
        """Hint `number`, counted from 1.

        Raises:
            InputError: if there is no such hint.
        """
        if not 1 <= number <= len(self.hints):
            raise InputError(f"There are hints 1 to {len(self.hints)}, got {number}.")
        return self.hints[number - 1]

    def _near(self, given: np.ndarray, expected: np.ndarray) -> np.ndarray:
        # Small entries of an array may be as wrong as rounding makes its largest.
        least = 1e-6 * np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
        return np.isclose(given, expected, rtol=self.tolerance, atol=least, equal_nan=True)

    def _same(self, given: np.ndarray, expected: np.ndarray) -> bool:
        return given.shape == expected.shape and bool(self._near(given, expected).all())

    def _difference(self, given: np.ndarray, expected: np.ndarray) -> str:
        """What tells a wrong answer, of no known mistake, from the right one."""
        if given.shape != expected.shape:
            wanted = f"shape {list(expected.shape)}" if expected.ndim else "one number"
            turned = " It is the transpose." if self._same(given.T, expected) else ""
            return f"Expected {wanted}, got shape {list(given.shape)}.{turned}"
        if not np.isfinite(given).all():
            return "It holds NaN or infinity."
        if not expected.ndim and abs(expected) <= 1 and self._near(given / 100, expected):
            return "That is in percent; give the share, between 0 and 1."
        if not expected.ndim:
            return "It is too large." if given > expected else "It is too small."
        near = self._near(given, expected)
        first = np.argwhere(~near)[0].tolist()
        return f"{near.sum()} of {near.size} entries are right; the first wrong one is at {first}."


def _array(answer: object) -> np.ndarray:
    """The answer as float64; one number in a list is that number."""
    if isinstance(answer, Tensor):
        answer = answer.detach().cpu().double()
    found = np.asarray(answer, dtype=float)
    return found.reshape(()) if found.size == 1 else found
