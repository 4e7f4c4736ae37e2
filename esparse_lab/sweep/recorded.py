"""Cells that were measured once on larger hardware and are kept with the code."""

import json
from pathlib import Path

import pandas as pd

from esparse_lab.result_cache import COMPUTING
from esparse_lab.sweep.plan import DENSE, hashed, planned_draws, text_words
from esparse_lab.tables import REFERENCE, reference_ladder


def kept_cells(*sweeps: str) -> pd.DataFrame:
    """The cells of kept sweeps, as from `load_cells`; those of a kept ladder where none are.

    Args:
        sweeps: names of files in `data/sweeps`, such as "seeds"; one that is not kept adds nothing.
            Without any, the cells of all.
    """
    path = REFERENCE / "tables" / "sweeps.cells.parquet"
    if not path.is_file():
        return recorded_cells()
    cells = pd.read_parquet(path)
    if not sweeps:
        return cells
    records = [REFERENCE / "records" / f"sweep_{name}.json" for name in sweeps]
    kept = [json.loads(record.read_text()) for record in records if record.is_file()]
    keys = {key for record in kept for key in record["facts"]["cells"]}
    return cells[cells.key.isin(keys)].reset_index(drop=True)


def unmeasured(path: str | Path, cells: pd.DataFrame) -> pd.DataFrame:
    """What a sweep file asks for and cells lack, one row a recipe.

    Recipes and seeds are looked at, not models and texts, so cells should be of one model and text.

    Columns: recipe, seeds (those without a cell, as text; empty for a recipe that reads no text).

    Raises:
        InputError: the file is no sweep.
    """
    have = {(c.recipe, None if pd.isna(c.seed) else int(c.seed)) for c in cells.itertuples()}
    lacking: dict[str, list[str]] = {}
    for draw in planned_draws(path):
        if draw not in have:
            recipe, seed = draw
            lacking.setdefault(recipe, []).extend([] if seed is None else [str(seed)])
    rows = [(recipe, ", ".join(seeds)) for recipe, seeds in lacking.items()]
    return pd.DataFrame(rows, columns=["recipe", "seeds"])


def recorded_cells(prefix: str = "methods_seed") -> pd.DataFrame:
    """A kept ladder of several calibration seeds, as from `load_cells` but without `nll`.

    Args:
        prefix: as in `reference_ladder`.

    Returns:
        One row a recipe and seed; without rows where no such ladder is kept.
    """
    ladder, records = reference_ladder(prefix)
    described = {record["seed"]: _described(record) for record in records}
    rows = []
    for row in ladder.to_dict("records"):
        facts = row | described[row["seed"]] | {"recipe": _label(row)}
        if row["dense"]:
            facts |= {"calibration_text": "", "seed": None}
        rows.append(facts)
    cells = pd.DataFrame(rows)
    # The dense model was measured beside every seed.
    return cells.drop_duplicates(["recipe", "seed", "provenance"]) if rows else cells


def _label(row: dict) -> str:
    if row["dense"]:
        return DENSE
    parts = [f"{row['method']} {row['pattern']}"]
    parts += [row["search"]] if row["search"] != "none" else []
    parts += ["reconstruct"] if row["reconstruct"] else []
    parts += [f"calibration {row['calibration']}"] if row["calibration"] != "sequential" else []
    return ", ".join(parts)


def _described(record: dict) -> dict:
    texts = {}
    for use in ("calibration", "test"):
        corpus, tokens = record["corpora"][use], record["tokens"][use]
        windows, length = tokens["shape"]
        texts[use] = {
            "corpus": corpus["name"],
            "split": corpus["split"],
            "corpus_sha256": corpus["sha256"],
            "windows": windows,
            "length": length,
            "tokens_sha256": tokens["sha256"],
        }
    setting = {
        "model": record["model"],
        "evaluation": texts["test"],
        "versions": {name: record["versions"][name] for name in COMPUTING},
        "source": record["source_sha256"],
    }
    return {
        "provenance": hashed(setting)[:12],
        "model": record["model"]["name"],
        "dtype": record["model"]["dtype"],
        "calibration_text": text_words(texts["calibration"] | {"draw": record["facts"]["draw"]}),
        "evaluation": text_words(texts["test"]),
        "about": json.dumps(setting),
        "finished": record["started"],
    }
