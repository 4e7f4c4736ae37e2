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

from esparse_lab.allocation import Allocation
from esparse_lab.architectures import prunable_layers, transformer_blocks
from esparse_lab.blocks import InputGroup
from esparse_lab.capture import BlockWalk, block_stats
from esparse_lab.channel_stats import LayerStats
from esparse_lab.corpora import tokens_sha256
from esparse_lab.likelihood import Told, perplexity
from esparse_lab.masks import Pattern, parse_sparsity
from esparse_lab.methods import Magnitude, PruningMethod, make_method, method_name
from esparse_lab.models import LoadedModel
from esparse_lab.optimum import recoverable
from esparse_lab.permutation import OrderSearch, retained_share, search_order
from esparse_lab.pruning import Calibration, Recipe, can_be_ordered, prune_model
from esparse_lab.recipes import named_search, search_name
from esparse_lab.reconstruction import Reconstruction
from esparse_lab.result_cache import cached
from esparse_lab.tables import layer_place

DENSE = {
    "method": "dense",
    "settings": "",
    "pattern": "",
    "search": "none",
    "reconstruct": False,
    "calibration": "",
    "allocation": "",
    "dense": True,
    "retained_share": 1.0,
    "output_error": 0.0,
    "prune_seconds": 0.0,
    "peak_memory_gib": None,
}
"""What a row says of a model that was not pruned."""


def ladder(
    methods: Iterable[str],
    patterns: Iterable[str],
    searches: Iterable[str],
    *,
    shuffled: Iterable[str] = ("esparse",),
    reconstruct: bool = False,
    calibration: Calibration = "sequential",
    allocation: Allocation | None = None,
    **esparse_settings,
) -> list[Recipe]:
    """Recipes for every method and pattern, and for every search where the method is `shuffled`.

    A search needs groups of channels: unstructured patterns, and methods that are not `shuffled`,
    take "none" alone.

    Args:
        methods: names in `METHODS`.
        patterns: such as "2:4" or "50%".
        searches: names in `SEARCHES` or `RIVALS`.
        shuffled: methods that are tried with every search.
        reconstruct: try every recipe a second time with its kept weights solved for.
        calibration: of every recipe; see `Recipe`.
        allocation: gives the layers of every recipe a sparsity of their own.
        **esparse_settings: settings of E-Sparse, such as alpha.

    Raises:
        InputError: for a name or a pattern that is not known.
    """
    shuffled = list(shuffled)
    named = {name: named_search(name) for name in searches}
    solvers = [None, Reconstruction()] if reconstruct else [None]
    recipes = []
    for pattern in map(parse_sparsity, patterns):
        for name in methods:
            method = make_method(name, **(esparse_settings if name == "esparse" else {}))
            every = name in shuffled and can_be_ordered(pattern, allocation)
            recipes.extend(
                Recipe(method, pattern, search, calibration, solver, allocation)
                for search in (named.values() if every else [None])
                for solver in solvers
            )
    return recipes


def perplexity_ladder(
    loaded: LoadedModel,
    calibration: Tensor,
    test: Tensor,
    recipes: Iterable[Recipe],
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """Perplexity of the dense model and after each recipe; the model is left as it was.

    Args:
        loaded: the dense model.
        calibration: int64 [sequence, position].
        test: int64 [window, position].
        recipes: what to try; see `ladder`.
        progress: show a bar, one step a recipe.

    Returns:
        The dense model first. Columns: method, settings, pattern, search, reconstruct, calibration,
        allocation ("" for none), dense, perplexity, retained_share and output_error (means over
        layers; the error is missing where no Gram matrix was measured), prune_seconds (with forward
        passes), peak_memory_gib (of the CUDA allocator while pruning, model included; missing on a
        CPU), eval_seconds, device.
    """
    recipes = list(recipes)
    rows = ladder_rows(loaded, calibration, test, recipes)
    table = [next(rows)]
    with tqdm(recipes, "ladder", unit="recipe", disable=not progress) as bar:
        for recipe in bar:
            bar.set_postfix_str(
                f"{method_name(recipe.method)} {recipe.pattern} {search_name(recipe.search)}"
            )
            table.append(next(rows))
    return ladder_table(table)


def ladder_table(rows: list[dict]) -> pd.DataFrame:
    """The rows of `ladder_rows` as a table; figures that are missing are NaN."""
    return pd.DataFrame(rows).astype({"output_error": float, "peak_memory_gib": float})


def ladder_rows(
    loaded: LoadedModel,
    calibration: Tensor,
    test: Tensor,
    recipes: Iterable[Recipe],
    told: Told | None = None,
) -> Iterator[dict]:
    """The rows of a `perplexity_ladder`, each as soon as it is measured, the dense model's first.

    Each is kept on disk under the model's revision, both token sets and the recipe, so a run that
    is stopped goes on where it was. `told` hears of blocks and windows, and may raise to stop.
    """
    key = {
        "model": loaded.revision,
        "weights": weights_fingerprint(loaded.model),
        "name": loaded.name,
        "dtype": str(loaded.model.dtype),
        "device": loaded.model.device.type,
        "test": tokens_sha256(test),
    }
    yield DENSE | cached(key, lambda: _measured(loaded.model, test, told))
    for recipe in recipes:
        cell = key | {
            "calibration": tokens_sha256(calibration) if recipe.reads_tokens else None,
            "recipe": repr(recipe),
        }
        yield cached(cell, lambda r=recipe: _pruned_cell(loaded, calibration, test, r, told))


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


def _measured(model: PreTrainedModel, test: Tensor, told: Told | None) -> dict:
    started = time.perf_counter()
    value = perplexity(model, test, progress=False, told=told).value
    return {
        "perplexity": value,
        "eval_seconds": time.perf_counter() - started,
        "device": device_name(model),
    }


def _pruned_cell(
    loaded: LoadedModel, calibration: Tensor, test: Tensor, recipe: Recipe, told: Told | None
) -> dict:
    with pruned(loaded.model, calibration, recipe, told) as facts:
        return facts | _measured(loaded.model, test, told)


@contextmanager
def pruned(
    model: PreTrainedModel,
    calibration: Tensor | None,
    recipe: Recipe | None,
    told: Told | None = None,
) -> Iterator[dict]:
    """The model pruned (None: left dense) until the block ends, also with an error.

    Yields:
        What a row of `perplexity_ladder` says of the pruning.
    """
    if recipe is None:
        yield dict(DENSE)
        return
    device = model.device
    on_gpu = device.type == "cuda"
    with weights_restored(model):
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        started = time.perf_counter()
        layers = prune_model(model, calibration, recipe, progress=False, told=told)
        if on_gpu:
            torch.cuda.synchronize(device)
        prune_seconds = time.perf_counter() - started
        peak = torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else None
        errors = [layer.output_error for layer in layers if layer.output_error is not None]
        yield {
            "method": method_name(recipe.method),
            "settings": repr(recipe.method),
            "pattern": str(recipe.pattern),
            "search": search_name(recipe.search),
            "reconstruct": recipe.reconstruct is not None,
            "calibration": recipe.calibration,
            "allocation": "" if recipe.allocation is None else repr(recipe.allocation),
            "dense": False,
            "retained_share": sum(layer.retained_share for layer in layers) / len(layers),
            "output_error": sum(errors) / len(errors) if errors else None,
            "prune_seconds": prune_seconds,
            "peak_memory_gib": peak,
        }


def device_name(model: PreTrainedModel) -> str:
    """The GPU's name, or that it is a CPU and its threads."""
    if model.device.type == "cuda":
        return torch.cuda.get_device_name(model.device)
    return f"CPU, {torch.get_num_threads()} threads"


@contextmanager
def weights_restored(model: PreTrainedModel) -> Iterator[None]:
    """Put every prunable weight back as it was when the block ends, also after an error.

    The copies are in CPU memory, so that they do not count as memory of the pruning.
    """
    layers = prunable_layers(model)
    kept = {name: layer.weight.to("cpu", copy=True) for name, layer in layers.items()}
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

    Layers that read the same activation are ordered together, on their stacked scores. As when
    pruning, DaSS orders outputs before an activation function, and experts that no token was sent
    to are scored by magnitude.

    Returns:
        Columns: layer, block, role, search, retained_share (0 to 1), recovered_share (of what an
        order could win back in this layer at most; see `Recoverable`; NaN for nothing), seconds (of
        the search, shared equally by the layers ordered together).
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
    blocks = transformer_blocks(loaded.model)
    walk = None if method.needs is None else BlockWalk.start(loaded.model, calibration)
    rows = []
    for index in tqdm(range(len(blocks)), "orders", unit="block", disable=not progress):
        stats: dict[str, LayerStats] = {}
        if walk is not None:  # block by block: Gram matrices of a whole model need not fit
            returned: list[Tensor] = []
            stats = block_stats(walk, index, method.needs, returned)
            walk.hidden = returned
        for group in blocks[index].groups:
            rows += _retained_group(group, stats.get(group.name), method, pattern, searches)
    return rows


def _retained_group(
    group: InputGroup,
    stats: LayerStats | None,
    method: PruningMethod,
    pattern: Pattern,
    searches: Mapping[str, OrderSearch | None],
) -> list[dict]:
    if stats is not None and not stats.n_tokens:
        method, stats = Magnitude(), None
    scores = {name: method.score(layer.weight, stats) for name, layer in group.layers.items()}
    if method.group_axis(stats) == "out":
        scores = {name: score.T for name, score in scores.items()}
    limits = {name: recoverable(score, pattern) for name, score in scores.items()}
    rows = []
    for label, search in searches.items():
        started = time.perf_counter()
        order = search_order(torch.cat(list(scores.values())), pattern, search)
        seconds = (time.perf_counter() - started) / len(scores)
        for name, score in scores.items():
            number, role = layer_place(name)
            share = retained_share(score, pattern, order)
            rows.append(
                {
                    "layer": name,
                    "block": number,
                    "role": role,
                    "search": label,
                    "retained_share": share,
                    "recovered_share": limits[name].recovered(share),
                    "seconds": seconds,
                }
            )
    return rows
