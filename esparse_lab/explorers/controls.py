"""Kinds of settings: each reads a value from text and has a widget.

`read` takes what a widget, a keyword or pasted text gives and returns the setting's value, or
raises `InputError`; `write` is its inverse, the text that a report's `-p name=value` takes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import ipywidgets as W

from esparse_lab.errors import InputError, unknown

_STYLE = {"description_width": "initial"}


@dataclass(frozen=True)
class Control(ABC):
    """One setting of an explorer.

    Attributes:
        label: what it is called on the screen, with its unit.
    """

    label: str

    @abstractmethod
    def read(self, name: str, value: object) -> object:
        """The setting's value; `name` is for the message of the `InputError`."""

    @abstractmethod
    def widget(self, value: object) -> W.Widget:
        """A widget whose `value` `read` takes; it reports only finished changes."""

    def write(self, value: object) -> str:
        """The value as text."""
        return str(value)

    def show(self, widget: W.Widget, value: object) -> None:
        """Bring the widget to a setting's value."""
        widget.value = value


@dataclass(frozen=True)
class Menu(Control):
    """One of a closed list of names.

    The last part of a dotted name will do where only one name ends in it.
    """

    options: tuple[str, ...]

    def read(self, name: str, value: object) -> str:
        """The option meant."""
        if value in self.options:
            return value
        ending = [option for option in self.options if option.endswith(f".{value}")]
        if len(ending) == 1:
            return ending[0]
        raise unknown(name, str(value), self.options)

    def widget(self, value: object) -> W.Dropdown:
        """A drop-down."""
        return W.Dropdown(
            options=self.options,
            value=value,
            description=self.label,
            style=_STYLE,
            layout={"width": "auto"},
        )


@dataclass(frozen=True)
class Words(Control):
    """Text that `parse` reads, kept as what it reads writes itself, such as a pattern."""

    parse: Callable[[str], object]

    def read(self, name: str, value: object) -> str:
        """The text, if it can be read."""
        return str(self.parse(str(value)))

    def widget(self, value: object) -> W.Text:
        """A short line of text."""
        return W.Text(
            value=value,
            description=self.label,
            continuous_update=False,
            style=_STYLE,
            layout={"width": "150px"},
        )


@dataclass(frozen=True)
class Slider(Control):
    """A number from `low` to `high`, whole if `step` is."""

    low: float
    high: float
    step: float = 1

    def read(self, name: str, value: object) -> float:
        """The number."""
        kind = int if isinstance(self.step, int) else float
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not self.low <= number <= self.high or kind(number) != number:
            what = "whole number" if kind is int else "number"
            raise InputError(
                f"{name}={value}: expected a {what} from {self.low} to {self.high}, "
                f"for example {name}={self.low}."
            )
        return kind(number)

    def widget(self, value: object) -> W.Widget:
        """A slider with its number beside it."""
        kind = W.IntSlider if isinstance(self.step, int) else W.FloatSlider
        return kind(
            value=value,
            min=self.low,
            max=self.high,
            step=self.step,
            description=self.label,
            continuous_update=False,
            style=_STYLE,
            layout={"width": "300px"},
        )


@dataclass(frozen=True)
class Span(Control):
    """A range `low, high` of indices, `high` excluded, at least one long.

    Attributes:
        length: how many there are now.
    """

    length: Callable[[], int]

    def read(self, name: str, value: object) -> tuple[int, int]:
        """The range; it may reach beyond what there is."""
        numbers = _whole_numbers(name, value)
        if len(numbers) != 2 or not 0 <= numbers[0] < numbers[1]:
            raise InputError(
                f"{name}={self.write(numbers)}: expected two indices, the first one smaller, for "
                f"example {name}=0,64."
            )
        return tuple(numbers)

    def widget(self, value: object) -> W.IntRangeSlider:
        """A slider with two ends."""
        return W.IntRangeSlider(
            value=value,
            min=0,
            max=self.length(),
            description=self.label,
            continuous_update=False,
            style=_STYLE,
            layout={"width": "300px"},
        )

    def show(self, widget: W.IntRangeSlider, value: object) -> None:
        """The ends, on a slider as long as the axis is now."""
        widget.min, widget.max = 0, self.length()
        widget.value = value

    def write(self, value: object) -> str:
        """The ends with a comma between."""
        return ",".join(map(str, value))


@dataclass(frozen=True)
class Indices(Control):
    """Indices such as those of channels, in the order given."""

    def read(self, name: str, value: object) -> tuple[int, ...]:
        """The distinct indices."""
        numbers = _whole_numbers(name, value)
        if any(number < 0 for number in numbers):
            raise InputError(f"{name}={self.write(numbers)}: an index is at least 0.")
        return tuple(dict.fromkeys(numbers))

    def widget(self, value: object) -> W.Text:
        """A line of text."""
        return W.Text(
            value=self.write(value),
            description=self.label,
            placeholder="such as 3,17,42",
            continuous_update=False,
            style=_STYLE,
            layout={"width": "300px"},
        )

    def write(self, value: object) -> str:
        """The indices with commas between."""
        return ",".join(map(str, value))

    def show(self, widget: W.Text, value: object) -> None:
        """The indices as text."""
        widget.value = self.write(value)


def _whole_numbers(name: str, value: object) -> list[int]:
    value = [value] if isinstance(value, int) else value
    try:
        parts = value.replace(",", " ").split() if isinstance(value, str) else list(value)
        return [int(part) for part in parts]
    except (TypeError, ValueError):
        raise InputError(
            f"{name}={value}: expected whole numbers with commas between, such as {name}=3,17."
        ) from None
