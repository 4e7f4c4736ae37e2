"""What every figure shares: template, palette, axis labels, safe text, checks, title and caption.

A figure function checks its frame with `checked`, builds panels, and ends with `finish`. Colours
are the Okabe-Ito palette (Okabe & Ito 2008, "Color Universal Design"), pictures use cividis (Nuñez,
Anderton & Renslow 2018); both stay apart for the common kinds of colour blindness. The page is
explicitly white with dark text, so that a figure reads the same in a light and in a dark notebook.
"""

import html
import math
import textwrap
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio

from esparse_lab.errors import InputError

OKABE_ITO = (
    "#0072B2",  # blue
    "#D55E00",  # vermillion
    "#009E73",  # bluish green
    "#CC79A7",  # reddish purple
    "#E69F00",  # orange
    "#56B4E9",  # sky blue
    "#000000",  # black
    "#F0E442",  # yellow: last, weak on white
)
# Shapes repeat what the colour says, for grey print.
SYMBOLS = (
    "circle",
    "square",
    "triangle-up",
    "triangle-left",
    "diamond",
    "pentagon",
    "triangle-down",
    "hexagram",
)
DASHES = ("solid", "dash", "dot")
SEQUENTIAL = "Cividis"
INK, GUIDE, GRID = "#1A1A1A", "#6B6B6B", "#E3E3E3"  # text; reference lines; grid

# A browser draws this many SVG marks without delay; figures thin what is beyond, and say so.
MAX_POINTS = 20_000

LABELS: dict[str, str] = {
    "activation": "activation (model units)",
    "average_accuracy": "average accuracy (%)",
    "bins": "number of bins K (count)",
    "block": "block (index)",
    "channel": "input channel (index)",
    "channels": "channels (count)",
    "count": "tokens (count)",
    "dense_share": "share of the dense model (%)",
    "device_ms": "device time (ms)",
    "difference": "difference to the baseline (percentage points)",
    "entropy_nats": "entropy (nats)",
    "gb": "weights (GB of 1e9 bytes)",
    "intensity": "arithmetic intensity (operations a byte, log scale)",
    "norm": "input norm (model units)",
    "norm_rank": "rank by norm alone (1 = largest)",
    "output_error": "output error (% of the output's energy)",
    "perplexity": "perplexity (per token, log scale)",
    "perplexity_ratio": "perplexity over the baseline's (ratio, log scale)",
    "prune_seconds": "pruning the model (seconds, log scale)",
    "peak_memory_gib": "peak GPU memory (GiB)",
    "rank_correlation": "rank correlation (−1 to 1)",
    "rank_gain": "ranks gained (positions)",
    "recovered_share": "recovered score (%)",
    "retained_share": "retained score (% of total)",
    "row": "output channel (index)",
    "search_seconds": "time of the search (s, log scale)",
    "score": "score (model units)",
    "slot": "position in the matrix (index)",
    "sorted_by_norm": "position after sorting by norm (1 = largest)",
    "speedup": "dense time over sparse time (times as fast)",
    "swaps": "swaps made (count)",
    "tflops": "reached (TFLOP/s, log scale)",
    "tokens": "tokens (count)",
}

# Pixels. The figure grows downwards with its title, legend and caption; the plot keeps its height.
_EDGE = 14
_TITLE_LINE, _LEGEND_LINE, _PANEL_TITLE, _CAPTION_LINE = 24, 24, 24, 17
_X_AXIS = 58
_NARROW = 800  # of plot area on a page 900 pixels wide

_axis = {
    "showgrid": True,
    "gridcolor": GRID,
    "zeroline": False,
    "showline": True,
    "linecolor": INK,
    "ticks": "outside",
    "tickcolor": INK,
    "ticklen": 4,
    "tickfont": {"size": 12},
    "title": {"font": {"size": 13}, "standoff": 6},
    "automargin": True,
    "separatethousands": True,
}
pio.templates["esparse"] = go.layout.Template(
    layout={
        "font": {"family": "Arial, Helvetica, 'DejaVu Sans', sans-serif", "size": 13, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": OKABE_ITO,
        "colorscale": {"sequential": SEQUENTIAL, "sequentialminus": SEQUENTIAL},
        "xaxis": _axis,
        "yaxis": _axis,
        "hoverlabel": {"bgcolor": "white", "font": {"size": 13, "color": INK}, "align": "left"},
        "hovermode": "closest",
        "legend": {"orientation": "h", "font": {"size": 13}},
    }
)


def plain(text: object, limit: int = 60) -> str:
    """Text that plotly shows as it is: no tags, entities or LaTeX; its middle cut beyond `limit`.

    Plotly reads `<b>`, `&amp;` and `$...$` inside every label, and names come from users.

    >>> plain("<a href='x'>down & up</a>")
    "&lt;a href='x'&gt;down &amp; up&lt;/a&gt;"
    """
    text = " ".join(str(text).split())
    if len(text) > limit:
        text = f"{text[: limit // 2 - 1]} … {text[-(limit // 2 - 2) :]}"
    return html.escape(text, quote=False).replace("$", "&#36;")


def checked(frame: pd.DataFrame, columns: Iterable[str], figure: str) -> pd.DataFrame:
    """The frame itself, if it has rows and every column that the figure draws.

    Raises:
        InputError: not a DataFrame, columns missing (named), or no rows.
    """
    columns = tuple(columns)
    if not isinstance(frame, pd.DataFrame):
        raise InputError(
            f"{figure} needs a pandas DataFrame with the columns {', '.join(columns)}; "
            f"got {type(frame).__name__}."
        )
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        raise InputError(
            f"{figure} misses the column{'s' * (len(missing) > 1)} {', '.join(missing)}. "
            f"It needs {', '.join(columns)}; the frame has "
            f"{', '.join(map(str, frame.columns)) or 'no columns'}."
        )
    if frame.empty:
        raise InputError(
            f"{figure} got a frame without rows; there is nothing to draw. "
            "Check the filter or the measurement that made it."
        )
    return frame


def in_order(values: Iterable[object]) -> list:
    """The distinct values, in order of first appearance."""
    return list(dict.fromkeys(values))


def looks(names: Iterable[str], fixed: Mapping[str, int] | None = None) -> dict[str, int]:
    """A place in the palette for each name: its fixed one, else the first that is free."""
    names, fixed = in_order(names), fixed or {}
    free = [i for i in range(len(OKABE_ITO)) if i not in fixed.values()]
    free += [i for i in range(len(OKABE_ITO)) if i in fixed.values() and i not in free]
    rest = iter(free * (1 + len(names) // len(OKABE_ITO)))
    return {name: fixed[name] if name in fixed else next(rest) for name in names}


def thinned(frame: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most `most` rows, evenly spaced in the given order, the first and the last among them."""
    if len(frame) <= most:
        return frame
    return frame.iloc[np.linspace(0, len(frame) - 1, max(most, 2)).round().astype(int)]


def thinning_note(drawn: int, given: int, what: str = "channels") -> str:
    """The sentence for the caption; empty when everything is drawn."""
    return "" if drawn >= given else f"Drawn: {drawn:,} of {given:,} {what}, evenly spaced."


def panel_title(figure: go.Figure, text: str, *, row: int = 1, col: int = 1) -> None:
    """Write a panel's title at its upper left corner. `text` must already be plain."""
    panel = figure.get_subplot(row, col)
    figure.add_annotation(
        text=text,
        x=0,
        xref=f"{panel.xaxis.plotly_name.replace('axis', '')} domain",
        y=1,
        yref=f"{panel.yaxis.plotly_name.replace('axis', '')} domain",
        xanchor="left",
        yanchor="bottom",
        showarrow=False,
        align="left",
        font={"size": 13},
    )


def log_axis(values: Iterable[float], *, headroom: float = 0.0) -> dict[str, object]:
    """Axis settings for a log scale over positive values, ticks at 1-2-5 or at powers of ten.

    Plotly's own log ticks print lone digits ("2", "5") between decades, which read as values.

    Args:
        values: what is drawn; zero, negative and non-finite values are left out.
        headroom: share of the drawn width to add at the upper end, for text beside the marks.
    """
    drawn = np.asarray([v for v in values if np.isfinite(v) and v > 0], dtype=float)
    if drawn.size == 0:
        return {"type": "log"}
    low, high = math.log10(drawn.min()), math.log10(drawn.max())
    pad = max(0.04 * (high - low), 0.02)
    low, high = low - pad, high + pad
    high += headroom * (high - low)
    decades = range(math.floor(low), math.ceil(high) + 1)
    steps = (1,) if high - low > 3.2 else (1, 2, 5) if high - low > 0.8 else (1, 1.5, 2, 3, 4, 5, 7)
    ticks = [s * 10.0**d for d in decades for s in steps]
    within = [t for t in ticks if low <= math.log10(t) <= high]
    if len(within) < 2:  # a narrow range: name its ends, and a round value well between them
        ends = {float(f"{drawn.min():.3g}"), float(f"{drawn.max():.3g}")}
        apart = 0.15 * (high - low)
        between = {t for t in within if all(abs(math.log10(t / end)) > apart for end in ends)}
        ticks = sorted(ends | between)
    return {
        "type": "log",
        "range": [low, high],
        "tickvals": ticks,
        "ticktext": [f"{t:,.0f}" if t >= 1000 else f"{t:g}" for t in ticks],
    }


def finish(figure: go.Figure, **about) -> go.Figure:
    """Set what `surroundings` makes of `about`; the names in the legend are the figure's own."""
    named = (*figure.data, *figure.layout.shapes)
    names = [one.name for one in named if one.name and one.showlegend]
    layout, annotations = surroundings(names, **about)
    figure.update_layout(layout)
    for drop_down in figure.layout.updatemenus:
        drop_down.update(
            {key: layout["legend"][key] for key in ("x", "xanchor", "y", "yanchor")},
            bgcolor="white",
            bordercolor=GUIDE,
        )
    for annotation in annotations:
        figure.add_annotation(annotation)
    return figure


def surroundings(
    names: list[str],
    *,
    title: str,
    caption: str,
    plot_height: int,
    notes: Iterable[str] = (),
    panel_titles: bool = False,
    menu: bool = False,
    right: int = 24,
    below: int = 0,
) -> tuple[dict, list[dict]]:
    """Layout and annotations: template, title, legend or menu row, caption, height.

    Widths follow the page.

    Args:
        names: in the legend.
        title: the finding, one sentence; wrapped.
        caption: the line under the figure; wrapped. Both are shown as plain text.
        plot_height: pixels of the plot area.
        notes: sentences of the figure itself (thinning, what is not drawn), after the caption.
        panel_titles: keep room for titles above the topmost panels.
        menu: keep room for a drop-down above the plot.
        right: right margin in pixels.
        below: pixels to keep between the lowest axis and the caption.
    """
    heading = textwrap.wrap(" ".join(str(title).split()), 88)
    lines = textwrap.wrap(" ".join([str(caption), *notes]), 122)

    title_height = _TITLE_LINE * len(heading)
    caption_height = (_CAPTION_LINE * len(lines) + 10) if lines else 0
    top = _EDGE + title_height
    lowest = _PANEL_TITLE * panel_titles  # pixels between the plot and the legend
    rows = 0
    if names:
        widths = [6.4 * len(html.unescape(n)) + 46 for n in names]
        # Plotly makes columns of the widest entry as soon as one row is too short.
        rows = (
            1
            if sum(widths) <= _NARROW
            else math.ceil(len(names) / max(int(_NARROW / max(widths)), 1))
        )
    top += lowest + _LEGEND_LINE * rows + 40 * menu + 8
    bottom = _X_AXIS + below + caption_height

    above = 1 + (lowest + 4) / plot_height
    layout = {
        "showlegend": bool(names),
        "template": "esparse",
        "height": plot_height + top + bottom,
        "margin": {"t": top, "b": bottom, "l": 66, "r": right},
        "title": {
            "text": "<br>".join(plain(line, 200) for line in heading),
            "font": {"size": 17},
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            # Plotly centres a wrapped title on its first line's place; this puts it back.
            "pad": {"t": _EDGE + _TITLE_LINE // 2 * max(len(heading) - 1, 0)},
        },
        "legend": {"x": 0, "xanchor": "left", "y": above, "yanchor": "bottom"},
        # A report writes both as text of its page, which fits any width, and takes their room away.
        "meta": {"title_height": title_height, "caption_height": caption_height},
    }
    if not lines:
        return layout, []
    note = {
        "name": "caption",
        "text": "<br>".join(plain(line, 200) for line in lines),
        "x": 0,
        "xref": "paper",
        "xanchor": "left",
        "y": 0,
        "yref": "paper",
        "yanchor": "top",
        "yshift": -_X_AXIS - below,
        "align": "left",
        "showarrow": False,
        "font": {"size": 12.5, "color": "#404040"},
    }
    return layout, [note]
