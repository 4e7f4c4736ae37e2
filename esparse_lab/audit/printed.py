"""Printed tables as numbers that know how many digits they were printed with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pandas as pd

from esparse_lab.errors import InputError

NEEDED = ("table", "row", "column", "value", "unit")
AXES = ("model", "pattern", "task", "stage", "layer")
"""Keys that name a cell within a selection, in this order, where they vary."""
KEYS = ("method", "search", *AXES)


@dataclass(frozen=True)
class Printed:
    """Cells of the tables of a paper.

    Attributes:
        cells: one row a cell: table, row, column, value (text), unit, the keys (text; "" where
            one does not apply), number (NaN for text) and step (one unit of the last digit).
        numbers: of the cells, in their order; as printed unless they were `replaced`.
    """

    cells: pd.DataFrame
    numbers: np.ndarray
    _chosen: dict = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, folder: Path) -> "Printed":
        """All `table*.csv` of a folder.

        Raises:
            InputError: there is none, or one lacks columns or holds something else than numbers.
        """
        paths = sorted(folder.glob("table*.csv"))
        if not paths:
            raise InputError(f"{folder} holds no table*.csv; see data/paper/SOURCES.md.")
        cells = pd.concat([_read(path) for path in paths], ignore_index=True)
        cells = cells.fillna("").assign(**{key: "" for key in KEYS if key not in cells})
        written = cells.value.where(cells.unit != "shape")
        digits = written.str.partition(".")[2].str.len()
        number = pd.to_numeric(written)
        return cls(cells.assign(number=number, step=10.0 ** -digits.fillna(0)), number.to_numpy())

    def select(self, table: int | str | None = None, **keys: str | Sequence[str]) -> pd.DataFrame:
        """The cells of a table (of all when None) whose columns have the values given.

        A value may be a list of values; `*` stands for any text. Numbers are as printed.
        """
        return self.cells.loc[self.places(table, **keys)]

    def places(self, table: int | str | None = None, **keys: str | Sequence[str]) -> pd.Series:
        """Where in `numbers` the cells that `select` gives are, named by the keys that vary."""
        asked = (str(table), repr(sorted(keys.items())))
        if asked not in self._chosen:
            chosen = self.cells if table is None else self.cells[self.cells.table == str(table)]
            for key, wanted in keys.items():
                if key not in chosen:
                    raise InputError(f"Cells have no {key!r}; they have {', '.join(chosen)}.")
                wanted = [wanted] if isinstance(wanted, str) else wanted
                fits_one = [any(fnmatchcase(v, w) for w in wanted) for v in chosen[key]]
                chosen = chosen[np.array(fits_one, dtype=bool)]
            varying = [key for key in AXES if chosen[key].nunique() > 1] or ["row"]
            labels = [" ".join(keys) for keys in chosen[varying].itertuples(index=False)]
            self._chosen[asked] = pd.Series([*chosen.index], labels, dtype=int)
        return self._chosen[asked]

    def replaced(self, numbers: Mapping[int, float]) -> "Printed":
        """The same tables with other numbers in these places."""
        changed = self.numbers.copy()
        changed[[*numbers]] = [*numbers.values()]
        return Printed(self.cells, changed, self._chosen)

    def reach(self, of: Callable[["Printed"], float], places: Sequence[int]) -> tuple[float, float]:
        """Least and greatest value of a function, as far as the digits of these cells leave open.

        A printed v may stand for anything from v less half a step (rounded) to v and one step
        (cut off). Each cell is moved alone and the changes are added: exact for sums.
        """
        middle = low = high = of(self)
        for place in places:
            number, step = self.numbers[place], self.cells.step[place]
            moved = [of(self.replaced({place: number + s})) - middle for s in (-step / 2, step)]
            low, high = low + min(0, *moved), high + max(0, *moved)
        return low, high


def step_of(text: str) -> float:
    """One unit of the last digit of a printed number.

    >>> step_of("21.9"), step_of("3")
    (0.1, 1.0)
    """
    return 10.0 ** -len(text.partition(".")[2])


def fits(text: str, low: float, high: float) -> bool:
    """Whether some number from `low` to `high` prints as `text`, rounded or cut off."""
    number, step = float(text), step_of(text)
    return low <= number + step and high >= number - step / 2 - 1e-9


def _read(path: Path) -> pd.DataFrame:
    cells = pd.read_csv(path, dtype=str, keep_default_na=False)
    if missing := [c for c in NEEDED if c not in cells]:
        raise InputError(f"{path} lacks the columns {', '.join(missing)}; see SOURCES.md there.")
    for line, cell in enumerate(cells.itertuples(), start=2):
        try:
            float(cell.value if cell.unit != "shape" else 0)
        except ValueError:
            raise InputError(f"{path}, line {line}: {cell.value!r} is no number.") from None
    return cells
