"""An executed notebook as one HTML file that needs nothing else: no server, no network.

plotly figures are kept as data in the notebook and drawn by plotly.js, which is put into the file
once. A content security policy in the page forbids every outside request, whatever a cell's own
HTML asks for.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import nbformat
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
PAPERMILL_BANNER = "papermill-error-cell-tag"


def notebook_page(executed: Path, context: Mapping[str, object]) -> str:
    """The page of an executed notebook.

    Code is folded away, but for cells tagged `show-code` and the one that failed.

    Args:
        executed: the notebook with its outputs.
        context: what `templates/notebook.html` shows around the cells: `model`, `nav`, `facts`,
            `parameters`, `error` and `error_cell` (index of the failed cell), `details`.

    Returns:
        HTML text of a whole page.
    """
    notebook = nbformat.read(executed, as_version=4)
    figures: list[str] = []
    cells = []
    # The index counts the cells before papermill added its own banners, so they go first.
    for index, cell in enumerate(without_banners(notebook.cells)):
        failed = context["error_cell"] == index
        if cell.cell_type == "markdown":
            cells.append({"kind": "text", "html": _markdown(cell), "failed": failed})
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
            title=notebook_title(notebook, executed.name.partition(".")[0]),
            cells=cells,
            figures=[Markup(figure) for figure in figures],
            plotly_js=Markup(_plotly_js()) if figures else None,
            highlight_css=Markup(_highlight_css()),
        )
    )


def notebook_title(notebook, otherwise: str) -> str:
    """The first heading of the notebook's text, or `otherwise`."""
    for cell in without_banners(notebook.cells):
        heading = re.search(r"^#\s+(.+)$", cell.source, re.MULTILINE)
        if cell.cell_type == "markdown" and heading:
            return re.sub(r"[*`]", "", heading[1]).strip()
    return otherwise


def without_banners(cells: list) -> list:
    """The cells without those in which papermill announces an error; the page has its own."""
    return [cell for cell in cells if PAPERMILL_BANNER not in cell.metadata.get("tags", [])]


@cache
def environment() -> Environment:
    """The templates, every value escaped unless it is marked as HTML."""
    return Environment(
        loader=PackageLoader("esparse_lab.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


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
        height = data[PLOTLY].get("layout", {}).get("height", 450)
        return {"kind": "figure", "index": len(figures) - 1, "height": height}
    if "text/html" in data:
        return {"kind": "html", "html": Markup(data["text/html"])}
    if "text/markdown" in data:
        return {"kind": "html", "html": _markdown_text(data["text/markdown"])}
    if "image/svg+xml" in data:
        return {"kind": "html", "html": Markup(data["image/svg+xml"])}
    for mime in ("image/png", "image/jpeg"):
        if mime in data:
            return {"kind": "image", "mime": mime, "base64": data[mime].replace("\n", "")}
    if WIDGET in data:
        return {"kind": "widget"}
    return {"kind": "stdout", "html": _ansi(data.get("text/plain", ""))}


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


def _markdown(cell) -> Markup:
    return _markdown_text(cell.source, cell.get("attachments", {}))


def _markdown_text(text: str, attachments: dict | None = None) -> Markup:
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    renderer = IPythonRenderer(
        escape=False, attachments=attachments or {}, exclude_anchor_links=True
    )
    return Markup(MarkdownWithMath(renderer=renderer).render(text))


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
