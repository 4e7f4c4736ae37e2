"""Shuffle: a search for a channel order, step by step, and what the order changes."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import ipywidgets as W
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import traitlets
from plotly.subplots import make_subplots
from torch import Tensor

from esparse_lab.channel_stats import LayerStats
from esparse_lab.errors import InputError
from esparse_lab.explorers.controls import Control, Menu, Slider, Span, Words
from esparse_lab.explorers.panel import Panel
from esparse_lab.explorers.reading import Reading
from esparse_lab.explorers.sketch import Sketch
from esparse_lab.figures.permutation import SEARCH_LOOKS
from esparse_lab.figures.style import (
    GRID,
    INK,
    LABELS,
    OKABE_ITO,
    SEQUENTIAL,
    log_axis,
    looks,
    panel_title,
    plain,
    thinned,
)
from esparse_lab.masks import Pattern, nm_mask
from esparse_lab.methods import METHODS, make_method
from esparse_lab.models import LoadedModel
from esparse_lab.permutation import (
    SEARCHES,
    ChannelOrder,
    SearchStep,
    ordered_mask,
    retained_share,
    search_steps,
)

CELLS = (96, 192)  # of one picture at most, rows and columns
GROUPS = 400  # drawn at most
LAST = 1 << 31
WHOLE = (0, LAST)
AGAINST = {"step": "step (number)", "swaps": LABELS["swaps"], "seconds": "search time (seconds)"}
_REMOVED, _KEPT, _LOST = "#E8E8E8", OKABE_ITO[0], OKABE_ITO[1]
_HEIGHT = 860


class _Scrubber(W.HBox):
    """A play button and a slider with one value."""

    value = traitlets.Int()

    def __init__(self, value: int, label: str):
        self.play = W.Play(value=value, min=0, max=value, interval=700, show_repeat=False)
        self.slider = W.IntSlider(
            value=value,
            min=0,
            max=value,
            description=label,
            continuous_update=False,
            style={"description_width": "initial"},
            layout={"width": "300px"},
        )
        super().__init__([self.play, self.slider])
        for child in (self.play, self.slider):
            traitlets.link((child, "value"), (self, "value"))


@dataclass(frozen=True)
class Scrub(Control):
    """A step of the search, counted from 0; beyond the last one it is the last."""

    last: Callable[[], int]

    def read(self, name: str, value: object) -> int:
        """The step's number."""
        try:
            step = int(value)
        except (TypeError, ValueError):
            step = -1
        if step < 0:
            raise InputError(f"{name}={value}: expected a whole number from 0, such as {name}=0.")
        return step

    def widget(self, value: object) -> _Scrubber:
        """Play and slider."""
        return _Scrubber(value, self.label)

    def show(self, widget: _Scrubber, value: object) -> None:
        """The step, on a slider as long as the search."""
        for child in (widget.play, widget.slider):
            child.max = max(self.last(), 1)
        widget.value = value


@dataclass(frozen=True)
class Trace:
    """What one search did.

    Attributes:
        steps: the stored order first, then what the search yields.
        seconds: since the search began, one for each step.
        output_error: |(W - W') X|^2 / |W X|^2 at the end, kept weights as they are.
    """

    steps: list[SearchStep]
    seconds: list[float]
    output_error: float


@dataclass
class _Case:
    """Layers that are ordered together, and what each search made of them.

    Attributes:
        names: of the layers.
        weights: one [out, in] a layer.
        scores: of all of them, [row, channel], the channels being those that are ordered.
        axis: which channels these are: input or output channels.
        rank: of each channel by mean score, 1 the best, [channel].
        traces: by search, as far as they have run.
        refused: why a search cannot run.
    """

    names: list[str]
    weights: list[Tensor]
    scores: Tensor
    axis: str
    rank: np.ndarray
    traces: dict[str, Trace] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


class Shuffle(Panel):
    """Scores, masks and groups of a layer before a channel permutation and at any step of it.

    Layers that read the same activation are ordered together, as when pruning; scope "layer" looks
    at one alone. A search runs once for a choice; going through its steps only draws.
    """

    def __init__(
        self,
        loaded: LoadedModel | Reading,
        tokens: Tensor | None = None,
        *,
        block: int = 0,
        role: str | None = None,
        scope: str = "group",
        method: str = "esparse",
        pattern: str = "2:4",
        search: str = "gns+lbs",
        step: int = LAST,
        against: str = "step",
        rows: tuple[int, int] = WHOLE,
        channels: tuple[int, int] = WHOLE,
    ):
        """Score the layer, run every search and draw; the model is not changed.

        Args:
            loaded: the model; or a `Reading` that explorers share, which brings its tokens.
            tokens: calibration tokens, int64 [sequence, position].
            block: which transformer block, counted from 0.
            role: which layer of it; the first by default.
            scope: "group" for all layers that read the same, "layer" for one.
            method: in `METHODS`; its scores are to be retained.
            pattern: N:M, such as "2:4".
            search: in `SEARCHES`; the one whose steps are shown.
            step: 0 for the stored order; the last one by default.
            against: what the gain curve runs over: a key of `AGAINST`.
            rows: first row of the pictures, and the one after the last.
            channels: first position of the pictures, and the one after the last.

        Raises:
            InputError: a value that does not fit; suggests.
        """
        self.reading = Reading.of(loaded, tokens)
        self._cases: dict[tuple, _Case] = {}
        self._last = 1
        self._shape = (1, 1)
        settings = {
            "block": block,
            "role": self.reading.roles[0] if role is None else role,
            "scope": scope,
            "method": method,
            "pattern": pattern,
            "search": search,
            "step": step,
            "against": against,
            "rows": rows,
            "channels": channels,
        }
        super().__init__(settings)

    def controls(self) -> dict[str, Control]:
        """Layer, scope, scores, pattern, search and step; axis of the curve; what is in view."""
        return {
            "block": Slider("block", 0, len(self.reading.blocks) - 1),
            "role": Menu("layer", self.reading.roles),
            "scope": Menu("order", ("group", "layer")),
            "method": Menu("scores of", tuple(METHODS)),
            "pattern": Words("pattern", Pattern.parse),
            "search": Menu("search", tuple(SEARCHES)),
            "step": Scrub("step", lambda: self._last),
            "against": Menu("curve against", tuple(AGAINST)),
            "rows": Span("rows", lambda: self._shape[0]),
            "channels": Span("positions", lambda: self._shape[1]),
        }

    def set(self, **changes) -> None:
        """As `Panel.set`; another search starts at its last step, another layer is shown whole."""
        moved = changes.keys() & {"block", "role", "scope", "method"}
        if moved or changes.keys() & {"pattern", "search"}:
            changes = {"step": LAST} | changes
        if moved:
            changes = {"rows": WHOLE, "channels": WHOLE} | changes
        super().set(**changes)

    def to_frame(self) -> pd.DataFrame:
        """Every step of every search.

        Columns: layer (of several, the first), search, step, swaps, seconds (since the search
        began), retained_share (0 to 1).
        """
        rows = [
            (name, number, step.swaps, seconds, step.retained_share)
            for name, trace in self._case.traces.items()
            for number, (step, seconds) in enumerate(zip(trace.steps, trace.seconds, strict=True))
        ]
        columns = ["search", "step", "swaps", "seconds", "retained_share"]
        frame = pd.DataFrame(rows, columns=columns)
        frame.insert(0, "layer", self._case.names[0])
        return frame

    def comparison(self) -> pd.DataFrame:
        """Where every search ends, side by side.

        Columns: search, retained_share, gained (over the stored order), swaps, seconds,
        output_error (of all layers ordered together, kept weights as they are).
        """
        ends = self.to_frame().groupby("search", sort=False).tail(1).set_index("search")
        stored = self._case.traces["none"].steps[0].retained_share
        frame = ends[["retained_share", "swaps", "seconds"]]
        frame.insert(1, "gained", frame.retained_share - stored)
        errors = {name: trace.output_error for name, trace in self._case.traces.items()}
        return frame.assign(output_error=pd.Series(errors)).reset_index()

    def groups(self) -> pd.DataFrame:
        """Which channels sit together, as stored and at the present step.

        Columns: channel, rank (by mean score, 1 the best), group_stored, group_now, position_now.
        """
        m = Pattern.parse(self.settings["pattern"]).m
        channel = np.arange(len(self._case.rank))
        position = self._step.order.inverse.cpu().numpy()
        return pd.DataFrame(
            {
                "channel": channel,
                "rank": self._case.rank,
                "group_stored": channel // m,
                "group_now": position // m,
                "position_now": position,
            }
        )

    @property
    def _trace(self) -> Trace:
        return self._case.traces[self.settings["search"]]

    @property
    def _step(self) -> SearchStep:
        return self._trace.steps[self.settings["step"]]

    @property
    def _case(self) -> _Case:
        """The layers under the present settings, all searches run."""
        s = self.settings
        layer = self.reading.layer(s["block"], s["role"])
        group = next(g for g in self.reading.blocks[s["block"]].groups if layer in g.layers)
        names = [layer] if s["scope"] == "layer" else list(group.layers)
        key = (*names, s["method"], s["pattern"])
        if key not in self._cases:
            case = self._scored(names)
            self._run(case)
            self._cases = {key: case}  # matrices may be large: only the latest are kept
        if reason := self._cases[key].refused.get(s["search"]):
            raise InputError(reason)
        return self._cases[key]

    def _scored(self, names: list[str]) -> _Case:
        s = self.settings
        method = make_method(s["method"])
        stats = self._stats(names[0])
        self.reading.weight(s["block"], s["role"])  # refuses weights that have changed
        weights = [self.reading.blocks[s["block"]].layers[name].weight for name in names]
        axis = method.group_axis(stats)
        scores = [method.score(weight, stats) for weight in weights]
        stacked = torch.cat([x.T if axis == "out" else x for x in scores])
        mean = pd.Series(stacked.mean(dim=0, dtype=torch.float64).cpu().numpy())
        rank = mean.rank(ascending=False, method="first").to_numpy(int)
        return _Case(names, weights, stacked, axis, rank)

    def _stats(self, layer: str) -> LayerStats | None:
        s = self.settings
        needs = make_method(s["method"]).needs
        if needs is None:
            return None
        if needs.output_norm:  # what another layer of the block reads
            stats = self.reading.block_stats(s["block"], needs, self.say)[layer]
            if stats.n_tokens:
                return stats
        return self.reading.stats(s["block"], s["role"], needs, self.say)

    def _run(self, case: _Case) -> None:
        """Run every search, and take what the mask it ends with does to the outputs."""
        s = self.settings
        pattern = Pattern.parse(s["pattern"])
        x = self.reading.inputs(s["block"], s["role"], self.say).flatten(0, -2).float()
        whole = [x @ weight.float().T for weight in case.weights]
        energy = sum(float(y.double().square().sum()) for y in whole)
        stored = SearchStep(
            ChannelOrder.identity(case.scores.shape[1], case.scores.device),
            0,
            retained_share(case.scores, pattern),
        )
        for name, search in SEARCHES.items():
            steps, seconds = [stored], [0.0]
            started = time.perf_counter()
            try:
                for step in search_steps(case.scores, pattern, search):
                    if not torch.equal(step.order.index, steps[-1].order.index):
                        steps.append(step)
                        seconds.append(time.perf_counter() - started)
                    self.say(f"search {name}: {step.swaps:,} swaps")
            except InputError as error:
                case.refused[name] = f"{name}: {error}"
                continue
            mask = ordered_mask(case.scores, pattern, steps[-1].order)
            parts = mask.split([w.shape[case.axis == "out"] for w in case.weights])
            lost = 0.0
            for weight, part, y in zip(case.weights, parts, whole, strict=True):
                kept = weight * (part.T if case.axis == "out" else part)
                lost += float((y - x @ kept.float().T).double().square().sum())
            case.traces[name] = Trace(steps, seconds, lost / energy if energy else 0.0)

    # --- the figure ------------------------------------------------------------------------------

    def draw(self) -> go.Figure:
        """Scores, masks and groups as stored and now, the gain curve, and all searches' ends."""
        case, s = self._case, self.settings
        trace = self._trace
        self._last = len(trace.steps) - 1
        self._shape = tuple(case.scores.shape)
        s["step"] = min(s["step"], self._last)
        for name, size in zip(("rows", "channels"), self._shape, strict=True):
            first, end = s[name]
            s[name] = min(first, size - 1), min(max(end, 1), size)
        figure = Sketch(_grid())
        orders = (trace.steps[0].order, self._step.order)
        self._add_curve(figure)
        self._add_table(figure)
        cell, rows = self._add_pictures(figure, orders)
        self._lay_out_pictures(figure, cell, rows)
        balanced = self._add_groups(figure, orders)
        return figure.finish(
            title=self._headline(),
            caption=self._caption(balanced),
            plot_height=_HEIGHT,
            notes=self._notes(cell, len(rows)),
            panel_titles=True,
            right=96,
        )

    def _add_pictures(
        self, figure: Sketch, orders: tuple[ChannelOrder, ChannelOrder]
    ) -> tuple[int, np.ndarray]:
        """Panels (b) to (e); returns channels in a cell and the rows drawn."""
        case, s = self._case, self.settings
        pattern = Pattern.parse(s["pattern"])
        first, end = s["channels"]
        n_rows = min(s["rows"][1] - s["rows"][0], CELLS[0])
        # Not the rows' own numbers: a browser draws even spacing three times as fast.
        even = np.linspace(s["rows"][0], s["rows"][1] - 1, n_rows)
        rows = np.floor(even + 0.5).astype(int)
        cell = 1
        if end - first > CELLS[1]:  # whole groups, whose mask says little: what it drops says more
            cell = pattern.m * math.ceil((end - first) / CELLS[1] / pattern.m)
        some = case.scores[torch.as_tensor(rows, device=case.scores.device)]
        scores, masks = [], []
        for order in orders:
            here = some[:, order.index]
            mask = nm_mask(here, pattern)[:, first:end]
            here = here[:, first:end]
            whole = _means(here, cell)
            dropped = _means(here * ~mask, cell) / np.where(whole > 0, whole, 1)
            scores.append(whole)
            masks.append(mask.cpu().numpy().astype(np.float32) if cell == 1 else 100 * dropped)
        both = np.stack(scores)
        floor = float(np.quantile(both[both > 0], 0.02)) if (both > 0).any() else 1.0
        high = max(float(both.max()), floor * 1.3)
        for col, (score, mask, order) in enumerate(zip(scores, masks, orders, strict=True), 1):
            channels = order.index[first:end].cpu().numpy().astype(np.float32)
            near = np.stack([score, np.broadcast_to(channels, score.shape)], -1) if cell == 1 else 0
            drawn = (
                (np.log10(np.maximum(score, floor)), score, "score %{customdata:.4g}")
                if cell > 1
                else (
                    np.log10(np.maximum(score, floor)),
                    near,
                    "channel %{customdata[1]}<br>score %{customdata[0]:.4g}",
                ),
                (mask, None, "%{z:.1f} % of the score dropped" if cell > 1 else "kept: %{z}"),
            )
            for row, (z, custom, hover) in enumerate(drawn, start=2):
                figure.add_trace(
                    "heatmap",
                    z=z,
                    x0=first + (cell - 1) / 2,
                    dx=cell,
                    y=even,
                    customdata=custom,
                    coloraxis="coloraxis" if row == 2 else "coloraxis2",
                    hovertemplate=f"row %{{y:,.0f}}, position %{{x}}<br>{hover}<extra></extra>",
                    row=row,
                    col=col,
                )
        bar = {"thickness": 12, "outlinewidth": 0, "x": 1.01, "len": 0.26, "yanchor": "middle"}
        title = {"side": "right", "font": {"size": 12}}
        ticks = log_axis([floor, high])
        figure.update_layout(
            coloraxis={
                "colorscale": SEQUENTIAL,
                "cmin": math.log10(floor),
                "cmax": math.log10(high),
                "colorbar": bar
                | {
                    "y": 0.63,
                    "title": title | {"text": LABELS["score"]},
                    "tickvals": np.log10(ticks["tickvals"]),
                    "ticktext": ticks["ticktext"],
                },
            },
            coloraxis2={
                "colorscale": [[0, _REMOVED], [0.5, _REMOVED], [0.5, _KEPT], [1, _KEPT]],
                "cmin": 0,
                "cmax": 1,
                "colorbar": bar
                | {"y": 0.29, "tickvals": [0.25, 0.75], "ticktext": ["dropped", "kept"]},
            }
            if cell == 1
            else {
                "colorscale": [[0, "#FFFFFF"], [1, _LOST]],
                "cmin": 0,
                "cmax": max(float(np.max(masks)), 1e-6),
                "colorbar": bar
                | {"y": 0.29, "ticksuffix": " %", "title": title | {"text": "score dropped"}},
            },
        )
        return cell, rows

    def _lay_out_pictures(self, figure: Sketch, cell: int, rows: np.ndarray) -> None:
        """Titles and axes of (b) to (e); lines between groups, and between layers."""
        case, s = self._case, self.settings
        m = Pattern.parse(s["pattern"]).m
        first, end = s["channels"]
        low, high = rows[0] - 0.5, rows[-1] + 0.5
        words = "kept of" if cell == 1 else "share of the score dropped from"
        now = f"step {s['step']}"
        titles = (
            "(b) score, as stored",
            f"(c) score, {now}",
            f"(d) {words} (b)",
            f"(e) {words} (c)",
        )
        ends = np.cumsum([w.shape[case.axis == "out"] for w in case.weights])
        edges = range(-(-first // m) * m, end, m)
        lines = {" ".join(f"M{first - 0.5},{e - 0.5}H{end - 0.5}" for e in ends[:-1]): 2}
        if cell == 1 and len(edges) <= 32:
            lines[" ".join(f"M{e - 0.5},{low}V{high}" for e in edges)] = 1
        shapes = []
        for i, text in enumerate(titles):
            panel_title(figure, text, row=i // 2 + 2, col=i % 2 + 1)
            line = INK if cell > 1 and i > 1 else "white"  # white means that nothing is dropped
            axes = {axis: f"{axis[0]}{i + 2}" for axis in ("xref", "yref")}
            shapes += [
                {"type": "path", "path": path, **axes, "line": {"color": line, "width": width}}
                for path, width in lines.items()
                if path
            ]
        figure.update_layout(shapes=shapes)
        names = {"title": {"text": "row (index)"}}
        if len(ends) > 1:
            parts = [
                (max(a, low), min(b, high), name.rpartition(".")[2])
                for a, b, name in zip([0, *ends[:-1]], ends, case.names, strict=True)
            ]
            seen = [((a + b) / 2, plain(name, 14)) for a, b, name in parts if a < b]
            names = {
                "tickvals": [place for place, _ in seen],
                "ticktext": [name for _, name in seen],
                "tickangle": -90,
            }
        pictures = {"showgrid": False, "range": [high, low]}
        for row in (2, 3):
            figure.update_xaxes(showgrid=False, range=[first - 0.5, end - 0.5], row=row)
            figure.update_yaxes(**pictures, **names, row=row, col=1)
            figure.update_yaxes(**pictures, showticklabels=False, ticks="", row=row, col=2)
        figure.update_xaxes(title={"text": LABELS["slot"], "standoff": 2}, row=3)

    def _add_groups(self, figure: Sketch, orders: tuple[ChannelOrder, ChannelOrder]) -> list[float]:
        """Panels (f) and (g); returns the share of groups with N of the channels to be kept."""
        pattern = Pattern.parse(self.settings["pattern"])
        rank = self._case.rank
        size = len(rank)
        balanced = []
        for col, order in enumerate(orders, start=1):
            # Fillers of the last group rank behind every channel, and are not drawn.
            channels = np.full(-(-size // pattern.m) * pattern.m, -1)
            channels[:size] = order.index.cpu().numpy()
            channels = channels.reshape(-1, pattern.m)
            ranks = np.where(channels < 0, size + 1, rank[channels])
            inside = (ranks <= pattern.n * size // pattern.m).sum(axis=1)
            balanced.append(float((inside == pattern.n).mean()))
            by_rank = ranks.argsort(axis=1, kind="stable")
            ranks = np.take_along_axis(ranks, by_rank, axis=1).astype(np.float32)
            channels = np.take_along_axis(channels, by_rank, axis=1).astype(np.float32)
            drawn = thinned(pd.DataFrame({"group": range(len(ranks))}), GROUPS).group
            figure.add_trace(
                "heatmap",
                z=np.where(ranks > size, np.nan, -ranks)[drawn].T,
                x=drawn,
                customdata=np.stack([channels, ranks], -1)[drawn].swapaxes(0, 1),
                coloraxis="coloraxis3",
                hoverongaps=False,
                hovertemplate="group %{x}: channel %{customdata[0]}<br>rank %{customdata[1]} by "
                "mean score<extra></extra>",
                row=4,
                col=col,
            )
        panel_title(figure, "(f) ranks of each group's channels, as stored", row=4, col=1)
        panel_title(figure, f"(g) the same, step {self.settings['step']}", row=4, col=2)
        figure.update_xaxes(title={"text": "group (index)", "standoff": 2}, showgrid=False, row=4)
        figure.update_yaxes(
            autorange="reversed", showgrid=False, showticklabels=False, ticks="", row=4
        )
        figure.update_layout(
            coloraxis3={
                "colorscale": SEQUENTIAL,
                "cmin": -size,
                "cmax": -1,
                "colorbar": {
                    **{"thickness": 12, "outlinewidth": 0, "x": 1.01, "y": 0.045, "len": 0.12},
                    **{"tickvals": [-1, -size], "ticktext": ["best", "least"]},
                },
            }
        )
        return balanced

    def _add_curve(self, figure: Sketch) -> None:
        """Panel (a): the share kept, over steps, swaps or seconds."""
        s = self.settings
        over = s["against"]
        frame = self.to_frame()
        furthest = frame[over].max()
        place = looks(SEARCHES, SEARCH_LOOKS)
        common = {"showlegend": False, "row": 1, "col": 1}
        for name in SEARCHES:
            color = OKABE_ITO[place[name]]
            one = frame[frame.search == name]
            end = one.tail(1)  # empty for a search that cannot run: its traces stay in their place
            # Searches share their first steps: what tells them apart is where they end.
            figure.add_trace(
                "scatter",
                x=[*end[over], *[furthest] * len(end)],
                y=[*100 * end.retained_share] * 2,
                mode="lines+text",
                text=["", f"  {plain(name)}"],
                textposition="bottom right" if name == "none" else "top right",
                textfont={"color": color},
                cliponaxis=False,
                line={"color": color, "width": 1.5, "dash": "dot"},
                hoverinfo="skip",
                **common,
            )
            figure.add_trace(
                "scatter",
                x=one[over],
                y=100 * one.retained_share,
                mode="lines+markers",
                line={"color": color, "width": 2},
                marker={"color": color, "size": 5},
                customdata=one[["step", "swaps", "seconds"]].to_numpy(float),
                hovertemplate=f"{plain(name)}, step %{{customdata[0]}}<br>%{{customdata[1]:,}} "
                "swaps, %{customdata[2]:.2f} s<br>retained %{y:.3f} %<extra></extra>",
                **common,
            )
        now = frame[(frame.search == s["search"]) & (frame.step == s["step"])]
        figure.add_trace(
            "scatter",
            x=now[over],
            y=100 * now.retained_share,
            mode="markers",
            marker={"color": _LOST, "size": 13, "symbol": "circle-open", "line": {"width": 3}},
            hoverinfo="skip",
            **common,
        )
        panel_title(figure, "(a) retained score; ring: the step shown", row=1, col=1)
        reach = [-0.03 * furthest, (furthest or 1) * 1.22]
        figure.update_xaxes(title={"text": AGAINST[over]}, range=reach, row=1, col=1)
        figure.update_yaxes(title={"text": "retained (%)"}, row=1, col=1)

    def _add_table(self, figure: Sketch) -> None:
        """The searches' ends, as a table."""
        frame = self.comparison()
        place = looks(SEARCHES, SEARCH_LOOKS)
        columns = {
            "search": [plain(name) for name in frame.search],
            "retained": [f"{v:.2%}" for v in frame.retained_share],
            "gain (pp)": [f"{100 * v:+.2f}" for v in frame.gained],
            "error": [f"{v:.2%}" for v in frame.output_error],
            "swaps": [f"{v:,}" for v in frame.swaps],
            "seconds": [f"{v:.2f}" for v in frame.seconds],
        }
        colors = [[OKABE_ITO[place[name]] for name in frame.search], *[[INK]] * 5]
        look = {"align": ["left", *["right"] * 5], "height": 26, "line": {"color": GRID}}
        figure.add_trace(
            "table",
            columnwidth=[1.15, 1.1, 1.1, 1.1, 0.8, 1],
            header={"values": [*columns], "fill": {"color": "#F2F2F2"}, "font_size": 12} | look,
            cells={
                "values": [*columns.values()],
                "fill": {"color": "white"},
                "font": {"color": colors, "size": 12},
            }
            | look,
            row=1,
            col=2,
        )

    def _headline(self) -> str:
        case, s, step = self._case, self.settings, self._step
        stored = self._trace.steps[0].retained_share
        more = f" and {len(case.names) - 1} more" if len(case.names) > 1 else ""
        return (
            f"{case.names[0]}{more}: the {s['pattern']} mask keeps {stored:.2%} of the score as "
            f"stored, {step.retained_share:.2%} at step {s['step']} of {s['search']} "
            f"({step.swaps:,} swaps)"
        )

    def _caption(self, balanced: list[float]) -> str:
        s = self.settings
        pattern = Pattern.parse(s["pattern"])
        channels = "output" if self._case.axis == "out" else "input"
        return (
            f"{self.reading.loaded.name}; {self.reading.text}; scores of {s['method']}. Groups with"
            f" exactly {pattern.n} of the strongest {pattern.n}/{pattern.m} of the {channels} "
            f"channels: {balanced[0]:.0%} as stored, {balanced[1]:.0%} at step {s['step']} of "
            f"{self._last}. Output error: kept weights as they are."
        )

    def _notes(self, cell: int, n_rows: int) -> list[str]:
        s, case = self.settings, self._case
        (top, bottom), (first, end) = s["rows"], s["channels"]
        total = self._shape
        notes = [
            f"In view: rows {top} to {bottom - 1} of {total[0]:,}, positions {first} to {end - 1} "
            f"of {total[1]:,}"
            + (f"; a cell is {cell} positions wide" if cell > 1 else "")
            + (f"; {n_rows} rows drawn, evenly spaced" if n_rows < bottom - top else "")
            + "."
        ]
        if (n_groups := -(-total[1] // Pattern.parse(s["pattern"]).m)) > GROUPS:
            notes.append(f"(f), (g): {GROUPS} of {n_groups:,} groups.")
        return [*notes, *(f"Not run: {reason}" for reason in case.refused.values())]


@cache
def _grid() -> go.Figure:
    return make_subplots(
        rows=4,
        cols=2,
        specs=[[{}, {"type": "domain"}], [{}, {}], [{}, {}], [{}, {}]],
        row_heights=[0.25, 0.32, 0.32, 0.11],
        horizontal_spacing=0.09,
        vertical_spacing=0.075,
    )


def _means(matrix: Tensor, width: int) -> np.ndarray:
    """Means over cells of `width` columns; the last cell may be narrower."""
    pooled = torch.nn.functional.avg_pool2d(
        matrix[None].float(), (1, width), ceil_mode=True, count_include_pad=False
    )
    return pooled[0].cpu().numpy()
