"""Prune a model block by block: statistics, scores, channel order, masks, weights.

The only module that writes to a model's weights.
"""

import time
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from tqdm.std import tqdm
from transformers import PreTrainedModel

from esparse_lab.architectures import transformer_blocks
from esparse_lab.capture import BlockWalk, block_stats
from esparse_lab.channel_stats import LayerStats
from esparse_lab.errors import EsparseError, InputError, unknown
from esparse_lab.masks import Pattern
from esparse_lab.methods import PruningMethod
from esparse_lab.permutation import (
    ChannelOrder,
    OrderSearch,
    ordered_mask,
    retained_share,
    search_order,
)

Calibration = Literal["sequential", "dense"]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a pruned model, besides the model and the calibration tokens.

    Attributes:
        method: scores the weights.
        pattern: which share of them stays.
        search: orders the channels first; None keeps their order.
        calibration: "sequential" takes a block's statistics from inputs that the pruned blocks
            before it produced, as Wanda and SparseGPT do; "dense" from the unpruned model.
    """

    method: PruningMethod
    pattern: Pattern
    search: OrderSearch | None = None
    calibration: Calibration = "sequential"

    def __post_init__(self) -> None:
        if self.calibration not in get_args(Calibration):
            raise unknown("calibration", self.calibration, get_args(Calibration))


@dataclass(frozen=True)
class PrunedLayer:
    """What pruning did to one layer.

    Attributes:
        name: such as "model.layers.3.mlp.down_proj".
        mask: True where the weight was kept, bool [out, in], in the channels' own order, in CPU
            memory. It is N:M under `order`.
        order: the channel order in which the mask is N:M, or None for their own.
        retained_share: share of the layer's total score that was kept, 0 to 1.
        seconds: time spent scoring, ordering and masking the layer; layers that share an order
            share its time equally. Forward passes are not in it.
    """

    name: str
    mask: Tensor
    order: ChannelOrder | None
    retained_share: float
    seconds: float


@torch.no_grad()
def prune_model(
    model: PreTrainedModel, tokens: Tensor | None, recipe: Recipe, *, progress: bool = True
) -> list[PrunedLayer]:
    """Set the weights that `recipe` drops to zero, in place.

    Layers that read the same activation share one channel order, searched on their stacked scores.
    Kept weights stay as they are.

    Args:
        model: a supported decoder.
        tokens: calibration tokens, int64 [sequence, position]; may be None for a method that needs
            no statistics.
        recipe: what to do.
        progress: show a bar, one step a block.

    Returns:
        One record a layer, in the order of the data.

    Raises:
        EsparseError: if a weight or an activation is not finite; names the layer. Blocks before it
            are pruned already.
    """
    blocks = transformer_blocks(model)
    walk = None
    if recipe.method.needs_stats:
        if tokens is None:
            raise InputError(f"{recipe.method} needs calibration tokens, got None.")
        walk = BlockWalk.start(model, tokens)
    pruned: list[PrunedLayer] = []
    for index in tqdm(range(len(blocks)), "pruning", unit="block", disable=not progress):
        stats: dict[str, LayerStats] = {}
        if walk is not None:
            stats, returned = block_stats(walk, index, recipe.method.histogram)
            dense_outputs = returned if recipe.calibration == "dense" else None
            del returned  # hidden states of every sequence: not held beside the pruned block's
        for group in blocks[index].groups:
            pruned.extend(_prune_group(group, stats, recipe))
        if walk is not None and index + 1 < len(blocks):
            walk.hidden = list(walk.run(index)) if dense_outputs is None else dense_outputs
    return pruned


def _prune_group(
    group: dict[str, nn.Linear], stats: dict[str, LayerStats], recipe: Recipe
) -> list[PrunedLayer]:
    """Prune the layers that read one activation."""
    started = time.perf_counter()
    scores = {}
    for name, layer in group.items():
        if not layer.weight.isfinite().all():
            raise EsparseError(
                f"{name}: {int((~layer.weight.isfinite()).sum())} of {layer.weight.numel()} "
                "weights are NaN or infinite. Load the model from an intact checkpoint."
            )
        scores[name] = recipe.method.score(layer.weight, stats.get(name))
    order = None
    if recipe.search is not None:
        order = search_order(torch.cat(list(scores.values())), recipe.pattern, recipe.search)
    masks = {}
    for name, layer in group.items():
        masks[name] = ordered_mask(scores[name], recipe.pattern, order)
        layer.weight.masked_fill_(~masks[name], 0)
    retained = {name: retained_share(s, recipe.pattern, order) for name, s in scores.items()}
    seconds = (time.perf_counter() - started) / len(group)
    return [PrunedLayer(name, masks[name].cpu(), order, retained[name], seconds) for name in group]
