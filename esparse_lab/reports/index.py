"""`reports/index.html`: every report and every recipe that they measured, side by side."""

import json
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from esparse_lab.atomic import write_atomically
from esparse_lab.reports.rendering import environment

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
    recipes = [(row, recipe) for row in reports for recipe in row.get("recipes", [])]
    index = out / "index.html"
    template = environment().get_template("index.html")
    write_atomically(index, template.render(reports=reports, columns=columns, recipes=recipes))
    return index


def _row(path: Path) -> dict[str, object]:
    """What the template shows of one report; `unreadable` holds the reason or None."""
    folder = path.parent.name
    try:
        run = json.loads(path.read_text())
        notebooks = [
            {
                "href": quote(f"{folder}/{each['page']}"),
                "name": str(each["name"]),
                "title": str(each["title"]),
                "error": each["error"] and str(each["error"]),
                "error_href": quote(f"{folder}/{each['page']}") + f"#{each.get('error_at')}",
            }
            for each in run["notebooks"]
        ]
        started = datetime.fromisoformat(run["started"])
        return {
            "unreadable": None,
            "model": str(run["model"]),
            "name": run.get("name") and str(run["name"]),
            "href": quote(f"{folder}/{run['page']}") if "page" in run else notebooks[0]["href"],
            "profile": str(run["profile"]),
            "given": {str(name): str(text) for name, text in run.get("given", {}).items()},
            "started": started.isoformat(),
            "date": f"{started:%Y-%m-%d %H:%M}",
            "seconds": float(run["seconds"]),
            "headline": {str(label): value for label, value in run["headline"].items()},
            "recipes": [
                recipe | {"href": quote(f"{folder}/{recipe['notebook']}.html")}
                for recipe in run.get("recipes", [])
            ],
            "notebooks": notebooks,
            "failed": [each for each in notebooks if each["error"]],
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        return {"unreadable": reason, "folder": folder, "record": quote(f"{folder}/run.json")}
