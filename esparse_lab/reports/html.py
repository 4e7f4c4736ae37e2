"""An executed notebook as one HTML file that needs nothing else: no server, no network.

plotly figures are kept as data in the notebook and drawn by plotly.js, which is put into the file
once. A content security policy in the page forbids every outside request, whatever a cell's own
HTML asks for.
"""

import html
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import nbformat
from markupsafe import Markup

from esparse_lab.reports.rendering import anchored, environment, markdown

PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
PAPERMILL_BANNER = "papermill-error-cell-tag"
NOTICED = "What the numbers say"
"""The heading over a notebook's computed sentences, which the report repeats at its top."""


def outline(executed: Path) -> dict[str, object]:
    """What a report says of an executed notebook beside its page.

    Returns:
        `title` (the first heading, else the file's name), `question` and `noticed` (markdown; ""
        where the notebook has none) and `sections` (`id` and `title` of each on its page).
    """
    cells = without_banners(nbformat.read(executed, as_version=4).cells)
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    title = next(iter(_found(r"^#\s+(.+)$", texts)), executed.name.partition(".")[0])
    sections: list[dict] = []
    noticed: list[str] = []
    taken: set[str] = set()
    for cell in cells:
        if cell.cell_type == "markdown":
            sections += anchored(_text(cell), taken)[1]
        elif sections and sections[-1]["title"] == NOTICED:
            data = [output.get("data", {}) for output in cell.get("outputs", [])]
            noticed += [each["text/markdown"] for each in data if "text/markdown" in each]
    return {
        "title": re.sub(r"[*`]", "", title).strip(),
        "question": next(iter(_found(r"\*\*Question\.\*\* (.+)", texts)), ""),
        "noticed": "\n\n".join(noticed),
        "sections": sections,
    }


def notebook_page(executed: Path, context: Mapping[str, object]) -> str:
    """The page of an executed notebook.

    Code is folded away, but for cells tagged `show-code` and the one that failed.

    Args:
        executed: the notebook with its outputs.
        context: what `templates/notebook.html` shows around the cells: `name`, `title`, `model`,
            `nav`, `facts`, `parameters`, `error` and `error_cell` (index of the failed cell),
            `details`.

    Returns:
        HTML text of a whole page.
    """
    notebook = nbformat.read(executed, as_version=4)
    figures: list[str] = []
    cells = []
    sections: list[dict] = []
    taken: set[str] = set()
    # The index counts the cells before papermill added its own banners, so they go first.
    for index, cell in enumerate(without_banners(notebook.cells)):
        failed = context["error_cell"] == index
        if cell.cell_type == "markdown":
            text, found = anchored(_text(cell), taken)
            sections += found
            cells.append({"kind": "text", "html": text, "failed": failed})
        elif cell.cell_type == "code" and cell.source.strip():
            cells.append(
                {
                    "kind": "code",
                    "source": _highlighted(cell.source),
                    "open": failed or "show-code" in cell.metadata.get("tags", []),
                    "count": cell.execution_count,
                    "failed": failed,
                    "outputs": [_output(out, figures) for out in _merged(cell.get("outputs", []))],
                }
            )
    return (
        environment()
        .get_template("notebook.html")
        .render(
            **context,
            cells=cells,
            sections=sections,
            figures=[Markup(figure) for figure in figures],
            plotly_js=Markup(_plotly_js()) if figures else None,
            highlight_css=Markup(_highlight_css()),
        )
    )


def without_banners(cells: list) -> list:
    """The cells without those in which papermill announces an error; the page has its own."""
    return [cell for cell in cells if PAPERMILL_BANNER not in cell.metadata.get("tags", [])]


def _found(expression: str, texts: list[str]) -> list[str]:
    return [hit for text in texts for hit in re.findall(expression, text, re.MULTILINE)]


def _text(cell) -> Markup:
    return markdown(cell.source, escape=False, attachments=cell.get("attachments", {}))


def _merged(outputs: list) -> list:
    """The outputs with neighbouring pieces of one stream joined."""
    merged: list = []
    for output in outputs:
        same = merged and output.output_type == merged[-1].output_type == "stream"
        if same and output.name == merged[-1].name:
            merged[-1] = nbformat.v4.new_output(
                "stream", name=output.name, text=merged[-1].text + output.text
            )
        else:
            merged.append(output)
    return merged


def _output(output, figures: list[str]) -> dict[str, object]:
    """One output as a template's dict; a figure's data is appended to `figures`."""
    if output.output_type == "stream":
        return {"kind": output.name, "html": _ansi(_settled(output.text))}
    if output.output_type == "error":
        return {"kind": "error", "html": _ansi("\n".join(output.traceback))}
    data = output.data
    if PLOTLY in data:
        figures.append(_figure_json(data[PLOTLY]))
        layout = data[PLOTLY].get("layout", {})
        return {"kind": "figure", "index": len(figures) - 1, **_words(layout)}
    if "text/html" in data:
        return {"kind": "html", "html": _breakable(data["text/html"])}
    if "text/markdown" in data:
        return {"kind": "text", "html": markdown(data["text/markdown"], escape=True)}
    if "image/svg+xml" in data:
        return {"kind": "html", "html": Markup(data["image/svg+xml"])}
    for mime in ("image/png", "image/jpeg"):
        if mime in data:
            return {"kind": "image", "mime": mime, "base64": data[mime].replace("\n", "")}
    if WIDGET in data:
        return {"kind": "widget"}
    return {"kind": "stdout", "html": _ansi(data.get("text/plain", ""))}


def _breakable(text: str) -> Markup:
    """HTML whose table headings may break after each "_", so that wide tables fit."""
    found = re.compile(r"(<th\b[^>]*>)([^<]+)")
    return Markup(found.sub(lambda th: th[1] + th[2].replace("_", "_<wbr>"), text))


def _words(layout: dict) -> dict[str, object]:
    """Title and caption, which the page shows as text, and the height of what remains.

    `figures.style.finish` says how much room they take; other figures keep what they have.
    """
    room = layout.get("meta") or {}
    height = layout.get("height", 450)
    if "caption_height" not in room:
        return {"title": "", "caption": "", "height": height}
    named = {each.get("name"): each for each in layout.get("annotations", [])}
    texts = (layout.get("title", {}), named.get("caption", {}))
    title, caption = (html.unescape(t.get("text", "").replace("<br>", " ")) for t in texts)
    height -= room["title_height"] + room["caption_height"]
    return {"title": title, "caption": caption, "height": height}


def _figure_json(figure: dict) -> str:
    """The figure as JSON that is safe inside a script element, free to take the page's width."""
    layout = {**figure.get("layout", {}), "autosize": True}
    layout.pop("width", None)
    kept = {"data": figure.get("data", []), "layout": layout, "frames": figure.get("frames", [])}
    # "<" occurs in JSON inside strings alone; escaped, no string can close the script element.
    return json.dumps(kept, separators=(",", ":")).replace("<", "\\u003c")


def _settled(text: str) -> str:
    """What a terminal shows in the end: of text rewritten after carriage returns, the last."""
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return "\n".join(lines).rstrip()


def _ansi(text: str) -> Markup:
    from nbconvert.filters import ansi2html

    return Markup(ansi2html(text))


def _highlighted(source: str) -> Markup:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    return Markup(highlight(source, PythonLexer(), HtmlFormatter()))


@cache
def _highlight_css() -> str:
    from pygments.formatters import HtmlFormatter

    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    return f"{light}\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}"


@cache
def _plotly_js() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()
