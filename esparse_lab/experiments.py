"""Measurements that take long enough to be kept: each is computed once and then read from disk."""

import dataclasses
import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import pandas as pd
import torch
from torch import Tensor
from tqdm.std import tqdm
from transformers import PreTrainedModel

from esparse_lab.architectures import prunable_layers, transformer_blocks
from esparse_lab.capture import collect_layer_stats
from esparse_lab.corpora import tokens_sha256
from esparse_lab.errors import unknown
from esparse_lab.likelihood import perplexity
from esparse_lab.masks import Pattern
from esparse_lab.methods import PruningMethod, make_method, method_name
from esparse_lab.models import LoadedModel
from esparse_lab.permutation import SEARCHES, OrderSearch, retained_share, search_order
from esparse_lab.pruning import Recipe, prune_model
from esparse_lab.result_cache import cached
from esparse_lab.tables import layer_place


def ladder(
    methods: Iterable[str],
    patterns: Iterable[str],
    searches: Iterable[str],
    *,
    shuffled: Iterable[str] = ("esparse",),
    **esparse_settings,
) -> list[Recipe]:
    """Recipes for every method and pattern, and for every search where the method is `shuffled`.

    Args:
        methods: names in `METHODS`.
        patterns: such as "2:4".
        searches: names in `SEARCHES`; methods that are not `shuffled` take "none" alone.
        shuffled: methods that are tried with every search.
        **esparse_settings: settings of E-Sparse, such as alpha.

    Raises:
        InputError: for a name or a pattern that is not known.
    """
    searches, shuffled = list(searches), list(shuffled)
    recipes = []
    for pattern in map(Pattern.parse, patterns):
        for name in methods:
            method = make_method(name, **(esparse_settings if name == "esparse" else {}))
            recipes.extend(
                Recipe(method, pattern, named_search(search))
                for search in (searches if name in shuffled else ["none"])
            )
    return recipes


def named_search(name: str) -> OrderSearch | None:
    """The entry of `SEARCHES` called `name`; raises `InputError` with the nearest names."""
    if name not in SEARCHES:
        raise unknown("search", name, SEARCHES)
    return SEARCHES[name]


def search_name(search: OrderSearch | None) -> str:
    """The name of a search in `SEARCHES`, else its settings."""
    return next((name for name, known in SEARCHES.items() if known == search), repr(search))


def perplexity_ladder(
    loaded: LoadedModel,
    calibration: Tensor,
    test: Tensor,
    recipes: Iterable[Recipe],
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """Perplexity of the dense model and after each recipe; the model is left as it was.

    Each cell is kept on disk under the model's revision, both token sets and the recipe, so a run
    that is stopped goes on where it was.

    Args:
        loaded: the dense model.
        calibration: int64 [sequence, position].
        test: int64 [window, position].
        recipes: what to try; see `ladder`.
        progress: show a bar, one step a recipe.

    Returns:
        Columns: method, settings, pattern, search, dense, perplexity, retained_share (mean over
        layers), prune_seconds (with forward passes), eval_seconds, device. The dense model first.
    """
    key = {
        "model": loaded.revision,
        "weights": weights_fingerprint(loaded.model),
        "name": loaded.name,
        "dtype": str(loaded.model.dtype),
        "device": loaded.model.device.type,
        "test": tokens_sha256(test),
    }
    dense = {
        "method": "dense",
        "settings": "",
        "pattern": "",
        "search": "none",
        "dense": True,
        "retained_share": 1.0,
        "prune_seconds": 0.0,
    }
    rows = [dense | cached(key, lambda: _measured(loaded.model, test))]
    with tqdm(list(recipes), "ladder", unit="recipe", disable=not progress) as bar:
        for recipe in bar:
            name, search = method_name(recipe.method), search_name(recipe.search)
            bar.set_postfix_str(f"{name} {recipe.pattern} {search}")
            cell = key | {"calibration": tokens_sha256(calibration), "recipe": repr(recipe)}
            if recipe.needs is None:
                cell["calibration"] = None
            rows.append(cached(cell, lambda r=recipe: _pruned_cell(loaded, calibration, test, r)))
    return pd.DataFrame(rows)


def weights_fingerprint(model: PreTrainedModel) -> str:
    """Tells weights changed in memory (a model pruned in place) from those that were loaded.

    Sums of the weights' bits as integers: exact, so the same on every device.
    """
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = []
    for weight in model.parameters():
        bits = weight.detach().view(integers[weight.element_size()])
        sums.append(int(bits.sum(dtype=bits.dtype)))  # may wrap around, the same way everywhere
    return hashlib.sha256(repr(sums).encode()).hexdigest()


def _measured(model: PreTrainedModel, test: Tensor) -> dict:
    started = time.perf_counter()
    value = perplexity(model, test, progress=False).value
    return {
        "perplexity": value,
        "eval_seconds": time.perf_counter() - started,
        "device": _device_name(model),
    }


def _pruned_cell(loaded: LoadedModel, calibration: Tensor, test: Tensor, recipe: Recipe) -> dict:
    with weights_restored(loaded.model):
        started = time.perf_counter()
        layers = prune_model(loaded.model, calibration, recipe, progress=False)
        prune_seconds = time.perf_counter() - started
        measured = _measured(loaded.model, test)
    return {
        "method": method_name(recipe.method),
        "settings": repr(recipe.method),
        "pattern": str(recipe.pattern),
        "search": search_name(recipe.search),
        "dense": False,
        "retained_share": sum(layer.retained_share for layer in layers) / len(layers),
        "prune_seconds": prune_seconds,
        **measured,
    }


def _device_name(model: PreTrainedModel) -> str:
    if model.device.type == "cuda":
        return torch.cuda.get_device_name(model.device)
    return f"CPU, {torch.get_num_threads()} threads"


@contextmanager
def weights_restored(model: PreTrainedModel) -> Iterator[None]:
    """Put every prunable weight back as it was when the block ends, also after an error."""
    layers = prunable_layers(model)
    kept = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, layer in layers.items():
                layer.weight.copy_(kept[name])


def retained_table(
    loaded: LoadedModel,
    calibration: Tensor,
    method: PruningMethod,
    pattern: Pattern,
    searches: Mapping[str, OrderSearch | None],
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """Score that each layer keeps under each search's channel order, statistics of the dense model.

    Layers that read the same activation are ordered together, on their stacked scores.

    Returns:
        Columns: layer, block, role, search, retained_share (0 to 1), seconds (of the search, shared
        equally by the layers ordered together).
    """
    key = {
        "table": "retained",
        "model": loaded.revision,
        "weights": weights_fingerprint(loaded.model),
        "name": loaded.name,
        "dtype": str(loaded.model.dtype),
        "device": loaded.model.device.type,
        "calibration": tokens_sha256(calibration),
        "method": repr(method),
        "pattern": dataclasses.asdict(pattern),
        "searches": {label: repr(search) for label, search in searches.items()},
    }
    rows = cached(
        key,
        lambda: {"rows": _retained_rows(loaded, calibration, method, pattern, searches, progress)},
    )["rows"]
    return pd.DataFrame(rows)


@torch.no_grad()
def _retained_rows(loaded, calibration, method, pattern, searches, progress: bool) -> list[dict]:
    stats = {}
    if method.needs is not None:
        stats = collect_layer_stats(
            loaded.model, calibration, needs=method.needs, progress=progress
        )
    rows = []
    for block in tqdm(transformer_blocks(loaded.model), "orders", disable=not progress):
        for group in block.groups:
            scores = {
                n: method.score(layer.weight, stats.get(n)) for n, layer in group.layers.items()
            }
            for label, search in searches.items():
                started = time.perf_counter()
                order = search_order(torch.cat(list(scores.values())), pattern, search)
                seconds = (time.perf_counter() - started) / len(scores)
                for name, score in scores.items():
                    number, role = layer_place(name)
                    rows.append(
                        {
                            "layer": name,
                            "block": number,
                            "role": role,
                            "search": label,
                            "retained_share": retained_share(score, pattern, order),
                            "seconds": seconds,
                        }
                    )
    return rows
