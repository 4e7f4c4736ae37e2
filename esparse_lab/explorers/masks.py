"""Masks: a layer's scores and what two methods keep of them, at any zoom."""

import math
from dataclasses import replace
from functools import cache
from typing import Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from esparse_lab.channel_stats import Needs
from esparse_lab.comparison import Outcome, comparison_table, outcome_of
from esparse_lab.entropy import Histogram
from esparse_lab.errors import InputError
from esparse_lab.explorers.controls import Control, Menu, Slider, Span, Words
from esparse_lab.explorers.panel import Panel
from esparse_lab.explorers.reading import Reading
from esparse_lab.explorers.sketch import Sketch
from esparse_lab.figures.style import (
    LABELS,
    OKABE_ITO,
    SEQUENTIAL,
    log_axis,
    panel_title,
    thinned,
)
from esparse_lab.masks import Pattern, parse_sparsity
from esparse_lab.methods import METHODS, make_method
from esparse_lab.models import LoadedModel

CELLS = (128, 160)  # of one picture at most, rows and columns; three are drawn
MOST_WEIGHTS = 1 << 28
PLOT_HEIGHT = 600
LINED = 96  # channels in view at most where lines part the groups
WHOLE = (0, 1 << 31)
_AXIS, _BARS = 58, 44  # pixels under the pictures: ticks and title, colour bars
_NEEDS = Needs(Histogram(), gram=True)
_DROPPED, _KEPT, _ONE, _OTHER = "#E8E8E8", OKABE_ITO[0], OKABE_ITO[1], OKABE_ITO[2]


class Masks(Panel):
    """Scores of a layer, the mask that a method makes of them, and where another one differs.

    Zoom with the mouse or the two ranges: the pictures are made anew from the whole matrices. A
    cell stands for one weight when near, for the mean of many from afar.
    """

    def __init__(
        self,
        loaded: LoadedModel | Reading,
        tokens: Tensor | None = None,
        *,
        block: int = 0,
        role: str | None = None,
        method: str = "esparse",
        other: str = "wanda",
        pattern: str = "2:4",
        rows: tuple[int, int] = WHOLE,
        channels: tuple[int, int] = WHOLE,
    ):
        """Read the layer, prune it twice and draw; the model is not changed.

        Args:
            loaded: the model; or a `Reading` that explorers share, which brings its tokens.
            tokens: calibration tokens, int64 [sequence, position].
            block: which transformer block, counted from 0.
            role: which layer of it; the first by default.
            method: in `METHODS`; its scores and mask are drawn.
            other: in `METHODS`; what it is compared with.
            pattern: such as "2:4" or "50%".
            rows: first output channel in view, and the one after the last.
            channels: first input channel in view, and the one after the last.

        Raises:
            InputError: a value that does not fit, or a matrix too large to score twice.
        """
        self.reading = Reading.of(loaded, tokens)
        self._outcomes: tuple[tuple, dict[str, Outcome]] | None = None
        self._shape = (1, 1)
        settings = {
            "block": block,
            "role": self.reading.roles[0] if role is None else role,
            "method": method,
            "other": other,
            "pattern": pattern,
            "rows": rows,
            "channels": channels,
        }
        super().__init__(settings)

    def controls(self) -> dict[str, Control]:
        """Block, layer, methods, pattern, what is in view."""
        return {
            "block": Slider("block", 0, len(self.reading.blocks) - 1),
            "role": Menu("layer", self.reading.roles),
            "method": Menu("method", tuple(METHODS)),
            "other": Menu("compared with", tuple(METHODS)),
            "pattern": Words("pattern", parse_sparsity),
            "rows": Span("output channels", lambda: self._shape[0]),
            "channels": Span("input channels", lambda: self._shape[1]),
        }

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """What the method and the other one make of the layer: "method" and "other"."""
        s = self.settings
        key = tuple(s[name] for name in ("block", "role", "method", "other", "pattern"))
        if self._outcomes is None or self._outcomes[0] != key:
            self._outcomes = None  # the old ones go before the new ones come
            weight = self.reading.weight(s["block"], s["role"])
            if weight.numel() > MOST_WEIGHTS:
                raise InputError(
                    f"This layer has {weight.numel():,} weights; at most {MOST_WEIGHTS:,} are "
                    "compared here. Take the Channels explorer, or esparse_lab.comparison."
                )
            methods = {which: make_method(s[which]) for which in ("method", "other")}
            stats = self._stats(any(m.needs and m.needs.output_norm for m in methods.values()))
            sparsity = parse_sparsity(s["pattern"])
            found = {}
            for which, method in methods.items():
                self.say(f"pruning with {s[which]}")
                same = s[which] == s["method"] and which == "other"
                found[which] = (
                    found["method"] if same else outcome_of(method, weight, stats, sparsity)
                )
            self._axis = methods["method"].group_axis(stats)
            self._outcomes = key, found
        return self._outcomes[1]

    def to_frame(self) -> pd.DataFrame:
        """The columns of `comparison_table`, one row a method, and the layer."""
        s = self.settings
        frame = comparison_table(self.outcomes)
        names = [s["method"], s["other"]]
        return frame.assign(method=names, layer=self.reading.layer(s["block"], s["role"]))

    def shares(self, axis: Literal["in", "out"]) -> pd.DataFrame:
        """Shares of each input ("in") or output channel.

        Columns: channel, kept_share and other_kept_share of its weights, differing_share.
        """
        over = 0 if axis == "in" else 1
        one, other = (self.outcomes[which].choice.mask for which in ("method", "other"))
        shares = {"kept_share": one, "other_kept_share": other, "differing_share": one != other}
        frame = pd.DataFrame(
            {name: mask.float().mean(dim=over).cpu().numpy() for name, mask in shares.items()}
        )
        return frame.rename_axis("channel").reset_index()

    def set(self, **changes) -> None:
        """As `Panel.set`; another layer is shown whole."""
        if changes.keys() & {"block", "role"}:
            changes = {"rows": WHOLE, "channels": WHOLE} | changes
        super().set(**changes)

    def connect(self, plot: go.FigureWidget) -> None:
        """Zooming draws what is in view anew."""

        def zoomed(layout, *_) -> None:
            axes = layout.to_plotly_json()
            view = {
                name: self._span(axes[axis], size)
                for name, axis, size in zip(
                    ("rows", "channels"), ("yaxis4", "xaxis4"), self._shape, strict=True
                )
            }
            self.change(**view)

        plot.layout.on_change(zoomed, "xaxis4.range", "yaxis4.range")

    def _span(self, axis: dict, size: int) -> tuple[int, int]:
        """The indices that an axis shows."""
        low, high = sorted(axis.get("range") or (0, size))
        first = min(max(math.floor(low + 0.5), 0), size - 1)
        return first, max(min(math.ceil(high + 0.5), size), first + 1)

    def draw(self) -> go.Figure:
        """Pictures of scores, mask and differences, with shares along their edges."""
        outcomes = self.outcomes
        one, other = (outcomes[which].choice for which in ("method", "other"))
        self._shape = tuple(one.mask.shape)
        s = self.settings
        for name, size in zip(("rows", "channels"), self._shape, strict=True):
            first, end = s[name]
            s[name] = min(first, size - 1), min(max(end, 1), size)
        view = tuple(slice(*s[name]) for name in ("rows", "channels"))
        cell = tuple(
            math.ceil((v.stop - v.start) / most) for v, most in zip(view, CELLS, strict=True)
        )
        near = cell == (1, 1)

        figure = Sketch(_grid())
        scores = _means(one.scores[view], cell)
        floor = float(np.quantile(scores[scores > 0], 0.02)) if (scores > 0).any() else 1.0
        kept = _means(one.mask[view], cell)
        if near:
            differing = 2 * _means(one.mask[view], cell) + _means(other.mask[view], cell)
        else:
            differing = 100 * _means((one.mask != other.mask)[view], cell)
        pictures = (
            (np.log10(np.maximum(scores, floor)), scores, "score %{customdata:.4g}"),
            (100 * kept, None, "kept %{z:.0f} %"),
            (differing, None, "%{z}" if near else "differ in %{z:.1f} %"),
        )
        for i, (z, custom, hover) in enumerate(pictures, start=1):
            words = np.array(
                ["neither keeps", f"{s['other']} alone", f"{s['method']} alone", "both"]
            )
            if i == 3 and near:
                custom, hover = words[z.astype(int)], "%{customdata}"
            figure.add_trace(
                "heatmap",
                z=z,
                x0=view[1].start + (cell[1] - 1) / 2,
                dx=cell[1],
                y0=view[0].start + (cell[0] - 1) / 2,
                dy=cell[0],
                customdata=custom,
                coloraxis=f"coloraxis{i if i > 1 else ''}",
                hovertemplate="output %{y}, input %{x}<br>" + hover + "<extra></extra>",
                row=2,
                col=i,
            )
        self._add_shares(figure, view)
        self._lay_out(figure, view, near, scores, floor)
        frame = self.to_frame().set_index(pd.Index(["method", "other"]))
        return figure.finish(
            title=self._headline(frame),
            caption=self._caption(frame, cell),
            plot_height=PLOT_HEIGHT,
            panel_titles=True,
            below=_BARS,  # the colour bars
        )

    def _add_shares(self, figure: Sketch, view: tuple[slice, slice]) -> None:
        """Lines along the edges: means of what the picture beside them shows."""
        s = self.settings
        inputs, outputs = self.shares("in"), self.shares("out")
        inputs["score"] = self.outcomes["method"].choice.scores.mean(dim=0).cpu().numpy()
        inputs, outputs = inputs.iloc[view[1]], outputs.iloc[view[0]]
        inputs, outputs = thinned(inputs, 2000), thinned(outputs, 2000)
        lines = (
            (inputs.score, _KEPT, s["method"], 1),
            (100 * inputs.kept_share, _ONE, s["method"], 2),
            (100 * inputs.other_kept_share, _OTHER, s["other"], 2),
            (100 * inputs.differing_share, "#555555", "differ", 3),
        )
        for values, color, name, col in lines:
            figure.add_trace(
                "scatter",
                x=inputs.channel,
                y=values,
                mode="lines",
                line={"color": color, "width": 1.2},
                name=name,
                showlegend=col == 2,
                row=1,
                col=col,
            )
        for column, color, name in (
            ("kept_share", _ONE, s["method"]),
            ("other_kept_share", _OTHER, s["other"]),
        ):
            figure.add_trace(
                "scatter",
                x=100 * outputs[column],
                y=outputs.channel,
                mode="lines",
                line={"color": color, "width": 1.2},
                name=name,
                showlegend=False,
                row=2,
                col=4,
            )

    def _lay_out(
        self,
        figure: Sketch,
        view: tuple[slice, slice],
        near: bool,
        scores: np.ndarray,
        floor: float,
    ) -> None:
        s = self.settings
        rows, channels = view
        titles = (
            f"(a) score of {s['method']}, mean above",
            f"(b) kept by {s['method']} (%)",
            "(c) masks differ (%)",
        )
        for col, title in enumerate(titles, start=1):
            panel_title(figure, title, row=1, col=col)
            figure.update_xaxes(matches="x4", showticklabels=False, row=1, col=col)
            figure.update_xaxes(
                title={"text": LABELS["channel"]},
                matches="x4",
                showgrid=False,
                nticks=5,
                row=2,
                col=col,
            )
            figure.update_yaxes(showgrid=False, matches="y4", showticklabels=False, row=2, col=col)
        figure.update_yaxes(matches="y4", showticklabels=False, row=2, col=4)
        figure.update_layout(
            xaxis4={"matches": None, "range": [channels.start - 0.5, channels.stop - 0.5]},
            yaxis4={
                "matches": None,
                "range": [rows.stop - 0.5, rows.start - 0.5],
                "showticklabels": True,
                "title": {"text": LABELS["row"]},
            },
        )
        figure.update_yaxes(nticks=3, row=1)
        figure.update_yaxes(rangemode="tozero", row=1, col=3)
        figure.update_xaxes(title={"text": "kept (%)"}, nticks=3, row=2, col=4)
        high = max(float(scores.max()), floor * 1.3)
        ticks = log_axis([floor, high])
        bar = {
            "orientation": "h",
            "thickness": 9,
            "outlinewidth": 0,
            "len": 0.27,
            "y": -_AXIS / PLOT_HEIGHT,
        }
        bar |= {"yanchor": "top", "tickfont": {"size": 10}}
        kept = [[0, _DROPPED], [1, _KEPT]]
        figure.update_layout(
            coloraxis={
                "colorscale": SEQUENTIAL,
                "cmin": math.log10(floor),
                "cmax": math.log10(high),
                "colorbar": bar
                | {
                    "x": 0.135,
                    "tickvals": np.log10(ticks["tickvals"]),
                    "ticktext": ticks["ticktext"],
                },
            },
            coloraxis2={
                "colorscale": kept,
                "cmin": 0,
                "cmax": 100,
                "colorbar": bar | {"x": 0.44, "ticksuffix": " %"},
            },
            coloraxis3=_four_ways(s, bar | {"x": 0.745})
            if near
            else {
                "colorscale": [[0, "#FFFFFF"], [1, "#1A1A1A"]],
                "cmin": 0,
                "cmax": None,
                "colorbar": bar | {"x": 0.745, "ticksuffix": " %"},
            },
        )
        self._add_groups(figure, view, near)

    def _add_groups(self, figure: Sketch, view: tuple[slice, slice], near: bool) -> None:
        """Lines between the groups of M, where they are far enough apart."""
        pattern = parse_sparsity(self.settings["pattern"])
        rows, channels = view
        across = self._axis == "in"
        along = channels if across else rows
        if not (near and isinstance(pattern, Pattern) and along.stop - along.start <= LINED):
            return
        edges = range(-(-along.start // pattern.m) * pattern.m, along.stop + 1, pattern.m)
        low, high = (
            (rows if across else channels).start - 0.5,
            (rows if across else channels).stop - 0.5,
        )
        path = " ".join(
            f"M{e - 0.5},{low}V{high}" if across else f"M{low},{e - 0.5}H{high}" for e in edges
        )
        line = {"type": "path", "path": path, "line": {"color": "white", "width": 1.5}}
        figure.update_layout(shapes=[line | {"xref": f"x{i}", "yref": f"y{i}"} for i in (4, 5, 6)])

    def _headline(self, frame: pd.DataFrame) -> str:
        s = self.settings
        errors = [f"{s[which]} {frame.output_error[which]:.3%}" for which in ("method", "other")]
        return (
            f"{frame.layer.iloc[0]} at {s['pattern']}: the masks differ in "
            f"{frame.disagreement['other']:.2%} of the weights; output error "
            f"{errors[0]}, {errors[1]}"
        )

    def _caption(self, frame: pd.DataFrame, cell: tuple[int, int]) -> str:
        s = self.settings
        size = "one weight" if cell == (1, 1) else f"the mean of {cell[0]} × {cell[1]} weights"
        return (
            f"{self.reading.loaded.name}; {self.reading.text}. {s['method']} keeps "
            f"{frame.retained_share['method']:.2%} of its score, {s['other']} "
            f"{frame.retained_share['other']:.2%} of its own; by the score of {s['method']}, the "
            f"mask of {s['other']} gives up {frame.score_given_up['other']:.3%}. In view: output "
            f"channels {s['rows'][0]} to {s['rows'][1] - 1} of {self._shape[0]:,}, input channels "
            f"{s['channels'][0]} to {s['channels'][1] - 1} of {self._shape[1]:,}; a cell is "
            f"{size}. Lines above and beside are means over the whole layer."
        )

    def ahead(self) -> None:
        """Read the same layer of the next block."""
        s = self.settings
        self.reading.look_ahead(s["block"] + 1, s["role"], _NEEDS)

    def _stats(self, output_norm: bool):
        s = self.settings
        needs = replace(_NEEDS, output_norm=output_norm)
        if output_norm:  # what another layer of the block reads
            layer = self.reading.layer(s["block"], s["role"])
            return self.reading.block_stats(s["block"], needs, self.say)[layer]
        return self.reading.stats(s["block"], s["role"], needs, self.say)


@cache
def _grid() -> go.Figure:
    return make_subplots(
        rows=2,
        cols=4,
        specs=[[{}, {}, {}, None], [{}, {}, {}, {}]],
        row_heights=[0.18, 0.82],
        column_widths=[0.3, 0.3, 0.3, 0.1],
        horizontal_spacing=0.025,
        vertical_spacing=0.075,
    )


def _means(matrix: Tensor, cell: tuple[int, int]) -> np.ndarray:
    """Means over cells of a matrix, float32; those at the ends may be smaller."""
    pooled = torch.nn.functional.avg_pool2d(
        matrix[None].float(), cell, ceil_mode=True, count_include_pad=False
    )
    return pooled[0].cpu().numpy()


def _four_ways(settings: dict, bar: dict) -> dict[str, object]:
    """The colours of one weight and two masks."""
    colors = (_DROPPED, _OTHER, _ONE, _KEPT)
    scale = [[(i + end) / 4, color] for i, color in enumerate(colors) for end in (0, 1)]
    names = ["neither", settings["other"], settings["method"], "both"]
    return {
        "colorscale": scale,
        "cmin": -0.5,
        "cmax": 3.5,
        "colorbar": bar | {"tickvals": [0, 1, 2, 3], "ticktext": names},
    }
