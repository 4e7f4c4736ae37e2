"""Which points lie inside the boxes and lassos that a user drew on a figure."""

import re
from collections.abc import Iterable, Mapping

import numpy as np
import plotly.graph_objects as go


def points_inside(figure: go.Figure, selections: Iterable[Mapping], n_traces: int) -> list[int]:
    """What the points inside stand for: their `customdata`, whole numbers, sorted, each once.

    Args:
        figure: with the points in its first `n_traces` traces.
        selections: as in plotly's `layout.selections`: boxes and lassos, in data coordinates.
        n_traces: how many traces count.
    """
    found: set[int] = set()
    for drawn in selections:
        corners = _corners(drawn)
        for trace in figure.data[:n_traces]:
            if (trace.xaxis, trace.yaxis) == (drawn["xref"], drawn["yref"]):
                x = _on_screen(figure, trace.xaxis, trace.x)
                y = _on_screen(figure, trace.yaxis, trace.y)
                around_x = _on_screen(figure, trace.xaxis, corners[:, 0])
                around_y = _on_screen(figure, trace.yaxis, corners[:, 1])
                inside = _inside(x, y, around_x, around_y)
                found.update(np.asarray(trace.customdata)[inside].astype(int).tolist())
    return sorted(found)


def _corners(drawn: Mapping) -> np.ndarray:
    """The corners of a box or lasso, [corner, 2]."""
    if drawn["type"] == "path":
        pairs = re.findall(r"([^MLZ,]+),([^MLZ,]+)", drawn["path"])
        return np.array(pairs, dtype=float)
    x0, x1, y0, y1 = (drawn[place] for place in ("x0", "x1", "y0", "y1"))
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=float)


def _on_screen(figure: go.Figure, axis: str, values: object) -> np.ndarray:
    """Values as they are spaced along an axis; those that a log axis cannot show are NaN."""
    values = np.asarray(values, dtype=float)
    if figure.layout[f"{axis[0]}axis{axis[1:]}"].type != "log":
        return values
    return np.log10(values, out=np.full_like(values, np.nan), where=values > 0)


def _inside(x: np.ndarray, y: np.ndarray, cx: np.ndarray, cy: np.ndarray) -> np.ndarray:
    """Whether points are inside a polygon: the edges to their right are odd in number."""
    odd = np.zeros(len(x), dtype=bool)
    for ax, ay, bx, by in zip(cx, cy, np.roll(cx, 1), np.roll(cy, 1), strict=True):
        spans = (ay > y) != (by > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            odd ^= spans & (x < ax + (y - ay) * (bx - ax) / (by - ay))
    return odd
