"""Recipe: choose how to prune; the score kept is predicted at once, perplexity is measured."""

import asyncio
import html
from collections.abc import Callable
from functools import cache
from typing import get_args

import ipywidgets as W
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor
from tqdm.std import tqdm

from esparse_lab.errors import InputError
from esparse_lab.experiments import ladder_table
from esparse_lab.explorers.controls import Control, Menu, Words
from esparse_lab.explorers.method_fields import MethodFields, Switch, method_from, written
from esparse_lab.explorers.panel import Panel
from esparse_lab.explorers.prediction import Prediction, Predictor
from esparse_lab.explorers.reading import Reading
from esparse_lab.explorers.sketch import Sketch
from esparse_lab.explorers.trial import Cancelled, Trial, running_on
from esparse_lab.figures.style import (
    GRID,
    GUIDE,
    INK,
    LABELS,
    OKABE_ITO,
    SEQUENTIAL,
    checked,
    log_axis,
    panel_title,
    plain,
)
from esparse_lab.masks import parse_sparsity
from esparse_lab.methods import METHODS, make_method
from esparse_lab.models import LoadedModel
from esparse_lab.permutation import SEARCHES
from esparse_lab.pruning import Calibration
from esparse_lab.pruning import Recipe as PruningRecipe
from esparse_lab.recipes import recipe_of

DRAWN = 12  # runs in the figure's list and table; the rest are in `to_frame`
_KEYS = ["method", "settings", "pattern", "search", "calibration", "reconstruct", "allocation"]
_COLUMNS = [*_KEYS, "dense", "perplexity", "retained_share", "output_error", "prune_seconds"]
_COLUMNS += ["eval_seconds"]
_ABOVE, _BETWEEN = 280, 76  # pixels
_CHOSEN, _OTHERS = OKABE_ITO[1], OKABE_ITO[0]


class Recipe(Panel):
    """A recipe: the score it is expected to keep, and on demand the perplexity it leads to.

    Runs are kept beside each other. A run prunes the model in another thread and puts its weights
    back. Until then other explorers of the model are refused; cells that read the model would see
    weights being pruned.
    """

    def __init__(
        self,
        loaded: LoadedModel | Reading,
        tokens: Tensor | None,
        test: Tensor,
        *,
        method: str = "esparse",
        method_settings: str = "",
        pattern: str = "2:4",
        search: str = "none",
        calibration: Calibration = "sequential",
        reconstruct: bool = False,
        runs: pd.DataFrame | None = None,
    ):
        """Measure every layer's channels once, and predict.

        Args:
            loaded: the model; or a `Reading` that explorers share, which brings its tokens.
            tokens: calibration tokens, int64 [sequence, position]; None with a `Reading`.
            test: tokens that perplexity is measured on, int64 [window, position].
            method: in `METHODS`.
            method_settings: those that differ from the defaults, such as "alpha=2.0,form=sum".
            pattern: such as "2:4" or "50%".
            search: in `SEARCHES`; for N:M patterns alone.
            calibration: where statistics come from when pruning; see `pruning.Recipe`.
            reconstruct: solve for the kept weights.
            runs: rows of a `perplexity_ladder` on the same tokens, to compare with.

        Raises:
            InputError: a value that does not fit; suggests.
        """
        self.reading = Reading.of(loaded, tokens)
        self._test = test
        self._predictor = Predictor(self.reading)
        self._predicted: dict[tuple, Prediction | None] = {}
        self._runs = None if runs is None else checked(runs, _COLUMNS, "Recipe").copy()
        self._trial: Trial | None = None
        self._texts: dict[str, str] = {}  # what `settings` of a run says, in short
        self._row: W.Box | None = None
        super().__init__(
            {
                "method": method,
                "method_settings": method_settings,
                "pattern": pattern,
                "search": search,
                "calibration": calibration,
                "reconstruct": reconstruct,
            }
        )

    def controls(self) -> dict[str, Control]:
        """Method with its settings, pattern, search, calibration, reconstruction."""
        return {
            "method": Menu("method", tuple(METHODS)),
            "method_settings": MethodFields("settings", lambda: self.settings["method"]),
            "pattern": Words("pattern", parse_sparsity),
            "search": Menu("shuffle", tuple(SEARCHES)),
            "calibration": Menu("calibration", get_args(Calibration)),
            "reconstruct": Switch("reconstruct"),
        }

    def set(self, **changes) -> None:
        """As `Panel.set`; another method starts from its defaults."""
        if changes.get("method", self.settings["method"]) != self.settings["method"]:
            changes = {"method_settings": ""} | changes
        super().set(**changes)

    @property
    def recipe(self) -> PruningRecipe:
        """The recipe chosen; raises `InputError` where its parts do not go together."""
        s = self.settings
        return recipe_of(
            method_from(s["method"], s["method_settings"]),
            pattern=s["pattern"],
            search=s["search"],
            calibration=s["calibration"],
            reconstruct=s["reconstruct"],
        )

    def to_frame(self) -> pd.DataFrame:
        """All runs: the columns of `perplexity_ladder`, the dense model first; empty before any."""
        return pd.DataFrame(columns=_COLUMNS) if self._runs is None else self._runs.copy()

    def predicted(self) -> pd.DataFrame | None:
        """Columns layer, block, role, retained_share; None where only pruning can tell."""
        prediction = self._prediction()
        return None if prediction is None else prediction.layers

    # --- runs ------------------------------------------------------------------------------------

    def run(self) -> pd.DataFrame:
        """Measure the chosen recipe here and now; returns all runs.

        Raises:
            InputError: the model is busy with another run.
        """
        with tqdm(bar_format="{desc}", desc=self._what()) as bar:
            rows = self._new_trial().measure(
                lambda stage, done, of: bar.set_description_str(f"{stage} {done + 1} of {of}")
            )
        self._keep(rows)
        super().set()
        return self.to_frame()

    def start(self) -> None:
        """Measure the chosen recipe in another thread, watched below the figure.

        Raises:
            InputError: the model is busy with another run.
        """
        hand_over = _to_this_thread()
        assert self.widget is not None  # built here, not by the thread
        trial = self._new_trial()

        def told(stage: str, done: int, of: int) -> None:
            self._bar.value = done / of
            self._say_below(f"{trial.what}: {stage} {done + 1} of {of}")

        trial.start(told, lambda rows, error: hand_over(lambda: self._ended(trial, rows, error)))
        self._trial = trial
        self._run_button.disabled, self._cancel_button.disabled = True, False

    def cancel(self) -> None:
        """End the run on this model, also one that another explorer started."""
        trial = running_on(self.reading.loaded.model)
        if trial is None:
            raise InputError("No run to cancel.")
        trial.cancel()
        self._say_below("cancelling…")

    def join(self) -> None:
        """Wait until the run of this explorer has ended."""
        if self._trial is not None:
            self._trial.join()

    def below(self) -> list[W.Widget]:
        """Buttons and progress."""
        if self._row is None:
            self._run_button = W.Button(
                description="Measure perplexity",
                button_style="primary",
                icon="play",
                layout={"width": "auto"},
            )
            self._cancel_button = W.Button(description="Cancel", icon="stop", disabled=True)
            self._bar = W.FloatProgress(min=0, max=1, layout={"width": "220px"})
            self._news = W.HTML()
            self._run_button.on_click(lambda _: self._clicked(self.start))
            self._cancel_button.on_click(lambda _: self._clicked(self.cancel))
            self._row = W.HBox(
                [self._run_button, self._cancel_button, self._bar, self._news],
                layout={"align_items": "center", "flex_flow": "row wrap"},
            )
        return [self._row]

    def _clicked(self, action: Callable[[], None]) -> None:
        with self._guarded():
            try:
                action()
            except InputError as error:
                self._say_below(str(error))  # beside the button, too: a panel is tall
                # What another explorer runs can be cancelled from here.
                self._cancel_button.disabled = running_on(self.reading.loaded.model) is None
                raise

    def _new_trial(self) -> Trial:
        reading = self.reading
        return Trial(reading.loaded, reading.tokens, self._test, self.recipe, self._what())

    def _ended(self, trial: Trial, rows: list[dict], error: Exception | None) -> None:
        """Show what a run in another thread came to."""
        self._run_button.disabled, self._cancel_button.disabled = False, True
        self._bar.value = 0
        if isinstance(error, Cancelled):
            self._say_below(f"cancelled: {trial.what}; the weights are as they were")
            return
        with self._guarded():
            self._say_below(f"failed: {trial.what}" if error else f"done: {trial.what}")
            if error is not None:
                raise error
            self._keep(rows)
            super().set()

    def _keep(self, rows: list[dict]) -> None:
        """Add a run; the same recipe again takes the old one's place."""
        new = ladder_table(rows)
        if self._runs is not None:
            new = pd.concat([self._runs, new]).drop_duplicates([*_KEYS, "dense"], keep="last")
        self._runs = new.sort_values("dense", ascending=False, kind="stable", ignore_index=True)

    def _say_below(self, text: str) -> None:
        self._news.value = html.escape(text)

    def _what(self) -> str:
        s = self.settings
        return _label(s["method"], s["method_settings"], s["pattern"], s["search"]) + (
            " + reconstruct" if s["reconstruct"] else ""
        )

    # --- the figure ------------------------------------------------------------------------------

    def draw(self) -> go.Figure:
        """Predicted score by layer; perplexity of the runs; their table."""
        recipe = self.recipe
        text = written(recipe.method)
        self.settings["method_settings"] = self._texts[repr(recipe.method)] = text
        prediction = self._prediction()
        runs = self.to_frame()
        chosen = self._is_chosen(runs, recipe)
        heights = (
            _ABOVE,
            24 * min(len(runs), DRAWN + 1) + 54,
        )  # a heading of two lines, on a narrow page
        figure = Sketch(_grid(heights))
        self._add_prediction(figure, prediction)
        self._add_runs(figure, runs, chosen)
        self._add_table(figure, runs, chosen)
        return figure.finish(
            title=self._headline(prediction, runs[chosen]),
            caption=self._caption(prediction),
            plot_height=sum(heights) + _BETWEEN,
            panel_titles=True,
            right=40,
        )

    def _prediction(self) -> Prediction | None:
        recipe = self.recipe
        key = (recipe.method, recipe.pattern, recipe.search)
        if key not in self._predicted:
            self._predicted[key] = self._predictor.predict(*key, self.say)
        return self._predicted[key]

    def _is_chosen(self, runs: pd.DataFrame, recipe: PruningRecipe) -> pd.Series:
        """Which of the runs are of this recipe."""
        wanted = {**self.settings, "settings": repr(recipe.method), "allocation": ""}
        chosen = ~runs.dense.astype(bool)
        for key in _KEYS:
            chosen &= runs[key] == wanted[key]
        return chosen

    def _add_prediction(self, figure: Sketch, prediction: Prediction | None) -> None:
        title = "(a) score that stays in each layer, predicted"
        z, roles, blocks, names = [[None]], [""], [0], [[""]]
        if prediction is not None:
            cells = prediction.layers.pivot(index="role", columns="block", values="retained_share")
            cells = cells.reindex(self.reading.roles)
            layers = prediction.layers.pivot(index="role", columns="block", values="layer")
            z, roles, blocks = 100 * cells.to_numpy(float), [*cells.index], cells.columns
            names = layers.reindex(self.reading.roles).fillna("").to_numpy()
        figure.add_trace(
            "heatmap",
            z=z,
            x=blocks,
            y=roles,
            customdata=names,
            coloraxis="coloraxis",
            hoverongaps=False,
            hovertemplate="%{customdata}<br>%{z:.2f} % of the score<extra></extra>",
            row=1,
            col=1,
        )
        panel_title(figure, title, row=1, col=1)
        figure.update_xaxes(title={"text": LABELS["block"]}, showgrid=False, row=1, col=1)
        figure.update_yaxes(autorange="reversed", showgrid=False, row=1, col=1)
        figure.update_layout(
            coloraxis={
                "colorscale": SEQUENTIAL,
                "colorbar": {
                    **{"thickness": 12, "outlinewidth": 0, "x": 0.405, "y": 1, "yanchor": "top"},
                    **{"len": _ABOVE, "lenmode": "pixels"},
                    "ticksuffix": " %",
                },
                "showscale": prediction is not None,
            }
        )
        if prediction is None:
            figure.update_xaxes(showticklabels=False, ticks="", row=1, col=1)
            figure.update_yaxes(ticks="", row=1, col=1)
            self._say_in(figure, "x", "Its mask is not its score's:<br>prune to see.")

    def _add_runs(self, figure: Sketch, runs: pd.DataFrame, chosen: pd.Series) -> None:
        """Panel (b): perplexity of the latest runs, the dense model's as a line."""
        pruned = runs[~runs.dense.astype(bool)].tail(DRAWN)
        figure.add_trace(
            "scatter",
            x=pruned.perplexity,
            y=[f"{number}" for number in pruned.index],
            mode="markers+text",
            text=[f"{value:,.1f}" for value in pruned.perplexity],
            textposition="middle right",
            marker={
                "size": 10,
                "color": [_CHOSEN if here else _OTHERS for here in chosen[pruned.index]],
            },
            customdata=[self._short(run) for run in pruned.itertuples()],
            hovertemplate="%{customdata}<br>perplexity %{x:.2f}<extra></extra>",
            showlegend=False,
            row=1,
            col=2,
        )
        panel_title(figure, "(b) perplexity of the runs, by number", row=1, col=2)
        dense = runs[runs.dense.astype(bool)].perplexity
        figure.update_yaxes(
            type="category", autorange="reversed", title={"text": "run"}, row=1, col=2
        )
        figure.update_xaxes(title={"text": LABELS["perplexity"]}, row=1, col=2)
        if len(pruned) == 0:
            self._say_in(figure, "x2", "No run yet: press “Measure perplexity”.")
            figure.update_xaxes(showticklabels=False, showgrid=False, ticks="", row=1, col=2)
            figure.update_yaxes(title={"text": None}, ticks="", row=1, col=2)
            return
        axis = log_axis([*pruned.perplexity, *dense], headroom=0.18)
        figure.update_xaxes(**axis, row=1, col=2)
        for value in dense:
            line = {"color": GUIDE, "width": 1.5, "dash": "dash"}
            ends = {"x0": value, "x1": value, "y0": 0, "y1": 1}
            place = {"type": "line", "xref": "x2", "yref": "y2 domain"}
            figure.layout["shapes"].append({**place, **ends, "line": line})

    def _add_table(self, figure: Sketch, runs: pd.DataFrame, chosen: pd.Series) -> None:
        """The runs, latest first, the dense model last."""
        shown = pd.concat(
            [runs[runs.dense.astype(bool)], runs[~runs.dense.astype(bool)].tail(DRAWN)]
        )
        shown = shown.iloc[::-1]
        dense = runs[runs.dense.astype(bool)].perplexity
        columns = {
            "run": [str(i) if not d else "" for i, d in zip(shown.index, shown.dense, strict=True)],
            "method": [
                plain(f"{run.method} {self._changed(run)}".strip(), 44)
                for run in shown.itertuples()
            ],
            "pattern": [*shown.pattern],
            "shuffle": [*shown.search],
            "calibration": [
                f"{run.calibration}{' + reconstruct' if run.reconstruct else ''}"
                for run in shown.itertuples()
            ],
            "perplexity": [f"{v:,.2f}" for v in shown.perplexity],
            "× dense": [
                f"{v / dense.iloc[0]:,.2f}" if len(dense) else "" for v in shown.perplexity
            ],
            "retained": [f"{v:.2%}" for v in shown.retained_share],
            "output error": [_or_dash(v, ".2%") for v in shown.output_error],
            "seconds": [
                f"{run.prune_seconds + run.eval_seconds:.1f}" for run in shown.itertuples()
            ],
        }
        color = [_CHOSEN if here else INK for here in chosen[shown.index]]
        look = {"align": ["left"] * 5 + ["right"] * 5, "height": 24, "line": {"color": GRID}}
        figure.add_trace(
            "table",
            columnwidth=[0.5, 2, 0.9, 1, 1.6, 1.1, 0.9, 1, 1.1, 0.9],
            header={"values": [*columns], "fill": {"color": "#F2F2F2"}, "font_size": 12} | look,
            cells={
                "values": [*columns.values()],
                "fill": {"color": "white"},
                "font": {"color": [color] * len(columns), "size": 12},
            }
            | look,
            row=2,
            col=1,
        )

    def _short(self, run) -> str:
        solved = " + reconstruct" if run.reconstruct else ""
        return plain(_label(run.method, self._changed(run), run.pattern, run.search) + solved)

    def _changed(self, run) -> str:
        """The settings of a run that are not the method's defaults."""
        if run.dense or run.settings == repr(make_method(run.method)):
            return ""
        return self._texts.get(run.settings, run.settings.partition("(")[2][:-1])

    def _say_in(self, figure: Sketch, axis: str, text: str) -> None:
        figure.add_annotation(
            text=text,
            x=0.5,
            y=0.5,
            xref=f"{axis} domain",
            yref=f"{axis.replace('x', 'y')} domain",
            showarrow=False,
        )

    def _headline(self, prediction: Prediction | None, runs: pd.DataFrame) -> str:
        kept = "only pruning tells what it keeps"
        if prediction is not None:
            mean = prediction.layers.retained_share.mean()
            kept = f"keeps about {mean:.2%} of the score (predicted)"
        found = "perplexity not measured yet"
        if len(runs):
            last = runs.iloc[-1]
            found = f"perplexity {last.perplexity:,.2f}, {last.retained_share:.2%} kept (measured)"
        return f"{self._what()}: {kept}; {found}"

    def _caption(self, prediction: Prediction | None) -> str:
        reading = self.reading
        text = (
            f"{reading.loaded.name}; {reading.text}; tested on {self._test.shape[0]} × "
            f"{self._test.shape[1]} tokens. "
        )
        if prediction is not None:
            text += (
                f"Predicted from the dense model's statistics: {prediction.sample}; the mean over "
                "layers. "
            )
        n_runs = int((~self.to_frame().dense.astype(bool)).sum())
        more = f" Shown: the latest {DRAWN} of {n_runs} runs." if n_runs > DRAWN else ""
        return f"{text}Retained and output error are means over layers; orange: this recipe.{more}"


def _to_this_thread() -> Callable[[Callable[[], None]], object]:
    """Has functions called in this thread where an event loop runs in it, else where they are."""
    try:
        return asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:
        return lambda function: function()


def _label(method: str, settings: str, pattern: str, search: str) -> str:
    words = f"{method}{f' ({settings})' if settings else ''} {pattern}"
    return words if search == "none" else f"{words} {search}"


def _or_dash(value: float, form: str) -> str:
    return "–" if np.isnan(value) else format(value, form)


@cache
def _grid(heights: tuple[int, int]) -> go.Figure:
    return make_subplots(
        rows=2,
        cols=2,
        specs=[[{}, {}], [{"type": "domain", "colspan": 2}, None]],
        column_widths=[0.5, 0.5],
        row_heights=heights,
        horizontal_spacing=0.2,
        vertical_spacing=_BETWEEN / (sum(heights) + _BETWEEN),
    )
