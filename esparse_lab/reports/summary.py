"""The content of `run.json`: what ran, on what, and what came out."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from esparse_lab.reports.execute import NotebookRun
from esparse_lab.reports.html import outline
from esparse_lab.run_record import git_state, versions

MEASURED = ("perplexity", "retained_share", "output_error", "prune_seconds")
NAMES = ("method", "settings", "pattern", "search", "reconstruct", "calibration", "allocation")
LADDER = (*NAMES, "dense", *MEASURED)
"""A table with these columns is a perplexity ladder, whose rows the index compares."""


def run_summary(
    build: Path,
    facts: Mapping[str, object],
    values: Mapping[str, Mapping[str, object]],
    runs: Mapping[str, NotebookRun],
) -> dict:
    """The content of run.json, but for the times.

    Args:
        build: the folder with executed notebooks, `tables/` and `records/`.
        facts: `model`, `name` (of the run, or None), `profile` and `given` (parameters).
        values: notebook -> its full parameters.
        runs: notebook -> how it ended.
    """
    read = {path.stem: _record(path) for path in sorted((build / "records").glob("*.json"))}
    records = {name: record for name, record in read.items() if record is not None}
    headline: dict[str, object] = {}
    for name, record in records.items():
        for label, value in record["headline"].items():
            taken = label in headline and headline[label] != value
            headline[f"{label} ({name})" if taken else label] = value
    peaks = [record["peak_memory_mib"] for record in records.values()]
    ladders = sorted((build / "tables").glob("*.parquet"))
    return {
        "format": 2,
        "page": "index.html",
        **facts,
        "status": "failed" if any(run.error is not None for run in runs.values()) else "done",
        "revision": _common((record["model"] or {}).get("revision") for record in records.values()),
        "seed": _common(parameters.get("seed") for parameters in values.values()),
        "device": _common(record["device"] for record in records.values()),
        "versions": versions(),
        "git": git_state(),
        "peak_memory_mib": {
            kind: max(peak[kind] for peak in peaks if kind in peak)
            for kind in sorted({kind for peak in peaks for kind in peak})
        },
        "headline": headline,
        "recipes": [recipe for table in ladders for recipe in _recipes(table)],
        "data": {
            name: {"corpora": record["corpora"], "tokens": record["tokens"]}
            for name, record in records.items()
        },
        "notebooks": [
            {
                "name": name,
                **outline(build / f"{name}.ipynb"),
                "status": "done" if run.error is None else "failed",
                "error": run.error,
                "error_at": None
                if run.error is None
                else "error"
                if run.cell is None
                else "failed",
                "seconds": run.seconds,
                "headline": records[name]["headline"] if name in records else {},
                "parameters": dict(values[name]),
                "page": f"{name}.html",
                "executed": f"{name}.ipynb",
            }
            for name, run in runs.items()
        ],
        "tables": sorted(table.stem for table in (build / "tables").glob("*.csv")),
    }


def _record(path: Path) -> dict | None:
    """A notebook's run record; None when it is not one."""
    try:
        record = json.loads(path.read_text())
        return record if {"headline", "peak_memory_mib", "versions"} <= record.keys() else None
    except (ValueError, AttributeError):
        return None


def _recipes(table: Path) -> Iterable[dict]:
    """The rows of a perplexity ladder; none for any other table."""
    frame = pd.read_parquet(table)
    if not {*LADDER} <= {*frame.columns}:
        return
    dense = frame[frame.dense].perplexity
    frame["ratio"] = frame.perplexity / (dense.iloc[0] if len(dense) else math.nan)
    for row in frame.to_dict("records"):
        usual = {"calibration": "sequential", "allocation": ""}
        more = [row[key] for key in usual if row[key] not in ("", usual[key])]
        yield {
            "notebook": table.stem.partition(".")[0],
            **{key: row[key] for key in ("method", "settings", "pattern", "search")},
            "more": ", ".join(more + ["reconstruct"] * bool(row["reconstruct"])),
            **{key: _figure(row[key]) for key in (*MEASURED, "ratio")},
        }


def _figure(value: float) -> float | str | None:
    """A number that strict JSON can hold: None for a missing one, text for an infinite one."""
    return None if math.isnan(value) else value if math.isfinite(value) else str(value)


def _common(values: Iterable[object]) -> object:
    """The one value that all notebooks share; a list when they differ; None when none has it."""
    distinct: list[object] = []
    for value in values:
        if value is not None and value not in distinct:
            distinct.append(value)
    return distinct[0] if len(distinct) == 1 else distinct or None
