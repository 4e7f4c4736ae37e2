"""A model's report: every notebook run on it, as offline pages, tables and one run record."""

import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import nbformat

from esparse_lab.atomic import building_folder, write_atomically
from esparse_lab.errors import EsparseError, InputError, unknown
from esparse_lab.reports.execute import NotebookRun, run_notebook
from esparse_lab.reports.html import PLOTLY, WIDGET, notebook_page, notebook_title
from esparse_lab.reports.index import RESERVED, duration, write_index
from esparse_lab.reports.parameters import assign, notebook_parameters
from esparse_lab.reports.profiles import PROFILES
from esparse_lab.run_record import git_state, versions

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@dataclass(frozen=True)
class ReportOutcome:
    """What came of a report.

    Attributes:
        folder: `out/<slug>`, with the pages, `tables/`, `records/` and `run.json`.
        index: `out/index.html`.
        failed: names of the notebooks that failed; their pages show the traceback.
        seconds: wall time.
    """

    folder: Path
    index: Path
    failed: list[str]
    seconds: float


def render_report(
    model: str = "smollm2-135m",
    *,
    profile: str = "quick",
    parameters: Mapping[str, str] | None = None,
    out: Path | str = Path("reports"),
    notebooks_dir: Path | None = None,
) -> ReportOutcome:
    """Run every notebook on a model and replace its report by the result.

    The report is built in a hidden folder and renamed into place at the end: Ctrl-C or a kill
    leaves the previous one as it was. A notebook that fails does not stop the others.

    Args:
        model: a name that `load_model` takes.
        profile: a key of `PROFILES`.
        parameters: name -> text, checked against the notebooks' typed parameters.
        out: the folder of all reports.
        notebooks_dir: where the notebooks `NN_*.ipynb` are; those of the checkout by default.

    Returns:
        Where the report is and which notebooks failed.

    Raises:
        InputError: an unknown profile or parameter, an ill-typed value, or something else than a
            report in its place.
        EsparseError: no notebooks, a notebook whose parameters cannot be read, or a folder that
            cannot be written.
    """
    sources, values = plan_report(
        model, profile=profile, parameters=parameters, notebooks_dir=notebooks_dir
    )
    out = Path(out)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    clock = time.perf_counter()
    folder = out / report_slug(model)
    foreign = folder.exists() and not (folder / "run.json").is_file()
    if foreign and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(
            f"{folder} is no report (it has no run.json), so it is not replaced. Move it away, or "
            "choose another --out."
        )
    with building_folder(folder) as build:
        runs: dict[str, NotebookRun] = {}
        for number, source in enumerate(sources, start=1):
            name = source.stem
            executed = build / source.name
            values[name]["out_dir"] = str(build)
            label = f"[{number}/{len(sources)}] {name}"
            runs[name] = run_notebook(source, executed, values[name], label=label)
            # The place of building is gone afterwards; what is kept names the report instead.
            values[name]["out_dir"] = f"{out.name}/{folder.name}"
            _name_the_report(executed, build, values[name]["out_dir"])
        summary = _summary(build, model, profile, values, runs)
        summary |= {"started": started, "seconds": round(time.perf_counter() - clock, 3)}
        for notebook in summary["notebooks"]:
            page = _page(summary, notebook, runs[notebook["name"]], build)
            write_atomically(build / notebook["page"], page)
        write_atomically(build / "run.json", json.dumps(summary, indent=2, ensure_ascii=False))
    failed = [name for name, run in runs.items() if run.error is not None]
    return ReportOutcome(folder, write_index(out), failed, summary["seconds"])


def plan_report(
    model: str,
    *,
    profile: str = "quick",
    parameters: Mapping[str, str] | None = None,
    notebooks_dir: Path | None = None,
) -> tuple[list[Path], dict[str, dict[str, object]]]:
    """What `render_report` would run: finds every mistake of usage before anything is done.

    Returns:
        The notebooks in order, and the full parameters of each by its name.

    Raises:
        InputError, EsparseError: as `render_report` does.
    """
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    sources = _notebooks(notebooks_dir or NOTEBOOKS)
    declared = {source.stem: notebook_parameters(source) for source in sources}
    fixed: dict[str, object] = {"model": model, "out_dir": ""}
    return sources, assign(declared, parameters or {}, PROFILES[profile], fixed)


def report_slug(model: str) -> str:
    """The folder name of a model's report: the name itself where it is safe, else with a hash.

    >>> report_slug("smollm2-135m")
    'smollm2-135m'
    >>> report_slug("../Llama 3")
    'llama-3-0e5a4036'
    """
    # A folder is known by its place, so that two folders of one name get two reports.
    path = model_path(model)
    identity, shown = (str(path), path.name) if path else (model, model)
    slug = re.sub(r"[^a-z0-9._-]+", "-", shown.lower())[:60].strip("-._")
    if slug and slug == identity and slug not in RESERVED:
        return slug
    return f"{slug or 'model'}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def model_path(model: str) -> Path | None:
    """The absolute path of a model that is a file or folder; None for a name that is neither."""
    try:
        return Path(model).resolve() if model and Path(model).exists() else None
    except (OSError, ValueError):  # too long, or a null byte: no path, whatever else it is
        return None


def _notebooks(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.glob("*.ipynb") if re.match(r"\d\d_", path.name))
    if not found:
        raise EsparseError(
            f"No notebooks named NN_*.ipynb in {folder}. Reports need a checkout of esparse_lab, "
            "installed with `pip install --editable .`; or name the folder of the notebooks."
        )
    return found


def _name_the_report(executed: Path, build: Path, shown: str) -> None:
    """Replace the hidden folder's path in a notebook's cells, outputs and metadata."""

    def replaced(value):
        if isinstance(value, str):
            return value.replace(str(build), shown)
        if isinstance(value, list):
            return [replaced(item) for item in value]
        if isinstance(value, dict):
            return {key: replaced(item) for key, item in value.items()}
        return value

    notebook = json.loads(executed.read_text())
    notebook["metadata"].pop("widgets", None)
    for output in (o for cell in notebook["cells"] for o in cell.get("outputs", [])):
        if PLOTLY in output.get("data", {}):
            output["data"].pop(WIDGET, None)  # its kernel is gone; the figure is the same panel
    for path in ("input_path", "output_path"):
        notebook["metadata"].get("papermill", {}).pop(path, None)
    executed.write_text(json.dumps(replaced(notebook), indent=1, ensure_ascii=False) + "\n")


def _summary(
    build: Path,
    model: str,
    profile: str,
    values: Mapping[str, Mapping[str, object]],
    runs: Mapping[str, NotebookRun],
) -> dict:
    """The content of run.json, but for the times: what ran, on what, and what came out."""
    read = {path.stem: _record(path) for path in sorted((build / "records").glob("*.json"))}
    records = {name: record for name, record in read.items() if record is not None}
    headline: dict[str, object] = {}
    for name, record in records.items():
        for label, value in record["headline"].items():
            taken = label in headline and headline[label] != value
            headline[f"{label} ({name})" if taken else label] = value
    peaks = [record["peak_memory_mib"] for record in records.values()]
    tables = {path.stem for path in (build / "tables").glob("*.csv")}
    return {
        "format": 1,
        "model": model,
        "profile": profile,
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
        "data": {
            name: {"corpora": record["corpora"], "tokens": record["tokens"]}
            for name, record in records.items()
        },
        "notebooks": [
            {
                "name": name,
                "title": _title(build / f"{name}.ipynb"),
                "status": "done" if run.error is None else "failed",
                "error": run.error,
                "seconds": run.seconds,
                "parameters": dict(values[name]),
                "page": f"{name}.html",
                "executed": f"{name}.ipynb",
            }
            for name, run in runs.items()
        ],
        "tables": sorted(tables),
    }


def _record(path: Path) -> dict | None:
    """A notebook's run record; None when it is not one."""
    try:
        record = json.loads(path.read_text())
        return record if {"headline", "peak_memory_mib", "versions"} <= record.keys() else None
    except (ValueError, AttributeError):
        return None


def _common(values: Iterable[object]) -> object:
    """The one value that all notebooks share; a list when they differ; None when none has it."""
    distinct: list[object] = []
    for value in values:
        if value is not None and value not in distinct:
            distinct.append(value)
    return distinct[0] if len(distinct) == 1 else distinct or None


def _title(executed: Path) -> str:
    return notebook_title(nbformat.read(executed, as_version=4), executed.stem)


def _page(summary: Mapping, notebook: Mapping, run: NotebookRun, build: Path) -> str:
    """One notebook's page, with what the reader must know to trust it at its top."""
    name = notebook["name"]
    data = summary["data"].get(name, {"corpora": {}, "tokens": {}})
    facts = [("model", summary["model"])]
    if isinstance(summary["revision"], str):
        kind, colon, digest = summary["revision"].rpartition(":")
        facts.append(("revision", f"{kind}{colon}{digest[:12]}"))
    facts += [
        (f"{use} tokens", " × ".join(str(size) for size in tokens["shape"]))
        for use, tokens in data["tokens"].items()
    ]
    facts += [
        ("profile", summary["profile"]),
        ("seed", notebook["parameters"].get("seed", "none")),
        ("device", summary["device"] or "unknown: no run record"),
        ("started (UTC)", summary["started"].replace("T", " ").partition("+")[0]),
        ("time", duration(notebook["seconds"])),
    ]
    nav = [
        {"label": each["name"], "href": each["page"], "here": each["name"] == name}
        for each in summary["notebooks"]
    ]
    return notebook_page(
        build / notebook["executed"],
        {
            "model": summary["model"],
            "nav": nav,
            "facts": facts,
            "parameters": [
                (parameter, repr(value) if isinstance(value, list) else value)
                for parameter, value in notebook["parameters"].items()
            ],
            "error": run.error,
            "error_cell": run.cell,
            "details": run.traceback,
        },
    )
