"""Channels: entropy against norm of a layer's input channels, and what the entropy changes."""

from functools import cache
from typing import get_args

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from esparse_lab import tables
from esparse_lab.channel_stats import LayerStats
from esparse_lab.entropy import BinRange, Histogram
from esparse_lab.errors import InputError
from esparse_lab.explorers.controls import Control, Indices, Menu, Slider
from esparse_lab.explorers.panel import Panel
from esparse_lab.explorers.reading import Reading
from esparse_lab.explorers.selection import points_inside
from esparse_lab.explorers.sketch import Sketch
from esparse_lab.figures.style import (
    GUIDE,
    LABELS,
    OKABE_ITO,
    log_axis,
    panel_title,
    thinned,
)
from esparse_lab.methods import ESparse
from esparse_lab.models import LoadedModel

SORTED = 100  # channels in the sorted curves, as in the paper's Figure 2
MOST = 4_000  # points of one panel: an SVG of more is slow
MOST_IN_A_ROW = 600  # where a channel has a place of its own across: two a pixel say no more
CURVES = 5  # histograms drawn at once
LOST, EVEN, GAINED = "#D55E00", "#B4B4B4", "#0072B2"
CURVE_COLORS = [OKABE_ITO[i] for i in (2, 3, 6, 4, 5)]  # none of those above
# A hover tells what its panel draws: the other columns would have to be sent with every redraw.
_HOVER_OF = {
    "norm": "norm %{{{axis}:.4g}}",
    "entropy_nats": "entropy %{{{axis}:.3f}} nats",
    "position": "rank %{{{axis}}} by norm",
    "norm_rank": "rank %{{{axis}}} by norm",
}
_GAINED = "%{marker.color:+d} ranks by the entropy"
# Panels of points: title, column across, column up, place.
_PANELS = (
    ("(a) entropy against norm", "norm", "entropy_nats", 1, 1),
    (f"(c) norm, {SORTED} largest", "position", "norm", 2, 1),
    ("(d) entropy of the channels in (c)", "position", "entropy_nats", 2, 2),
    ("(e) entropy, all channels as stored", "channel", "entropy_nats", 3, 1),
    ("(f) ranks that the entropy gives and takes", "norm_rank", "ranks_gained", 3, 2),
)
_AXES = {
    "position": LABELS["sorted_by_norm"],
    "norm_rank": LABELS["norm_rank"],
    "ranks_gained": LABELS["rank_gain"],
}


class Channels(Panel):
    """A layer's input channels; select some in any panel to see their histograms.

    Panels: (a) entropy against norm; (b) histograms of the chosen channels, bin by bin: the entropy
    depends on these heights alone; (c) to (e) the paper's Figure 2; (f) ranks by norm alone against
    ranks by E-Sparse. Colour is the ranks that the entropy gives. Rings mark the chosen channels.
    """

    def __init__(
        self,
        loaded: LoadedModel | Reading,
        tokens: Tensor | None = None,
        *,
        block: int = 0,
        role: str | None = None,
        bins: int = 100,
        bin_range: BinRange = "channel",
        alpha: float = 3.0,
        channels: tuple[int, ...] | None = None,
    ):
        """Read the layer and draw.

        Args:
            loaded: the model; or a `Reading` that explorers share, which brings its tokens.
            tokens: calibration tokens, int64 [sequence, position].
            block: which transformer block, counted from 0.
            role: which layer of it; the first by default.
            bins: of the entropy's histogram, 2 to 400.
            bin_range: what the bins span; see `Histogram`.
            alpha: weight of the norm in E-Sparse, 0 to 20.
            channels: chosen at first; by default those of least and most entropy and of largest
                norm.

        Raises:
            InputError: a value that does not fit; suggests.
        """
        self.reading = Reading.of(loaded, tokens)
        settings = {
            "block": block,
            "role": self.reading.roles[0] if role is None else role,
            "bins": bins,
            "bin_range": bin_range,
            "alpha": alpha,
            "channels": () if channels is None else channels,
        }
        self._chosen_by_user = channels is not None
        super().__init__(settings)

    def controls(self) -> dict[str, Control]:
        """Block, layer, bins, their range, alpha, chosen channels."""
        return {
            "block": Slider("block", 0, len(self.reading.blocks) - 1),
            "role": Menu("layer", self.reading.roles),
            "bins": Slider("bins K", 2, 400),
            "bin_range": Menu("bins span each", get_args(BinRange)),
            "alpha": Slider("α (weight of the norm)", 0.0, 20.0, 0.1),
            "channels": Indices("channels"),
        }

    @property
    def stats(self) -> LayerStats:
        """Statistics of the layer under the present settings."""
        s = self.settings
        return self.reading.stats(s["block"], s["role"], self._method().needs, self.say)

    def to_frame(self) -> pd.DataFrame:
        """One row a channel: the columns of `rank_change_table`, and layer and chosen."""
        frame = tables.rank_change_table(self.stats, self._method())
        return frame.assign(
            layer=self.reading.layer(self.settings["block"], self.settings["role"]),
            chosen=frame.channel.isin(self.settings["channels"]),
        )

    def histograms(self) -> pd.DataFrame:
        """Histograms of the chosen channels, as `activation_histograms` gives them.

        Of more than five, five spread evenly over their entropies.
        """
        frame = self.to_frame()
        chosen = frame[frame.chosen].sort_values("entropy_nats", kind="stable")
        s = self.settings
        x = self.reading.inputs(s["block"], s["role"], self.say)
        return tables.activation_histograms(
            x, thinned(chosen, CURVES).channel, bins=s["bins"], bin_range=s["bin_range"]
        )

    def connect(self, plot: go.FigureWidget) -> None:
        """A box or lasso in any panel of points chooses its channels; an empty one none."""

        def drawn(layout, _) -> None:
            # What is handed over is empty after the first selection (plotly 7.1); the layout's own
            # entries are right.
            drawn_now = layout.to_plotly_json().get("selections", ())
            self.change(channels=points_inside(self._shown, drawn_now, len(_PANELS)))

        # Not trace.on_selection: a hover may take the place of its message before it is sent.
        plot.layout.dragmode = "select"  # in a report there is nothing to choose for
        plot.layout.on_change(drawn, "selections")

    def draw(self) -> go.Figure:
        """The six panels."""
        frame = self._with_default_choice()
        size = len(frame)
        if bad := [c for c in self.settings["channels"] if c >= size]:
            raise InputError(f"{frame.layer[0]} has channels 0 to {size - 1}, got {bad[0]}.")
        ranked = frame.sort_values("norm_rank")
        views = {
            "norm": thinned(ranked, MOST),
            "position": ranked.head(SORTED).assign(position=ranked.norm_rank.head(SORTED)),
            "channel": thinned(frame, MOST_IN_A_ROW),
            "norm_rank": thinned(ranked, MOST_IN_A_ROW),
        }
        chosen = frame[frame.chosen].sort_values("entropy_nats", kind="stable")
        curves = thinned(chosen, CURVES)
        colors = dict(zip(curves.channel, CURVE_COLORS, strict=False))
        figure = Sketch(_grid())
        for title, across, up, row, col in _PANELS:
            points = views[across]
            figure.add_trace(
                "scatter",
                x=points[across],
                y=points[up],
                mode="markers",
                marker={"color": points.ranks_gained, "coloraxis": "coloraxis", "size": 6},
                unselected={"marker": {"opacity": 0.85}},
                selected={"marker": {"opacity": 0.85}},
                opacity=0.85,
                customdata=points.channel.to_numpy(),
                hovertemplate=_hover(across, up),
                showlegend=False,
                row=row,
                col=col,
            )
            panel_title(figure, title, row=row, col=col)
        for _title, across, up, row, col in _PANELS:
            rings = chosen.assign(position=chosen.norm_rank)
            rings = rings[rings.norm_rank <= SORTED] if across == "position" else rings
            rings = thinned(rings, MOST)
            # Those with a histogram last, so that they lie on top.
            drawn = rings.channel.isin(colors)
            rings = pd.concat([rings[~drawn], rings[drawn]])
            figure.add_trace(
                "scatter",
                x=rings[across],
                y=rings[up],
                mode="markers",
                marker={
                    "color": [colors.get(c, "rgba(26,26,26,0.4)") for c in rings.channel],
                    "symbol": "circle-open",
                    "size": np.where(rings.channel.isin(colors), 12, 7),
                    "line": {"width": np.where(rings.channel.isin(colors), 2.5, 1)},
                },
                unselected={"marker": {"opacity": 1}},  # the ring is the mark; no fading besides
                hoverinfo="skip",
                showlegend=False,
                row=row,
                col=col,
            )
        self._add_histograms(figure, chosen, colors)
        for _title, across, up, row, col in _PANELS:
            log_x = log_axis(frame.norm) if across == "norm" else {}
            log_y = log_axis(ranked.norm.head(SORTED)) if up == "norm" else {}
            figure.update_xaxes(title={"text": _axis(across)}, row=row, col=col, **log_x)
            figure.update_yaxes(title={"text": _axis(up)}, row=row, col=col, **log_y)
        figure.update_yaxes(tickformat="+d", row=3, col=2)
        zero = {
            "type": "line",
            "x0": 0,
            "x1": 1,
            "xref": "x6 domain",
            "y0": 0,
            "y1": 0,
            "yref": "y6",
        }
        figure.update_layout(shapes=[zero | {"line": {"color": GUIDE, "width": 1}}])
        reach = max(1, int(frame.ranks_gained.abs().max()))
        figure.update_layout(
            coloraxis={
                "colorscale": [[0, LOST], [0.5, EVEN], [1, GAINED]],
                "cmin": -reach,
                "cmax": reach,
                "colorbar": {
                    "title": {
                        "text": LABELS["rank_gain"],
                        "side": "right",
                        "font": {"size": 13},
                    },
                    "thickness": 12,
                    "outlinewidth": 0,
                    "tickformat": "+d",
                },
            },
        )
        return figure.finish(
            title=self._headline(frame),
            caption=self._caption(),
            plot_height=760,
            notes=self._notes(frame),
            panel_titles=True,
            right=90,
        )

    def _add_histograms(self, figure: Sketch, chosen: pd.DataFrame, colors: dict) -> None:
        """Panel (b): the share of tokens in each bin, by the bin's number."""
        panel_title(figure, "(b) where the values of the chosen channels lie", row=1, col=2)
        counts = self.histograms() if len(chosen) else None
        for i in range(CURVES):
            curve = {"visible": False}
            if i < len(colors):
                channel, color = list(colors.items())[i]
                one = counts[counts.channel == channel]
                curve = {
                    "x": np.arange(1, len(one) + 1),
                    "y": 100 * one["count"] / one["count"].sum(),
                    "customdata": one[["bin_left", "bin_right", "count"]].to_numpy(float),
                    "line": {"color": color, "shape": "hvh", "width": 1.8},
                    "name": f"channel {channel}: {one.entropy_nats.iloc[0]:.2f} nats",
                    "showlegend": True,
                }
            figure.add_trace(
                "scatter",
                mode="lines",
                hovertemplate="%{fullData.name}<br>bin %{x}: %{customdata[0]:.4g} to "
                "%{customdata[1]:.4g}<br>%{customdata[2]:,} tokens, %{y:.2f} %<extra></extra>",
                row=1,
                col=2,
                **curve,
            )
        figure.update_xaxes(title={"text": "bin (number, 1 to K)"}, row=1, col=2)
        figure.update_yaxes(title={"text": "tokens (%)"}, rangemode="tozero", row=1, col=2)
        if not len(chosen):
            figure.add_annotation(
                text="No channel is chosen: drag a box over points in (a),<br>"
                "or write channel numbers.",
                x=0.5,
                y=0.5,
                xref="x2 domain",
                yref="y2 domain",
                showarrow=False,
            )

    def _with_default_choice(self) -> pd.DataFrame:
        """`to_frame`, after choosing three telling channels where the user has not chosen yet."""
        frame = self.to_frame()
        if not self._chosen_by_user:
            entropy, norm = frame.entropy_nats, frame.norm
            telling = (entropy.idxmin(), norm.idxmax(), entropy.idxmax())
            self.settings["channels"] = tuple(dict.fromkeys(map(int, telling)))
            frame["chosen"] = frame.channel.isin(self.settings["channels"])
        return frame

    def set(self, **changes) -> None:
        """As `Panel.set`; another layer gets three telling channels of its own."""
        moved = changes.keys() & {"block", "role"}
        before = self._chosen_by_user
        self._chosen_by_user = "channels" in changes or (before and not moved)
        try:
            super().set(**changes)
        except BaseException:
            self._chosen_by_user = before
            raise
        if moved and self._face is not None and self.plot.layout.selections:
            with self._quietly():
                self.plot.plotly_relayout({"selections": []})

    def ahead(self) -> None:
        """Read the same layer of the next block."""
        s = self.settings
        self.reading.look_ahead(s["block"] + 1, s["role"], self._method().needs)

    def _method(self) -> ESparse:
        s = self.settings
        return ESparse(alpha=s["alpha"], histogram=Histogram(s["bins"], s["bin_range"]))

    def _headline(self, frame: pd.DataFrame) -> str:
        correlation = frame.entropy_nats.rank().corr(frame.norm.rank())
        up = frame.loc[frame.ranks_gained.idxmax()]
        down = frame.loc[frame.ranks_gained.idxmin()]
        return (
            f"{frame.layer[0]}: the entropy lifts channel {up.channel} by {up.ranks_gained} ranks "
            f"and lowers channel {down.channel} by {-down.ranks_gained}; "
            f"rank correlation of entropy and norm {correlation:.2f}"
        )

    def _caption(self) -> str:
        s, walk = self.settings, self.reading
        return (
            f"{walk.loaded.name}; {walk.text}; {s['bins']} bins over each {s['bin_range']}; "
            f"importance = entropy + {s['alpha']:g} · norm. Blue: counts for more than its norm "
            "says; orange: for less."
        )

    def _notes(self, frame: pd.DataFrame) -> list[str]:
        n_chosen = len(self.settings["channels"])
        notes = [f"Chosen: {n_chosen} of {len(frame):,} channels."]
        if n_chosen > CURVES:
            notes.append(f"(b) shows {CURVES} of them, spread over their entropies.")
        if dead := int((frame.norm <= 0).sum()):
            notes.append(f"Not in (a): {dead} channels of norm 0 (log axis).")
        size = len(frame)
        if size > MOST_IN_A_ROW:
            of_all = "In (e) and (f)" if size <= MOST else f"In (a) {MOST:,}, in (e) and (f)"
            notes.append(f"{of_all} {MOST_IN_A_ROW:,} of {size:,} channels, evenly spaced.")
        return notes


@cache
def _grid() -> go.Figure:
    return make_subplots(
        rows=3, cols=2, horizontal_spacing=0.09, vertical_spacing=0.11, column_widths=[0.5, 0.5]
    )


def _hover(across: str, up: str) -> str:
    told = [
        _HOVER_OF[column].format(axis=axis)
        for axis, column in (("x", across), ("y", up))
        if column in _HOVER_OF
    ]
    return f"channel %{{customdata}}<br>{', '.join(told)}<br>{_GAINED}<extra></extra>"


def _axis(column: str) -> str:
    return _AXES.get(column) or LABELS[column]
