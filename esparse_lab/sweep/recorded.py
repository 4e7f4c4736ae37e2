"""Ladders that were kept before there were sweeps, as cells: without the losses of windows."""

import json

import pandas as pd

from esparse_lab.result_cache import COMPUTING
from esparse_lab.sweep.plan import DENSE, hashed, text_words
from esparse_lab.tables import reference_ladder


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
