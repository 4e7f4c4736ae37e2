"""Pruning methods, one a file. To add one: write its file, then list it in `METHODS`."""

import inspect

from esparse_lab.errors import InputError, unknown
from esparse_lab.methods.dass import DaSS
from esparse_lab.methods.esparse import ESparse
from esparse_lab.methods.isc import ISC
from esparse_lab.methods.magnitude import Magnitude
from esparse_lab.methods.mask_descent import MaskDescent
from esparse_lab.methods.method import ByScore, Choice, PruningMethod
from esparse_lab.methods.ria import RIA
from esparse_lab.methods.sparsegpt import SparseGPT
from esparse_lab.methods.wanda import Wanda

METHODS: dict[str, type[PruningMethod]] = {
    "magnitude": Magnitude,
    "wanda": Wanda,
    "esparse": ESparse,
    "ria": RIA,
    "dass": DaSS,
    "sparsegpt": SparseGPT,
    "isc": ISC,
    "mask_descent": MaskDescent,
}


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


def method_name(method: PruningMethod) -> str:
    """The name of a method in `METHODS`."""
    return next(name for name, kind in METHODS.items() if isinstance(method, kind))


__all__ = [
    "ISC",
    "METHODS",
    "RIA",
    "ByScore",
    "Choice",
    "DaSS",
    "ESparse",
    "Magnitude",
    "MaskDescent",
    "PruningMethod",
    "SparseGPT",
    "Wanda",
    "make_method",
    "method_name",
]
