"""A model's report: every notebook run on it, as offline pages, tables and one run record."""

import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from esparse_lab.atomic import building_folder, write_atomically
from esparse_lab.errors import EsparseError, InputError, unknown
from esparse_lab.reports.execute import NotebookRun, run_notebook
from esparse_lab.reports.html import PLOTLY, WIDGET, notebook_page
from esparse_lab.reports.index import RESERVED, write_index
from esparse_lab.reports.model_page import facts_of, model_page
from esparse_lab.reports.parameters import assign, notebook_parameters
from esparse_lab.reports.profiles import PROFILES
from esparse_lab.reports.summary import run_summary

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
    name: str | None = None,
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
        name: of this run, to keep it beside other runs of the model: lower-case letters, digits
            and `.`, `_`, `-`.

    Returns:
        Where the report is and which notebooks failed.

    Raises:
        InputError: an unknown profile or parameter, an ill-typed value, a name with other
            characters, or something else than a report in its place.
        EsparseError: no notebooks, a notebook whose parameters cannot be read, or a folder that
            cannot be written.
    """
    sources, values = plan_report(
        model, profile=profile, parameters=parameters, notebooks_dir=notebooks_dir
    )
    out = Path(out)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    clock = time.perf_counter()
    folder = out / report_slug(model, name)
    foreign = folder.exists() and not (folder / "run.json").is_file()
    if foreign and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(
            f"{folder} is no report (it has no run.json), so it is not replaced. Move it away, or "
            "choose another --out."
        )
    with building_folder(folder) as build:
        runs: dict[str, NotebookRun] = {}
        for number, source in enumerate(sources, start=1):
            stem = source.stem
            executed = build / source.name
            values[stem]["out_dir"] = str(build)
            label = f"[{number}/{len(sources)}] {stem}"
            runs[stem] = run_notebook(source, executed, values[stem], label=label)
            # The place of building is gone afterwards; what is kept names the report instead.
            values[stem]["out_dir"] = f"{out.name}/{folder.name}"
            _name_the_report(executed, build, values[stem]["out_dir"])
        facts = {"model": model, "name": name, "profile": profile, "given": dict(parameters or {})}
        run = run_summary(build, facts, values, runs)
        run |= {"started": started, "seconds": round(time.perf_counter() - clock, 3)}
        for notebook in run["notebooks"]:
            page = _page(run, notebook, runs[notebook["name"]], build)
            write_atomically(build / notebook["page"], page)
        write_atomically(build / run["page"], model_page(run))
        write_atomically(build / "run.json", json.dumps(run, indent=2, ensure_ascii=False))
    failed = [stem for stem, each in runs.items() if each.error is not None]
    return ReportOutcome(folder, write_index(out), failed, run["seconds"])


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


def report_slug(model: str, name: str | None = None) -> str:
    """The folder name of a model's report: the model's where it is safe, else with a hash.

    Args:
        model: a name or path.
        name: of the run; it follows an "@", which no model's folder name has.

    Raises:
        InputError: the run's name has characters that a folder name should not have.

    >>> report_slug("smollm2-135m"), report_slug("smollm2-135m", "alpha-1")
    ('smollm2-135m', 'smollm2-135m@alpha-1')
    >>> report_slug("../Llama 3")
    'llama-3-0e5a4036'
    """
    if name is not None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,40}", name):
            raise InputError(
                f"The run's name {name!r} is not usable as a folder name; use up to 41 lower-case "
                "letters, digits and '.', '_' or '-', as in 'alpha-1'."
            )
        return f"{report_slug(model)}@{name}"
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


def _page(run: Mapping, notebook: Mapping, ended: NotebookRun, build: Path) -> str:
    """One notebook's page, with what the reader must know to trust it at its top."""
    name = notebook["name"]
    return notebook_page(
        build / notebook["executed"],
        {
            "name": name,
            "title": notebook["title"],
            "model": run["model"],
            "nav": run["notebooks"],
            "facts": facts_of(run, notebook),
            "parameters": [
                (parameter, repr(value) if isinstance(value, list) else value)
                for parameter, value in notebook["parameters"].items()
            ],
            "error": ended.error,
            "error_cell": ended.cell,
            "details": ended.traceback,
        },
    )
