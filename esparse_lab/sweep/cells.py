"""Results of a sweep on disk: a parquet file a cell, named by the hash of what it depends on.

Folders of several machines merge by copying their files together: a cell has the same name
everywhere. Failures lie apart, so that none can take the place of a result.
"""

import io
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from esparse_lab.atomic import write_atomically
from esparse_lab.errors import InputError
from esparse_lab.sweep.plan import Cell, hashed, setting_of, text_words

RESULTS, FAILURES = "cells", "failures"


class CellStore:
    """The cells in a folder.

    Args:
        folder: of the sweep's results; nothing is written before the first cell.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def path(self, key: str, kind: str = RESULTS) -> Path:
        """Where the cell of that key lies, or will lie."""
        return self.folder / kind / f"{key}.parquet"

    def has(self, cell: Cell) -> bool:
        """Whether the cell has a whole result."""
        path = self.path(cell.key)
        return path.exists() and _read(path) is not None

    def keep(self, cell: Cell, label: str, facts: dict) -> None:
        """Write a result, with "perplexity" and "nll" [window], or a failure, with "error".

        Raises:
            EsparseError: it cannot be written; no part of it stays.
        """
        kind = FAILURES if "error" in facts else RESULTS
        row = {"key": cell.key, **_described(cell.about, label), **facts}
        row["about"] = json.dumps(cell.about, sort_keys=True)
        content = io.BytesIO()
        pd.DataFrame([row]).to_parquet(content, index=False)
        write_atomically(self.path(cell.key, kind), content.getvalue())
        if kind == RESULTS:
            self.path(cell.key, FAILURES).unlink(missing_ok=True)


def load_cells(folder: str | Path) -> pd.DataFrame:
    """The results in a sweep's folder, one row a cell.

    Columns: key; provenance (a hash of what cells to compare must share: model, evaluation text,
    versions); model, dtype, recipe, calibration_text and evaluation in words; seed (missing where
    no calibration text is read); sequences, calibration_length, window_length and windows; what
    `perplexity_ladder` says of a row; nll (mean negative log likelihood of each window in nats, a
    list); about (JSON). Damaged files are left out, with a warning.

    Raises:
        InputError: there are none.
    """
    rows = _rows(Path(folder) / RESULTS)
    if not rows:
        raise InputError(
            f"{folder} holds no results of a sweep. Run `esparse sweep FILE --out {folder}` first."
        )
    frame = pd.DataFrame(rows).astype({"output_error": float, "peak_memory_gib": float})
    order = ["model", "evaluation", "calibration_text", "recipe", "seed"]
    counts = dict.fromkeys(("seed", "sequences", "calibration_length"), "Int64")
    return frame.astype(counts).sort_values(order, ignore_index=True)


def load_failures(folder: str | Path) -> pd.DataFrame:
    """Cells that failed and have no result since; columns as `load_cells`, error and error_kind."""
    done = {path.name for path in (Path(folder) / RESULTS).glob("*.parquet")}
    return pd.DataFrame(
        [r for r in _rows(Path(folder) / FAILURES) if f"{r['key']}.parquet" not in done]
    )


def _rows(folder: Path) -> list[dict]:
    read = ((path, _read(path)) for path in sorted(folder.glob("*.parquet")))
    rows = []
    for path, row in read:
        if row is None:
            warnings.warn(
                f"{path} is damaged and left out: delete it, or run the sweep again.",
                RuntimeWarning,
                stacklevel=3,
            )
        else:
            rows.append(row)
    return rows


def _read(path: Path) -> dict | None:
    """A cell's row; None if the file is not what was written under that name."""
    try:
        row = pd.read_parquet(path).iloc[0].to_dict()
        whole = hashed(json.loads(row["about"])) == path.stem
        if "error" not in row:
            nll = np.asarray(row["nll"], dtype=float)
            whole = whole and math.isclose(math.exp(nll.mean()), row["perplexity"], rel_tol=1e-9)
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None
    return row if whole else None


def _described(about: dict, label: str) -> dict:
    calibration, evaluation = about["calibration"], about["evaluation"]
    read = calibration or {"seed": None, "windows": None, "length": None}
    return {
        "provenance": hashed(setting_of(about))[:12],
        "model": about["model"]["name"],
        "dtype": about["model"]["dtype"],
        "recipe": label,
        "calibration_text": text_words(calibration) if calibration else "",
        "evaluation": text_words(evaluation),
        "seed": read["seed"],
        "sequences": read["windows"],
        "calibration_length": read["length"],
        "windows": evaluation["windows"],
        "window_length": evaluation["length"],
    }
