"""Settings of a method as one control: a widget for each field of its dataclass."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Literal, get_args, get_origin, get_type_hints

import ipywidgets as W
import traitlets

from esparse_lab.errors import InputError, unknown
from esparse_lab.explorers.controls import Control
from esparse_lab.methods import METHODS, PruningMethod

_STYLE = {"description_width": "initial"}
_WORDS = {"True": True, "False": False}


def leaves(settings: object, before: str = "") -> Iterator[tuple[str, type, object]]:
    """Name, type and value of each field of a dataclass; those of inner ones as "outer.inner"."""
    hints = get_type_hints(type(settings))
    for one in fields(settings):
        value = getattr(settings, one.name)
        if is_dataclass(value):
            yield from leaves(value, f"{before}{one.name}.")
        else:
            yield f"{before}{one.name}", hints[one.name], value


def written(method: PruningMethod) -> str:
    """The settings that are not the method's defaults, as "alpha=2.0,histogram.bins=50"."""
    defaults = {name: value for name, _, value in leaves(type(method)())}
    changed = [(n, v) for n, _, v in leaves(method) if v != defaults[n]]
    return ",".join(f"{name}={value}" for name, value in changed)


def method_from(name: str, text: str) -> PruningMethod:
    """The method called `name` with settings that `written` gave.

    Raises:
        InputError: a setting that it lacks, or a value that does not fit.
    """
    method = METHODS[name]()
    kinds = {leaf: kind for leaf, kind, _ in leaves(method)}
    for part in filter(None, text.split(",")):
        leaf, _, value = part.partition("=")
        if leaf not in kinds:
            if not kinds:
                raise InputError(f"Method {name!r} has no settings, got {leaf!r}.")
            raise unknown(f"setting of method {name!r}:", leaf, kinds)
        method = _with(method, leaf.split("."), _read(leaf, kinds[leaf], value))
    return method


def _with(settings: object, path: list[str], value: object) -> object:
    first, *rest = path
    inner = _with(getattr(settings, first), rest, value) if rest else value
    return replace(settings, **{first: inner})


def _read(name: str, kind: type, text: str) -> object:
    if get_origin(kind) is Literal:
        return text
    try:
        return _WORDS[text] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise InputError(f"{name}={text}: expected {name} to be of type {kind.__name__}.") from None


class _Fields(W.Box):
    """A widget a field; `value` is the text of those that are not the defaults."""

    value = traitlets.Unicode()

    def __init__(self):
        super().__init__(layout={"flex_flow": "row wrap", "grid_gap": "2px 14px"})
        self._name = ""
        self._leaves: dict[str, W.Widget] = {}
        self._shown = {}

    def show(self, name: str, text: str) -> None:
        """Bring the widgets to the method called `name` with these settings."""
        shown = method_from(name, text)
        if name != self._name:
            self._name = name
            self._leaves = {n: _widget(n, kind, v) for n, kind, v in leaves(shown)}
            for widget in self._leaves.values():
                widget.observe(self._changed, "value")
            self.children = [*self._leaves.values()]
        self._shown = {n: v for n, _, v in leaves(METHODS[name]())}
        for leaf, _, value in leaves(shown):
            self._leaves[leaf].value = value
        self.value = text

    def _changed(self, _change: dict) -> None:
        now = {name: widget.value for name, widget in self._leaves.items()}
        self.value = ",".join(f"{n}={v}" for n, v in now.items() if v != self._shown[n])


def _widget(name: str, kind: type, value: object) -> W.Widget:
    common = {"value": value, "description": name.rpartition(".")[2].replace("_", " ")}
    common |= {"style": _STYLE, "layout": {"width": "auto"}}
    if get_origin(kind) is Literal:
        return W.Dropdown(options=get_args(kind), **common)
    if kind is bool:
        return W.Checkbox(indent=False, **common)
    common |= {"layout": {"width": "150px"}}
    return (W.IntText if kind is int else W.FloatText)(continuous_update=False, **common)


@dataclass(frozen=True)
class MethodFields(Control):
    """Settings of the method that is chosen beside it, kept as the text that `written` gives."""

    method: Callable[[], str]

    def read(self, name: str, value: object) -> str:
        """The text; what it says is read with the method it is for."""
        parts = [part.strip() for part in str(value).split(",") if part.strip()]
        if bad := [part for part in parts if "=" not in part]:
            raise InputError(
                f"{name}={value}: expected settings such as {name}=alpha=2.0, not {bad[0]!r}."
            )
        return ",".join(parts)

    def widget(self, value: object) -> _Fields:
        """One widget a field."""
        fields_ = _Fields()
        fields_.show(self.method(), value)
        return fields_

    def show(self, widget: _Fields, value: object) -> None:
        """The fields of the method chosen now."""
        widget.show(self.method(), value)


@dataclass(frozen=True)
class Switch(Control):
    """Yes or no."""

    def read(self, name: str, value: object) -> bool:
        """Whether it is on."""
        value = _WORDS.get(value, value) if isinstance(value, str) else value
        if not isinstance(value, bool):
            raise InputError(f"{name}={value}: expected {name}=True or {name}=False.")
        return value

    def widget(self, value: object) -> W.Checkbox:
        """A box to tick."""
        return W.Checkbox(
            value=value, description=self.label, indent=False, layout={"width": "auto"}
        )
