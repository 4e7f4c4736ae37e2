"""A matrix picture shows each cell once, in its colour, with its text, in its group."""

import numpy as np
import pytest

from esparse_lab.errors import InputError
from esparse_lab.figures import MatrixPanel, matrix_picture

LOOKS = np.array([[0, 1, 1, 0], [1, 0, 0, 2]])
CELLS = np.array([[1.0, -2.5, 3, 0], [4, 5, -6, 7]])


def drawn(figure, panel=0):
    """(row, column) -> (name, text) of every cell that a panel draws, and how often."""
    axes = list(dict.fromkeys(t.xaxis for t in figure.data))
    found = {}
    for trace in (t for t in figure.data if t.xaxis == axes[panel]):
        z = np.array(trace.z, dtype=float)
        for place in zip(*np.nonzero(~np.isnan(z)), strict=True):
            assert place not in found
            found[place] = (trace.name, None if trace.text is None else trace.text[place])
    return found


def test_every_cell_is_drawn_once_in_its_look_with_its_text():
    names = ("removed", "kept", "moved")
    found = drawn(matrix_picture([MatrixPanel("w", LOOKS, CELLS, m=2)], names=names))
    assert len(found) == 8
    for place, (name, text) in found.items():
        assert name == names[LOOKS[place]]
        assert float(text.replace("−", "-")) == CELLS[place]
    assert found[0, 1] == ("kept", "−2.5")


def test_looks_keep_their_colour_in_every_panel_and_the_legend_names_each_once():
    first, second = LOOKS.clip(max=1), LOOKS
    fig = matrix_picture([MatrixPanel("a", first), MatrixPanel("b", second)], names=("x", "y", "z"))
    colours = {}
    for trace in fig.data:
        colours.setdefault(trace.name, set()).add(trace.colorscale[0][1])
    assert {name: len(found) for name, found in colours.items()} == {"x": 1, "y": 1, "z": 1}
    assert len(set.union(*colours.values())) == 3
    assert [t.name for t in fig.data if t.showlegend] == ["x", "y", "z"]
    assert drawn(fig, 1)[1, 3] == ("z", None)


@pytest.mark.parametrize(("m", "edges"), [(2, [1.5]), (1, [0.5, 1.5, 2.5]), (3, [2.5]), (0, [])])
def test_lines_part_the_groups(m, edges):
    shapes = matrix_picture([MatrixPanel("w", LOOKS > 0, m=m)]).layout.shapes
    drawn_at = [float(part.split(",")[0][1:]) for s in shapes for part in s.path.split()]
    assert drawn_at == edges


def test_columns_may_be_named_and_row_0_is_on_top():
    fig = matrix_picture([MatrixPanel("w", LOOKS > 0, columns=[9, 8, 7, 6])])
    assert list(fig.layout.xaxis.ticktext) == ["9", "8", "7", "6"]
    assert list(fig.layout.xaxis.tickvals) == [0, 1, 2, 3]
    low, high = fig.layout.yaxis.range
    assert low > high


def test_panels_side_by_side_are_as_wide_as_their_columns_and_stacked_ones_as_tall_as_their_rows():
    wide, narrow = MatrixPanel("a", np.ones((2, 12))), MatrixPanel("b", np.ones((2, 4)))
    fig = matrix_picture([wide, narrow])
    widths = [np.ptp(axis.domain) for axis in (fig.layout.xaxis, fig.layout.xaxis2)]
    assert widths[0] == pytest.approx(3 * widths[1])
    fig = matrix_picture([wide, MatrixPanel("b", np.ones((6, 4)))], stacked=True)
    heights = [np.ptp(axis.domain) for axis in (fig.layout.yaxis, fig.layout.yaxis2)]
    assert heights[1] == pytest.approx(3 * heights[0])


@pytest.mark.parametrize(
    ("panels", "message"),
    [
        ([], "1 to 6 panels .* got 0"),
        ([MatrixPanel("w", np.ones(3))], r"w: looks must be a matrix .* got shape \(3,\)"),
        ([MatrixPanel("w", np.ones((0, 3)))], "1 to 4096 cells"),
        ([MatrixPanel("w", np.ones((65, 64)))], r"1 to 4096 cells; got shape \(65, 64\)"),
        ([MatrixPanel("w", LOOKS)], "run from 0 to 2, there are names for 0 to 1"),
        ([MatrixPanel("w", LOOKS - 1)], "run from -1 to 1"),
        ([MatrixPanel("w", LOOKS > 0, CELLS[:1])], r"cells have shape \(1, 4\), looks \(2, 4\)"),
        (
            [MatrixPanel("a", np.ones((2, 2))), MatrixPanel("b", np.ones((3, 2)))],
            "equally many rows",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(panels, message):
    with pytest.raises(InputError, match=message):
        matrix_picture(panels)
