"""Parameters that no notebook could run with, found before the first kernel starts.

The values are tried on the library itself, so that what it accepts is written down once. A
parameter that has no check here is left to its notebook.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

from esparse_lab.architectures import find_layer
from esparse_lab.corpora import token_windows
from esparse_lab.entropy import Histogram
from esparse_lab.errors import EsparseError
from esparse_lab.masks import Pattern, parse_sparsity
from esparse_lab.methods import ESparse, make_method
from esparse_lab.models import load_model
from esparse_lab.recipes import named_search

NAMED = {
    "pattern": Pattern.parse,
    "patterns": parse_sparsity,
    **dict.fromkeys(("method", "methods", "shuffled"), make_method),
    **dict.fromkeys(("search", "searches"), named_search),
    "alpha": lambda alpha: ESparse(alpha=alpha),
    "bins": lambda bins: Histogram(bins=bins),
    "bin_range": lambda bin_range: Histogram(bin_range=bin_range),
}
"""Notebook parameter -> what refuses a bad value of it, or of one element of a list."""

CALIBRATION = ("corpus", "length", "n_sequences", "seed")
TEST = ("test_corpus", "window_length", "n_windows")


def check_parameters(model: str, values: Mapping[str, Mapping[str, object]]) -> None:
    """Pass when the model loads and can take every notebook's parameters.

    Fetches, with its progress shown, what is not in a cache yet; kernels would hide that.

    Args:
        model: a name that `load_model` takes.
        values: notebook -> parameter -> value, of the declared types.

    Raises:
        InputError: a value that cannot be used; the message begins with the parameter.
        EsparseError: the model or a corpus cannot be had or is damaged.
    """
    for parameters in values.values():
        for name in filter(parameters.__contains__, NAMED):
            for value in _elements(parameters[name]):
                with _blaming({name: value}):
                    NAMED[name](value)

    # Only looked at, so it takes as little memory as it can.
    loaded = load_model(model, dtype="bfloat16", device="cpu")
    windows = cache(lambda *text, **size: len(token_windows(loaded.tokenizer, *text, **size)))
    for parameters in values.values():
        if "block" in parameters:
            for name in filter(parameters.__contains__, ("role", "roles")):
                for role in _elements(parameters[name]):
                    with _blaming({"block": parameters["block"], name: role}):
                        find_layer(loaded.model, parameters["block"], role)
        if parameters.keys() >= {*CALIBRATION}:
            corpus, length, count, seed = (parameters[name] for name in CALIBRATION)
            with _blaming({name: parameters[name] for name in CALIBRATION[:3]}):
                windows(corpus, split="train", length=length, count=count, seed=seed)
        if parameters.keys() >= {*TEST}:
            corpus, length, count = (parameters[name] for name in TEST)
            with _blaming({name: parameters[name] for name in TEST}):
                windows(corpus, split="test", length=length, count=count or None)


def _elements(value: object) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


@contextmanager
def _blaming(parameters: Mapping[str, object]) -> Iterator[None]:
    """Put the parameters before the message of an error: the library knows them by other names."""
    try:
        yield
    except EsparseError as error:
        shown = " ".join(f"{name}={value}" for name, value in parameters.items())
        raise type(error)(f"{shown}: {error}") from error
