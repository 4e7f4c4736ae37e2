"""A figure with subplots, put together as plain dicts.

Plotly checks and copies at every change of a go.Figure: seven panels take 70 ms on one core. A
`Sketch` has the calls that explorers need under go.Figure's names, and is checked once: 10 ms.
"""

from collections.abc import Mapping

import plotly.graph_objects as go

from esparse_lab.figures.style import surroundings


class Sketch:
    """Traces and layout of a figure to be, as go.Figure takes them.

    Attributes:
        layout: the layout, nested dicts.
        data: the traces, dicts.
    """

    def __init__(self, grid: go.Figure):
        """An empty figure with the subplots of `grid`, from plotly's make_subplots."""
        self._grid = grid
        self.data: list[dict] = []
        self.layout = grid.layout.to_plotly_json()
        del self.layout["template"]
        self.layout |= {"annotations": [], "shapes": []}
        # Margins follow the labels already; plotly's default measures each label once more.
        self.update_xaxes(ticklabeloverflow="allow")
        self.update_yaxes(ticklabeloverflow="allow")

    def finish(self, **about) -> go.Figure:
        """The figure, with the `surroundings` of `about`."""
        names = [t["name"] for t in self.data if t.get("name") and t.get("showlegend")]
        layout, annotations = surroundings(names, **about)
        self.update_layout(**layout)
        self.layout["annotations"] += annotations
        return go.Figure({"data": self.data, "layout": self.layout})

    def get_subplot(self, row: int, col: int):
        """As go.Figure's."""
        return self._grid.get_subplot(row, col)

    def add_trace(self, kind: str, row: int, col: int, **trace) -> None:
        """Add a trace of a kind, such as "scatter", to a subplot."""
        place = self._grid._grid_ref[row - 1][col - 1][0].trace_kwargs
        self.data.append({"type": kind, **trace, **place})

    def add_annotation(self, **annotation) -> None:
        """As go.Figure's."""
        self.layout["annotations"].append(annotation)

    def update_layout(self, **changes) -> None:
        """As go.Figure's, with dicts inside dicts."""
        _merge(self.layout, changes)

    def update_xaxes(self, *, row: int | None = None, col: int | None = None, **changes) -> None:
        """As go.Figure's: of one subplot, of a row, of a column or of all."""
        self._update_axes(0, row, col, changes)

    def update_yaxes(self, *, row: int | None = None, col: int | None = None, **changes) -> None:
        """As go.Figure's: of one subplot, of a row, of a column or of all."""
        self._update_axes(1, row, col, changes)

    def _update_axes(self, which: int, row: int | None, col: int | None, changes: dict) -> None:
        for i, cells in enumerate(self._grid._grid_ref, start=1):
            for j, cell in enumerate(cells, start=1):
                if cell and cell[0].subplot_type == "xy" and row in (None, i) and col in (None, j):
                    _merge(self.layout[cell[0].layout_keys[which]], changes)


def _merge(target: dict, changes: Mapping) -> None:
    """Set the changes, entry by entry where both have a dict; None takes away."""
    for key, value in changes.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, Mapping):
            if not isinstance(target.get(key), dict):
                target[key] = {}
            _merge(target[key], value)
        else:
            target[key] = value
