"""`reports/index.html`: every report found, with its headline numbers and its pages."""

import json
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from esparse_lab.atomic import write_atomically
from esparse_lab.reports.html import environment

RESERVED = {"reference"}
"""Folders beside the reports that are none."""


def write_index(out: Path) -> Path:
    """List every `out/*/run.json` in `out/index.html`, newest first.

    A damaged `run.json` becomes a row that says so.

    Returns:
        The index file.

    Raises:
        EsparseError: it cannot be written.
    """
    reports = []
    for path in sorted(out.glob("*/run.json")):
        if not path.parent.name.startswith(".") and path.parent.name not in RESERVED:
            reports.append(_row(path))
    reports.sort(key=lambda row: row.get("started", ""), reverse=True)
    # dict, not set: columns keep the order in which the reports name them.
    columns = list(dict.fromkeys(label for row in reports for label in row.get("headline", {})))
    index = out / "index.html"
    template = environment().get_template("index.html")
    write_atomically(index, template.render(reports=reports, columns=columns))
    return index


def duration(seconds: float) -> str:
    """Seconds as a reader says them.

    >>> duration(48.2), duration(187), duration(7260)
    ('48 s', '3 min 7 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def number(value: object) -> str:
    """A headline value in five significant digits; whole numbers with thousands separated.

    >>> number(22.0604), number(5660.4), number(559123), number("2:4")
    ('22.06', '5,660.4', '559,123', '2:4')
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.5g}"


def _row(path: Path) -> dict[str, object]:
    """What the template shows of one report; `unreadable` holds the reason or None."""
    folder = path.parent.name
    try:
        run = json.loads(path.read_text())
        notebooks = run["notebooks"]
        started = datetime.fromisoformat(run["started"])
        return {
            "unreadable": None,
            "folder": folder,
            "model": str(run["model"]),
            "profile": str(run["profile"]),
            "started": started.isoformat(),
            "date": f"{started:%Y-%m-%d %H:%M}",
            "device": str(run["device"] or "unknown"),
            "seconds": float(run["seconds"]),
            "duration": duration(run["seconds"]),
            "headline": {
                str(label): {"text": number(value), "value": value}
                for label, value in run["headline"].items()
            },
            "failed": [str(each["name"]) for each in notebooks if each["status"] != "done"],
            "href": quote(f"{folder}/{notebooks[0]['page']}"),
            "pages": [
                {
                    "href": quote(f"{folder}/{each['page']}"),
                    "title": str(each["title"]),
                    "name": str(each["name"]),
                    "error": each["error"] and str(each["error"]),
                }
                for each in notebooks
            ],
            "tables": [
                {
                    "name": str(name),
                    "csv": quote(f"{folder}/tables/{name}.csv"),
                    "parquet": quote(f"{folder}/tables/{name}.parquet"),
                }
                for name in run["tables"]
            ],
            "record": quote(f"{folder}/run.json"),
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        return {"unreadable": reason, "folder": folder, "record": quote(f"{folder}/run.json")}
