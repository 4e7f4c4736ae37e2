"""Small matrices with every cell written out: groups, kept weights, what the hardware stores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from esparse_lab.errors import InputError
from esparse_lab.figures.style import INK, LABELS, OKABE_ITO, finish, panel_title, plain

# Light, dark, middle: apart in grey print too.
_COLOURS = ("#E8E8E8", OKABE_ITO[0], OKABE_ITO[4], OKABE_ITO[5])
_MOST_CELLS = 4096


@dataclass(frozen=True)
class MatrixPanel:
    """One matrix of a `matrix_picture`.

    Attributes:
        title: above the matrix.
        looks: which of the picture's names each cell has, int or bool [row, column].
        cells: what each cell says, numbers or texts [row, column]; None for nothing.
        m: columns of a group, parted by lines; 0 for no groups.
        columns: names of the columns; None numbers them.
        across: title of the column axis, with its unit.
    """

    title: str
    looks: np.ndarray
    cells: np.ndarray | None = None
    m: int = 0
    columns: Sequence[object] | None = None
    across: str = LABELS["channel"]


def matrix_picture(
    panels: Sequence[MatrixPanel],
    *,
    names: Sequence[str] = ("removed", "kept"),
    stacked: bool = False,
    title: str = "",
    caption: str = "",
) -> go.Figure:
    """Matrices whose cells are coloured by what became of them.

    Args:
        panels: 1 to 6 matrices with equally many rows, at most 4096 cells each.
        names: what each look means, up to 4; a look is its place here.
        stacked: one below the other; else side by side, as wide as they have columns.
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: too many panels, names or cells, shapes that do not fit, an unknown look.
    """
    if not 1 <= len(panels) <= 6 or not 1 <= len(names) <= len(_COLOURS):
        raise InputError(
            f"matrix_picture draws 1 to 6 panels with 1 to {len(_COLOURS)} names; got "
            f"{len(panels)} and {len(names)}."
        )
    shapes = [_checked(panel, len(names)).shape for panel in panels]
    if len({rows for rows, _ in shapes}) > 1 and not stacked:
        raise InputError(f"Panels side by side need equally many rows; got shapes {shapes}.")
    widths = None if stacked else [columns for _, columns in shapes]
    n_rows, n_cols = (len(panels), 1) if stacked else (1, len(panels))
    tall = [
        rows * (20 if p.cells is None else 34) for p, (rows, _) in zip(panels, shapes, strict=True)
    ]
    height = sum(tall) + 74 * (len(panels) - 1) if stacked else max(tall) + 20
    figure = make_subplots(
        rows=n_rows,
        cols=n_cols,
        column_widths=widths,
        row_heights=tall if stacked else None,
        horizontal_spacing=0.07,
        vertical_spacing=74 / height if stacked else None,
    )
    named: set[int] = set()  # the legend names each look once, where it first appears
    for number, panel in enumerate(panels):
        at = {"row": number + 1 if stacked else 1, "col": 1 if stacked else number + 1}
        _draw(figure, panel, names, named, at)
        figure.update_xaxes(title_text=panel.across, **at)
        if stacked or number == 0:
            figure.update_yaxes(title_text=LABELS["row"], **at)
        panel_title(figure, plain(panel.title), **at)
    return finish(figure, title=title, caption=caption, plot_height=height, panel_titles=True)


def _draw(
    figure: go.Figure, panel: MatrixPanel, names: Sequence[str], named: set[int], at: dict
) -> None:
    looks = np.asarray(panel.looks).astype(int)
    rows, columns = looks.shape
    cells = None if panel.cells is None else np.vectorize(_written, otypes=[object])(panel.cells)
    for look, name in enumerate(names):
        here = looks == look
        if not here.any():
            continue
        figure.add_heatmap(
            z=np.where(here, 1.0, np.nan),
            text=cells,
            texttemplate=None if cells is None else "%{text}",
            textfont={"size": 13},
            colorscale=[[0, _COLOURS[look]], [1, _COLOURS[look]]],
            showscale=False,
            xgap=2,
            ygap=2,
            hoverongaps=False,
            hovertemplate="row %{y}, column %{x}"
            + ("" if cells is None else ": %{text}")
            + f"<br>{plain(name)}<extra></extra>",
            name=plain(name),
            legendgroup=name,
            showlegend=look not in named,
            **at,
        )
        named.add(look)
    edges = np.arange(panel.m, columns, panel.m) - 0.5 if panel.m else []
    if len(edges):
        figure.add_shape(
            type="path",
            path=" ".join(f"M{edge},-0.7V{rows - 0.3}" for edge in edges),
            line={"color": INK, "width": 2},
            **at,
        )
    quiet = {"showgrid": False, "showline": False, "ticks": ""}
    ticks = {"tickvals": list(range(columns)), "range": [-0.5, columns - 0.5]}
    if panel.columns is not None:
        ticks["ticktext"] = [plain(name, 12) for name in panel.columns]
    elif columns > 16:
        ticks["tickvals"] = list(range(0, columns, panel.m or 4))
    figure.update_xaxes(**quiet, **ticks, **at)
    figure.update_yaxes(**quiet, tickvals=list(range(rows)), range=[rows - 0.5, -0.5], **at)


def _checked(panel: MatrixPanel, n_names: int) -> np.ndarray:
    looks = np.asarray(panel.looks)
    if looks.ndim != 2 or not 0 < looks.size <= _MOST_CELLS:
        raise InputError(
            f"{panel.title}: looks must be a matrix of 1 to {_MOST_CELLS} cells; got shape "
            f"{looks.shape}."
        )
    if looks.min() < 0 or looks.max() >= n_names:
        raise InputError(
            f"{panel.title}: looks run from {looks.min()} to {looks.max()}, there are names for 0 "
            f"to {n_names - 1}."
        )
    if panel.cells is not None and np.asarray(panel.cells).shape != looks.shape:
        raise InputError(
            f"{panel.title}: cells have shape {np.asarray(panel.cells).shape}, looks {looks.shape}."
        )
    return looks


def _written(value: object) -> str:
    """A cell's text: numbers in four digits, with a real minus sign."""
    if isinstance(value, str):
        return plain(value, 12)
    return f"{value:.4g}".replace("-", "−")
