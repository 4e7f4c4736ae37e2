"""What every explorer is: settings, a figure of them, a table, and how they are shown.

To write an explorer, derive from `Panel`:

- `controls()` lists the settings that the user can change, in order;
- `draw()` lays out the figure for `self.settings` as plotly's go.Figure, with the package's own
  tables and figures; it raises `InputError` for settings that do not go together;
- `to_frame()` returns the numbers behind the figure;
- `connect(plot)`, if needed, listens to clicks and selections: a listener calls `self.change(...)`.

Then call `super().__init__(settings)` last in `__init__`: it checks the settings and draws once, so
that a mistake is an exception where the explorer is made. Everything else is here: the live face
(controls, one FigureWidget, busy state, errors, the settings as text), the static twin that a
report keeps, and reading settings back from text.
"""

import ast
import asyncio
import html
import json
import shlex
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import ipywidgets as W
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import traitlets
from plotly.serializers import custom_serializers

from esparse_lab.errors import EsparseError, InputError, unknown
from esparse_lab.explorers.controls import Control

PLOTLY = "application/vnd.plotly.v1+json"
LEAST_WIDTH = "660px"  # a figure in a narrower window is scrolled sideways: its labels would meet
IDLE = 0.15  # seconds without a change, after which `ahead` is called

# The clipboard is the one thing that ipywidgets cannot reach; the text is beside the button anyway.
_COPY = (
    '<button class="jupyter-button widget-button lm-Widget" title="Copy these settings" '
    'data-text="{text}" onclick="navigator.clipboard.writeText(this.dataset.text);'
    "this.textContent='Copied'\">Copy</button>"
)
_READY = '<span style="color:#1b7a43">● ready</span> <span style="opacity:.7">{text}</span>'
_BUSY = '<span style="color:#b35c00">● working</span> {text}'
_ERROR = (
    '<div role="alert" style="border-left:4px solid #b3261e;padding:.3em .8em;background:#fdecea;'
    'color:#1a1a1a;line-height:1.4">{text}</div>'
)


def _to_browser(value: object, widget: W.Widget | None = None) -> object:
    """What plotly's serializer makes of a figure, but numbers of all arrays travel as bytes.

    Plotly writes int64 and all of a matrix as text, 1.6 MB for three pictures. Matrices go as rows;
    of narrow ones, which are many, text is less.
    """
    if isinstance(value, dict):
        return {key: _to_browser(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_to_browser(entry) for entry in value]
    if isinstance(value, np.ndarray) and value.ndim > 1 and value.shape[-1] > len(value) / 16:
        return [_to_browser(row) for row in value]
    if isinstance(value, np.ndarray) and value.dtype in (np.int64, np.uint64):
        value = value.astype(float)  # what JavaScript reads the text as
    return custom_serializers["to_json"](value, widget)


_SERIALIZERS = {**custom_serializers, "to_json": _to_browser}


class _Plot(go.FigureWidget):
    """A live figure that is sent quickly, and redraws once for a selection, not for each trace."""

    _widget_data = traitlets.List().tag(sync=True, **_SERIALIZERS)
    _py2js_update = traitlets.Dict(allow_none=True).tag(sync=True, **_SERIALIZERS)

    @traitlets.observe("_js2py_pointsCallback")
    def _handler_js2py_pointsCallback(self, change: dict) -> None:
        with self.batch_update():
            super()._handler_js2py_pointsCallback(change)


class Panel(ABC):
    """An explorer: shows itself live in a notebook, and as a figure in a report.

    Attributes:
        settings: the value of each setting, by name; change them with `set`.
    """

    def __init__(self, settings: Mapping[str, object]):
        """Check the settings, all of `controls()`, and draw."""
        self._controls = self.controls()
        self._widgets: dict[str, W.Widget] = {}
        self._plot: go.FigureWidget | None = None
        self._face: W.VBox | None = None
        self._refreshing = False
        self._idle: asyncio.TimerHandle | None = None
        self.settings = self._checked(settings)
        self._shown = self.draw()

    # --- what an explorer provides ---------------------------------------------------------------

    @abstractmethod
    def controls(self) -> dict[str, Control]:
        """The settings that can be changed, by name, in the order shown."""

    @abstractmethod
    def draw(self) -> go.Figure:
        """The figure for `self.settings`; may call `self.say` with what it is doing."""

    @abstractmethod
    def to_frame(self) -> pd.DataFrame:
        """The numbers behind the figure."""

    def connect(self, plot: go.FigureWidget) -> None:  # noqa: B027 - many have nothing to hear
        """Listen to `plot`; called once for each live figure."""

    def ahead(self) -> None:  # noqa: B027 - many have nothing to prepare
        """Prepare what a user may ask for next; called when the live face has been idle a while."""

    def below(self) -> list[W.Widget]:
        """Widgets under the figure."""
        return []

    # --- what a user calls -----------------------------------------------------------------------

    def figure(self) -> go.Figure:
        """The static figure of the present settings."""
        return go.Figure(self._shown)

    def set(self, **changes) -> None:
        """Change settings and redraw; on an error nothing changes.

        Raises:
            InputError: a setting or value that is not known or does not fit; suggests.
        """
        before = self.settings
        self.settings = {**before, **self._checked(changes)}
        try:
            self._shown = self.draw()
        except BaseException:
            self.settings = before
            raise
        finally:
            self._show_settings()
        self._show_figure()

    def apply(self, text: str) -> None:
        """Change the settings to those in `text`, as `parameters` writes them in either form.

        Raises:
            InputError: as `set`, or text that is neither form.
        """
        self.set(**_assignments(text))

    def parameters(self, form: Literal["options", "cell"] = "options") -> str:
        """The settings as text: "options" for a command line, "cell" for a parameters cell."""
        if form == "options":
            parts = (
                f"-p {name}={shlex.quote(control.write(self.settings[name]))}"
                for name, control in self._controls.items()
            )
            return " ".join(parts)
        if form == "cell":
            values = {n: self.settings[n] for n in self._controls}
            return "\n".join(
                f"{name} = {list(v) if isinstance(v, tuple) else v!r}" for name, v in values.items()
            )
        raise unknown("form of parameters", form, ("options", "cell"))

    def change(self, **changes) -> None:
        """`set` for listeners: shows that it works, and shows errors on the panel.

        Does nothing where nothing differs, or while the panel itself changes its widgets.
        """
        if self._refreshing:
            return
        with self._guarded():
            checked = self._checked(changes)
            if any(self.settings[name] != value for name, value in checked.items()):
                self.set(**checked)
        self._when_idle()

    def say(self, text: str) -> None:
        """Show what is being done, where there is a live face."""
        if self._face is not None:
            self._status.value = _BUSY.format(text=html.escape(text))

    # --- faces -----------------------------------------------------------------------------------

    @property
    def widget(self) -> W.Widget:
        """The live face; the same one each time."""
        if self._face is None:
            self._build()
        return self._face

    @property
    def plot(self) -> go.FigureWidget:
        """The figure of the live face."""
        assert self.widget is not None
        return self._plot

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, object]:
        """Both faces: JupyterLab takes the live one, a report the figure, a terminal the text."""
        bundle = dict(self.widget._repr_mimebundle_())
        bundle[PLOTLY] = json.loads(self._shown.to_json())
        bundle["text/plain"] = repr(self)
        return bundle

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.parameters()})"

    def _build(self) -> None:
        for name, control in self._controls.items():
            self._widgets[name] = control.widget(self.settings[name])
            self._widgets[name].observe(self._observer(name), "value")
        self._status = W.HTML(_READY.format(text=""))
        self._problem = W.HTML()
        self._text = W.Text(
            description="Settings",
            continuous_update=False,
            tooltip="Paste settings here and press Enter",
            layout={"flex": "1 1 300px", "width": "auto"},
        )
        self._text.observe(lambda change: self._pasted(change["new"]), "value")
        self._copy = W.HTML(layout={"width": "auto"})
        row = {"flex_flow": "row wrap", "align_items": "center", "grid_gap": "2px 14px"}
        self._head = (
            W.Box([*self._widgets.values()], layout=row),
            W.Box([self._text, self._copy, self._status], layout=row),
            self._problem,
        )
        self._face = W.VBox()
        self._plot = self._new_plot()
        self._arrange()
        self._show_settings()

    def _arrange(self) -> None:
        # Only what changes is replaced: plotly's views go on listening after they are gone.
        self._face.children = (*self._head, self._sideways, *self.below())

    def _new_plot(self) -> go.FigureWidget:
        self._sent = self._shown
        plot = _Plot(self._shown)
        plot._config = {**plot._config, "displaylogo": False}
        self._views, self._reported = plot._view_count, False
        plot.observe(self._fit, ["_view_count", "_js2py_traceDeltas"])
        self.connect(plot)
        wide = W.VBox((plot,), layout={"min_width": LEAST_WIDTH, "flex": "1 1 auto"})
        self._sideways = W.Box((wide,), layout={"overflow": "auto hidden"})
        return plot

    def _fit(self, change: dict) -> None:
        """Have a new view take the page's width, which it did not know when it was made.

        Only once it is drawn: a view reports its traces then, and is counted before or after.
        """
        plot = change["owner"]
        self._reported |= change["name"] == "_js2py_traceDeltas" and bool(change["new"])
        if self._reported and plot._view_count != self._views:
            self._views, self._reported = plot._view_count, False
            with self._quietly():
                plot.layout.autosize = None
                plot.layout.autosize = True
            self._when_idle()

    def _when_idle(self) -> None:
        """Have `ahead` called soon, unless there is another change first."""
        if self._idle is not None:
            self._idle.cancel()
        try:
            self._idle = asyncio.get_running_loop().call_later(IDLE, self.ahead)
        except RuntimeError:  # no event loop: nobody looks at a live face
            self._idle = None

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """While open, changes of widgets and figure are our own and start nothing."""
        before, self._refreshing = self._refreshing, True
        try:
            yield
        finally:
            self._refreshing = before

    def _observer(self, name: str) -> Callable[[dict], None]:
        return lambda change: self.change(**{name: change["new"]})

    def _pasted(self, text: str) -> None:
        if not self._refreshing:
            with self._guarded():
                self.apply(text)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Show that work is done, how long it took, and what went wrong."""
        self.say("")
        self._problem.value, ended = "", "stopped"
        started = time.perf_counter()
        try:
            yield
            ended = f"{time.perf_counter() - started:.2f} s"
        except EsparseError as error:
            ended = "not changed"
            self._problem.value = _ERROR.format(text=html.escape(str(error)))
        except Exception as error:
            ended = "not changed"
            first = html.escape(f"{type(error).__name__}: {error}")
            details = html.escape("".join(traceback.format_exception(error)))
            self._problem.value = _ERROR.format(
                text=f"{first}<details><summary>traceback</summary><pre>{details}</pre></details>"
            )
        finally:
            self._status.value = _READY.format(text=ended)

    def _show_settings(self) -> None:
        """Bring every widget to the settings, after work on them has ended."""
        if self._face is None:
            return
        with self._quietly():
            for name, widget in self._widgets.items():
                self._controls[name].show(widget, self.settings[name])
            self._text.value = self.parameters()
            self._copy.value = _COPY.format(text=html.escape(self.parameters(), quote=True))
            self._status.value = _READY.format(text="")  # also where another panel sets this one

    def _show_figure(self) -> None:
        """Bring the live figure to the drawn one, sending what changed; zooms stay."""
        if self._face is None:
            return
        old, new = self._sent, self._shown
        self._sent = new
        if [t.type for t in old.data] != [t.type for t in new.data]:
            self._plot = self._new_plot()
            self._arrange()
            return
        with self._quietly(), self._plot.batch_update():
            for trace, before, after in zip(self._plot.data, old.data, new.data, strict=True):
                trace.update(_different(before.to_plotly_json(), after.to_plotly_json()))
            before, after = old.layout.to_plotly_json(), new.layout.to_plotly_json()
            self._plot.layout.update(_different(before, after), overwrite=True)

    def _checked(self, changes: Mapping[str, object]) -> dict[str, object]:
        """The changes, read by their controls."""
        for name in changes:
            if name not in self._controls:
                raise unknown(f"setting of {type(self).__name__}:", name, self._controls)
        return {name: self._controls[name].read(name, value) for name, value in changes.items()}


def _different(present: Mapping, wanted: Mapping) -> dict[str, object]:
    """What must be set to come from one to the other; None for what is gone."""
    return {
        key: wanted.get(key)
        for key in {**present, **wanted}
        if not _same(present.get(key), wanted.get(key))
    }


def _same(one: object, other: object) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        one, other = np.asarray(one), np.asarray(other)
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and one == other


def _assignments(text: str) -> dict[str, object]:
    """Settings from the text of either form of `Panel.parameters`.

    >>> _assignments("-p block=3 -p channels=1,2"), _assignments("channels = [1, 2]")
    ({'block': '3', 'channels': '1,2'}, {'channels': [1, 2]})
    """
    found: dict[str, object] = {}
    try:
        for statement in ast.parse(text).body:
            target = statement.target if isinstance(statement, ast.AnnAssign) else None
            target = statement.targets[0] if isinstance(statement, ast.Assign) else target
            found[target.id] = ast.literal_eval(statement.value)
        return found
    except (SyntaxError, ValueError, AttributeError):
        pass
    try:
        words = [word for word in shlex.split(text) if word not in ("-p", "--parameter")]
        return dict(word.split("=", 1) for word in words)
    except ValueError:
        raise InputError(
            f"Cannot read the settings {text!r}: expected name=value, as in -p block=3 -p bins=50."
        ) from None
