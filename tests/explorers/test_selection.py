"""Points inside boxes and lassos, against hand-drawn ones."""

import numpy as np
import plotly.graph_objects as go
import pytest

from esparse_lab.explorers.selection import points_inside


def grid(log=False):
    """Points 10 * column + row at (column, row); two panels, the second one without points."""
    x, y = np.meshgrid(np.arange(1, 6), np.arange(1, 6))
    ids = (10 * x + y).ravel()
    figure = go.Figure(
        [
            go.Scatter(x=x.ravel(), y=y.ravel(), customdata=ids, xaxis="x", yaxis="y"),
            go.Scatter(x=[1], y=[1], customdata=[99], xaxis="x2", yaxis="y2"),
        ]
    )
    figure.update_layout(xaxis2={}, yaxis2={})
    return figure.update_xaxes(type="log") if log else figure


def box(x0, y0, x1, y1, **refs):
    return {"type": "rect", "x0": x0, "y0": y0, "x1": x1, "y1": y1, "xref": "x", "yref": "y"} | refs


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("corners", [(1.5, 2.5, 3.5, 4.5), (3.5, 4.5, 1.5, 2.5)])
def test_a_box_holds_what_lies_in_it(log, corners):
    assert points_inside(grid(log), [box(*corners)], 2) == [23, 24, 33, 34]


def test_a_lasso_holds_what_lies_in_it():
    triangle = {"type": "path", "path": "M0.5,0.5L3.6,0.5L0.5,3.6Z", "xref": "x", "yref": "y"}
    assert points_inside(grid(), [triangle], 2) == [11, 12, 13, 21, 22, 31]


def test_a_slanted_edge_is_straight_on_a_log_axis():
    # From (1, 1) to (4, 3): on screen its middle is x = 2, in data it would be 2.5.
    triangle = {"type": "path", "path": "M1,1L4,3L0.1,3Z", "xref": "x", "yref": "y"}
    figure = go.Figure(go.Scatter(x=[1.99, 2.01], y=[2, 2], customdata=[1, 2]))
    figure.data[0].update(xaxis="x", yaxis="y")
    assert points_inside(figure.update_xaxes(type="log"), [triangle], 1) == [1]


def test_only_the_panel_drawn_on_counts_and_several_add_up():
    assert points_inside(grid(), [box(0, 0, 9, 9, xref="x2", yref="y2")], 2) == [99]
    assert points_inside(grid(), [box(0, 0, 1.5, 1.5), box(4.5, 4.5, 9, 9)], 2) == [11, 55]
    assert points_inside(grid(), [box(8, 8, 9, 9)], 2) == []
    assert points_inside(grid(), [], 2) == []
