"""A report's first page: headline figures, what to notice, and the way to everything else."""

from collections.abc import Mapping

from esparse_lab.reports.rendering import duration, environment, markdown


def model_page(run: Mapping) -> str:
    """HTML text of the page that sums up a report.

    Args:
        run: the content of its `run.json`.
    """
    notebooks = [
        each
        | {
            "question_html": markdown(each["question"], escape=True),
            "noticed_html": markdown(each["noticed"], escape=True),
        }
        for each in run["notebooks"]
    ]
    return (
        environment()
        .get_template("model.html")
        .render(run=run, notebooks=notebooks, facts=facts_of(run))
    )


def facts_of(run: Mapping, notebook: Mapping | None = None) -> list[tuple[str, object]]:
    """What a reader must know to trust the numbers: label and value, for the top of a page.

    Args:
        run: the content of `run.json`.
        notebook: one of its notebooks, for what holds on that page alone.
    """
    facts = [("model", run["model"])]
    if run["name"] is not None:
        facts.append(("run", run["name"]))
    if isinstance(run["revision"], str):
        kind, colon, digest = run["revision"].rpartition(":")
        facts.append(("revision", f"{kind}{colon}{digest[:12]}"))
    seed, seconds = run["seed"], run["seconds"]
    if notebook is not None:
        seed, seconds = notebook["parameters"].get("seed"), notebook["seconds"]
        facts += [
            (f"{use} tokens", " × ".join(str(size) for size in tokens["shape"]))
            for use, tokens in run["data"].get(notebook["name"], {"tokens": {}})["tokens"].items()
        ]
    return [
        *facts,
        ("profile", run["profile"]),
        ("seed", "none" if seed is None else seed),
        ("device", run["device"] or "unknown: no run record"),
        ("started (UTC)", run["started"].replace("T", " ").partition("+")[0]),
        ("time", duration(seconds)),
    ]
