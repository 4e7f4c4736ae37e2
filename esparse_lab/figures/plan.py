"""A map of one block: which channel orders are free, which cost a gather, which cannot be had."""

import re

import pandas as pd
import plotly.graph_objects as go

from esparse_lab.errors import InputError
from esparse_lab.figures.style import (
    DASHES,
    GUIDE,
    INK,
    OKABE_ITO,
    checked,
    finish,
    in_order,
    plain,
)

# Colour and line say the same, for grey print.
_LOOKS = {
    "free": (OKABE_ITO[2], DASHES[0], "free: rows take the order"),
    "gather": (OKABE_ITO[4], DASHES[1], "gather after the norm"),
    "impossible": (OKABE_ITO[1], DASHES[2], "impossible"),
}
_COLUMNS = (0.0, 1.0, 2.0)  # norm, matrices that read it, matrix that reads what they make
_HALF = 0.38
_NEEDED = ("block", "group", "layers", "how", "constraint", "where", "shares_order_with", "why")


def plan_map(
    frame: pd.DataFrame, *, block: int = 0, title: str = "", caption: str = ""
) -> go.Figure:
    """One block's matrices and the activations between them, an arrow an activation.

    Arrows end at the layers whose order is meant and begin at what must hand it over: a norm, or
    the matrices whose rows take it. Experts of one shape are drawn once.

    Args:
        frame: a `plan_table`; the legend counts its groups.
        block: number of the block to draw.
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: columns or rows missing, or no such block.
    """
    checked(frame, _NEEDED, "plan_map")
    rows = _drawn(frame[frame["block"] == block])
    if not rows:
        raise InputError(f"The plan has no block {block}: {frame['block'].max()} is the last.")
    figure = go.Figure()
    for how in in_order(frame["how"]):
        color, dash, text = _LOOKS[how]
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="lines",
            line={"color": color, "dash": dash, "width": 3},
            name=f"{text} ({int((frame['how'] == how).sum())} of {len(frame)})",
            showlegend=True,
        )
    top, boxes = 0.0, {}
    for row in (row for row in rows if row["how"] != "free"):
        readers = row["layers"].split(", ")
        ends = [other for other in rows if set(other["where"].split(", ")) & set(readers)]
        middle = top - (len(readers) - 1) / 2
        for i, name in enumerate(readers):
            boxes[name] = _box(figure, 1, top - i, name, matrix=True)
        start = _box(figure, 0, middle, row["where"] or "residual stream", matrix=False)
        for name in readers:
            _arrow(figure, start, boxes[name], row)
        for end in ends:
            at = _box(figure, 2, middle, end["layers"], matrix=True)
            for name in end["where"].split(", "):
                _arrow(figure, boxes[name], at, end)
            _note(figure, 2, middle - 0.42, end["constraint"])
        note = row["constraint"] if row["constraint"] != "none" else "keeps its order"
        if row["shares_order_with"]:
            note += ", one for all that read it"
        _note(figure, 0, middle - 0.42, note)
        top -= max(len(readers), 1) + 0.55
    figure.update_xaxes(range=[-0.45, 2.45], visible=False, fixedrange=True)
    figure.update_yaxes(range=[top + 0.8, 0.6], visible=False, fixedrange=True)
    return finish(figure, title=title, caption=caption, plot_height=int(74 * -top) + 10)


def _drawn(frame: pd.DataFrame) -> list[dict]:
    """Rows of the block, experts that look alike once."""
    rows: dict[tuple, dict] = {}
    for row in frame.to_dict("records"):
        for field in ("layers", "where"):
            row[field] = re.sub(r"experts\.\d+\.", "each expert's ", row[field])
        rows.setdefault((row["layers"], row["how"], row["where"]), row)
    return list(rows.values())


def _box(
    figure: go.Figure, column: int, y: float, name: str, *, matrix: bool
) -> tuple[float, float]:
    x = _COLUMNS[column]
    figure.add_shape(
        type="rect",
        x0=x - _HALF,
        x1=x + _HALF,
        y0=y - 0.3,
        y1=y + 0.3,
        line={"color": INK, "width": 1.2},
        fillcolor="#F2F2F2" if matrix else "white",
        layer="below",
    )
    text = plain(name.removeprefix("self_attn.").removeprefix("mlp."), 40)
    if len(text) > 14:  # a narrow page: break where it hurts least
        cut = max(text.rfind(" ", 0, 18), text.rfind(".", 0, 18))
        cut = cut if cut > 0 else text.rfind("_", 0, 16)
        text = f"{text[: cut + 1]}<br>{text[cut + 1 :]}" if cut > 0 else text
    figure.add_annotation(x=x, y=y, text=text, showarrow=False, font={"size": 11, "color": INK})
    return x, y


def _arrow(
    figure: go.Figure, start: tuple[float, float], end: tuple[float, float], row: dict
) -> None:
    color, dash, _ = _LOOKS[row["how"]]
    figure.add_scatter(
        x=[start[0] + _HALF, end[0] - _HALF - 0.02],
        y=[start[1], end[1]],
        mode="lines+markers",
        line={"color": color, "dash": dash, "width": 3},
        marker={"color": color, "size": [0, 12], "symbol": "triangle-right", "opacity": 1},
        hovertemplate=f"{plain(row['layers'], 90)}<br>{row['how']}: {plain(row['why'], 140)}"
        "<extra></extra>",
        showlegend=False,
    )


def _note(figure: go.Figure, column: int, y: float, text: str) -> None:
    words = plain(text, 80).replace(", ", ",<br>")
    figure.add_annotation(
        x=_COLUMNS[column],
        y=y,
        text=words,
        showarrow=False,
        yanchor="top",
        font={"size": 11, "color": GUIDE},
    )
