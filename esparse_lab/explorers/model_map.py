"""Model: every layer at once, one measure at a time; a cell opens an explorer of its layer."""

from collections.abc import Mapping
from dataclasses import dataclass

import ipywidgets as W
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from torch import Tensor
from tqdm.std import tqdm

from esparse_lab import tables
from esparse_lab.channel_stats import LayerStats, Needs
from esparse_lab.comparison import comparison_table, outcome_of
from esparse_lab.entropy import Histogram
from esparse_lab.errors import InputError
from esparse_lab.explorers.channels import Channels
from esparse_lab.explorers.controls import Control, Menu, Slider, Words
from esparse_lab.explorers.masks import Masks
from esparse_lab.explorers.panel import Panel
from esparse_lab.explorers.reading import Reading
from esparse_lab.explorers.shuffle import Shuffle
from esparse_lab.figures.style import INK, LABELS, SEQUENTIAL, finish
from esparse_lab.masks import parse_sparsity
from esparse_lab.methods import METHODS, make_method
from esparse_lab.models import LoadedModel

MOST_CELLS = 20_000
MOST_TEXTS = 500  # cells that carry their value
PLAIN = Needs(Histogram())  # what is measured of every layer


@dataclass(frozen=True)
class Measure:
    """What a cell can show.

    Attributes:
        column: of `Model.to_frame`.
        label: of the colour bar, with the unit.
        percent: a share, written as such.
        compares: needs the methods' masks; what does not is there at once.
        gram: needs Gram matrices, which take longest.
    """

    column: str
    label: str
    percent: bool = False
    compares: bool = False
    gram: bool = False

    def write(self, value: float) -> str:
        """A value with its unit."""
        return f"{value:.2%}" if self.percent else f"{value:.3g}"


MEASURES = {
    "entropy": Measure("entropy_median_nats", "median entropy (nats)"),
    "norm": Measure("norm_median", "median input norm (model units)"),
    "rank correlation": Measure("rank_correlation", LABELS["rank_correlation"]),
    "disagreement": Measure("disagreement", "masks differ (% of weights)", True, True),
    "retained score": Measure("retained_share", LABELS["retained_share"], True, True),
    "output error": Measure("output_error", "output error (% of energy)", True, True, True),
    "error difference": Measure(
        "error_difference", "output error against the other's (% points)", True, True, True
    ),
}
OPENS = {"nothing": None, "channels": Channels, "masks": Masks, "shuffle": Shuffle}
_HANDED_ON = {"masks": ("method", "other", "pattern"), "shuffle": ("method", "pattern")}


class Model(Panel):
    """A heat map of layers, block by projection; click a cell to open its layer below."""

    def __init__(
        self,
        loaded: LoadedModel | Reading,
        tokens: Tensor | None = None,
        *,
        measure: str = "entropy",
        method: str = "esparse",
        other: str = "wanda",
        pattern: str = "2:4",
        block: int = 0,
        role: str | None = None,
        opens: str = "nothing",
        stats: Mapping[str, LayerStats] | None = None,
    ):
        """Measure every layer and draw; entropies of the whole model take one forward.

        Args:
            loaded: the model; or a `Reading` that explorers share, which brings its tokens.
            tokens: calibration tokens, int64 [sequence, position].
            measure: a key of `MEASURES`.
            method: in `METHODS`; the one whose score and error are shown.
            other: in `METHODS`; what it is compared with.
            pattern: such as "2:4" or "50%".
            block: of the marked cell, counted from 0.
            role: of the marked cell; the first by default.
            opens: what a click opens below: a key of `OPENS`.
            stats: from `collect_layer_stats` on the same tokens, if there.

        Raises:
            InputError: a value that does not fit, or a model of too many layers to draw.
        """
        self.reading = Reading.of(loaded, tokens)
        n_cells = len(self.reading.blocks) * len(self.reading.roles)
        if n_cells > MOST_CELLS:
            raise InputError(
                f"{self.reading.loaded.name} has {len(self.reading.blocks)} blocks and "
                f"{len(self.reading.roles)} kinds of layers: {n_cells:,} cells are too many to "
                f"draw, at most {MOST_CELLS:,} are. Take the Channels explorer, layer by layer."
            )
        self._summary = None if stats is None else self._summarised(stats)
        self._compared: dict[tuple, pd.DataFrame] = {}
        self._opened: dict[str, Panel] = {}
        super().__init__(
            {
                "measure": measure,
                "method": method,
                "other": other,
                "pattern": pattern,
                "block": block,
                "role": self.reading.roles[0] if role is None else role,
                "opens": opens,
            }
        )

    def controls(self) -> dict[str, Control]:
        """Measure, methods, pattern, marked cell, what it opens."""
        return {
            "measure": Menu("measure", tuple(MEASURES)),
            "method": Menu("method", tuple(METHODS)),
            "other": Menu("compared with", tuple(METHODS)),
            "pattern": Words("pattern", parse_sparsity),
            "block": Slider("block", 0, len(self.reading.blocks) - 1),
            "role": Menu("layer", self.reading.roles),
            "opens": Menu("open below", tuple(OPENS)),
        }

    def to_frame(self) -> pd.DataFrame:
        """One row a layer: the columns of `layer_summary`.

        Where the measure compares, also those of `comparison_table` for the method, other_error,
        and error_difference (the method's less the other's).
        """
        if self._summary is None:
            stats = self.reading.all_stats(PLAIN, self._blocks("statistics"))
            self._summary = self._summarised(stats)
        if not MEASURES[self.settings["measure"]].compares:
            return self._summary
        return self._summary.merge(self._comparisons(), on="layer", how="left")

    def draw(self) -> go.Figure:
        """The heat map."""
        s = self.settings
        layer = self.reading.layer(s["block"], s["role"])
        measure = MEASURES[s["measure"]]
        frame = self.to_frame()
        if frame[measure.column].isna().all():
            raise InputError(f"No layer has a {s['measure']} on these tokens.")
        cells = frame.pivot(index="block", columns="role", values=measure.column)
        cells = cells.reindex(columns=list(self.reading.roles))
        shown = (100 if measure.percent else 1) * cells.to_numpy(float)
        # A few outliers would turn all other cells into one colour.
        low, high = np.nanquantile(shown, [0.02, 0.98])
        names = frame.pivot(index="block", columns="role", values="layer").reindex_like(cells)
        figure = go.Figure(
            go.Heatmap(
                z=shown,
                zmin=low,
                zmax=high,
                texttemplate="%{z:.3g}" if cells.size <= MOST_TEXTS else None,
                textfont={"size": 10},
                x=list(cells.columns),
                y=cells.index,
                customdata=names.fillna("").to_numpy(),
                colorscale=SEQUENTIAL,
                xgap=1,
                ygap=1,
                hoverongaps=False,
                hovertemplate="%{customdata}<br>%{z:.4g}<extra></extra>",
                colorbar={
                    "title": {"text": measure.label, "side": "right", "font": {"size": 13}},
                    "thickness": 14,
                    "outlinewidth": 0,
                },
            )
        )
        across = self.reading.roles.index(s["role"])
        figure.add_shape(
            type="rect",
            **{"x0": across - 0.5, "x1": across + 0.5},
            **{"y0": s["block"] - 0.5, "y1": s["block"] + 0.5},
            line={"color": "#D55E00", "width": 3},
        )
        figure.update_xaxes(side="bottom", showgrid=False, tickfont={"color": INK})
        figure.update_yaxes(title_text=LABELS["block"], autorange="reversed", showgrid=False)
        top = frame.nlargest(3, measure.column)
        highest = "; ".join(
            f"{one.layer} ({measure.write(getattr(one, measure.column))})"
            for one in top.itertuples()
        )
        value = frame.set_index("layer")[measure.column].get(layer, np.nan)
        return finish(
            figure,
            title=f"{self._what()}: highest in {top.layer.iloc[0]}",
            caption=f"{self.reading.loaded.name}; {self.reading.text}. Three highest: {highest}. "
            f"Mean over layers {measure.write(frame[measure.column].mean())}. Marked: {layer} "
            f"({measure.write(value)}).",
            plot_height=min(700, max(220, 18 * len(cells))),
            notes=["Colours span all but the outermost 2 % of the layers."],
            right=110,
        )

    def connect(self, plot: go.FigureWidget) -> None:
        """A click marks a cell, and opens its layer."""

        def clicked(_trace, points, _state) -> None:
            if points.point_inds:
                row, column = points.point_inds[0]
                opens = self.settings["opens"]
                opens = "channels" if opens == "nothing" else opens
                self.change(block=int(row), role=self.reading.roles[column], opens=opens)

        plot.data[0].on_click(clicked)

    def set(self, **changes) -> None:
        """As `Panel.set`; the explorer below follows the marked cell."""
        before = self.settings
        super().set(**changes)
        name = self.settings["opens"]
        place = {setting: self.settings[setting] for setting in ("block", "role")}
        try:
            if name in self._opened:
                self._opened[name].set(**place)
            elif name != "nothing":
                chosen = {s: self.settings[s] for s in _HANDED_ON.get(name, ())}
                self._opened[name] = OPENS[name](self.reading, **place, **chosen)
        except InputError:  # such as an order of channels where there are no groups
            super().set(**before)
            raise
        if self._face is not None:
            for each, panel in self._opened.items():
                panel.widget.layout.display = None if each == name else "none"
            self._arrange()

    def below(self) -> list[W.Widget]:
        """The opened explorers, of which one at most is shown; a view is not taken away."""
        return [panel.widget for panel in self._opened.values()]

    def _what(self) -> str:
        s = self.settings
        measure = MEASURES[s["measure"]]
        if s["measure"] == "disagreement":
            return f"Where the masks of {s['method']} and {s['other']} differ at {s['pattern']}"
        if s["measure"] == "error difference":
            return f"Output error of {s['method']} less that of {s['other']} at {s['pattern']}"
        what = s["measure"].capitalize()
        return f"{what} of {s['method']} at {s['pattern']}" if measure.compares else what

    def _blocks(self, what: str):
        """Block numbers, with progress where it can be seen."""
        n_blocks = len(self.reading.blocks)
        for index in tqdm(range(n_blocks), what, unit="block", disable=self._face is not None):
            self.say(f"{what}: block {index + 1} of {n_blocks}")
            yield index

    def _summarised(self, stats: Mapping[str, LayerStats]) -> pd.DataFrame:
        seen = {name: s for name, s in stats.items() if s.n_tokens}
        places = self.reading.places()
        frame = tables.layer_summary(tables.channel_table(seen))
        return frame.assign(
            block=[places[name][0] for name in frame.layer],
            role=[places[name][1] for name in frame.layer],
        )

    def _comparisons(self) -> pd.DataFrame:
        s = self.settings
        gram = MEASURES[s["measure"]].gram
        names = {"method": s["method"], "other": s["other"]}
        for known in (gram, True):
            if (*names.values(), s["pattern"], known) in self._compared:
                return self._compared[*names.values(), s["pattern"], known]
        methods = {which: make_method(name) for which, name in names.items()}
        wanted = [m.needs for m in methods.values() if m.needs is not None]
        gram = gram or any(n.gram for n in wanted)
        # Entropies are there already, and what is not needed costs nothing.
        needs = Needs(PLAIN.histogram, gram, any(n.output_norm for n in wanted))
        sparsity = parse_sparsity(s["pattern"])
        rows = []
        for index in self._blocks("masks"):
            stats = self.reading.block_stats(index, needs, self.say)
            for name, matrix in self.reading.blocks[index].layers.items():
                if not stats[name].n_tokens:
                    continue
                both = comparison_table(
                    {
                        which: outcome_of(method, matrix.weight, stats[name], sparsity)
                        for which, method in methods.items()
                    }
                ).set_index("method")
                rows.append(
                    both.loc["method"].to_dict()
                    | {
                        "layer": name,
                        "disagreement": both.disagreement["other"],
                        "other_error": both.output_error["other"],
                    }
                )
        frame = pd.DataFrame(rows)
        for column in ("output_error", "other_error"):
            frame[column] = frame[column].astype(float)
        frame["error_difference"] = frame.output_error - frame.other_error
        self._compared[*names.values(), s["pattern"], gram] = frame
        return frame
