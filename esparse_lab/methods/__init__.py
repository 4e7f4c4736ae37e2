"""Pruning methods, one a file. To add one: write its file, then list it in `METHODS`."""

import inspect
from typing import ClassVar, Protocol

from torch import Tensor

from esparse_lab.channel_stats import LayerStats
from esparse_lab.entropy import Histogram
from esparse_lab.errors import InputError, unknown
from esparse_lab.methods.esparse import ESparse
from esparse_lab.methods.magnitude import Magnitude
from esparse_lab.methods.wanda import Wanda


class PruningMethod(Protocol):
    """How important each weight is. A method is a frozen dataclass; its fields are its settings.

    Attributes:
        needs_stats: whether `score` reads the activations' statistics.
        histogram: how it wants entropies binned, or None if it reads none.
    """

    needs_stats: ClassVar[bool]
    histogram: Histogram | None

    def score(self, weight: Tensor, stats: LayerStats | None) -> Tensor:
        """Importance of each weight, float32 [out, in], at least 0; higher is kept."""
        ...


METHODS: dict[str, type] = {"magnitude": Magnitude, "wanda": Wanda, "esparse": ESparse}


def make_method(name: str, **settings) -> PruningMethod:
    """The method called `name`, with those of its settings that are given.

    Raises:
        InputError: for a name that is not in `METHODS` or a setting that the method lacks.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    known = list(inspect.signature(METHODS[name]).parameters)
    for setting in settings:
        if not known:
            raise InputError(f"Method {name!r} has no settings, got {setting!r}.")
        if setting not in known:
            raise unknown(f"setting of method {name!r}:", setting, known)
    return METHODS[name](**settings)


__all__ = ["METHODS", "ESparse", "Magnitude", "PruningMethod", "Wanda", "make_method"]
