"""One channel order for the whole residual stream, which costs nothing when the model runs.

Embeddings make the stream in that order, every norm and every layer that reads it follows, and
layers that write to it have their rows permuted. All blocks share it, so each gains less than from
an order of its own behind a gather.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from esparse_lab.architectures import find_architecture
from esparse_lab.channel_stats import LayerStats
from esparse_lab.errors import InputError
from esparse_lab.masks import Pattern
from esparse_lab.methods import Magnitude, PruningMethod
from esparse_lab.permutation import ChannelOrder, OrderSearch, search_order
from esparse_lab.planner import OrderPlan, order_plans

# Rows that are searched: a model has millions, and a share of them has the same best order nearly.
MOST_ROWS = 2**16


def stream_readers(model: PreTrainedModel, plans: Mapping[str, OrderPlan]) -> list[OrderPlan]:
    """The plans of the activations that are the residual stream behind a norm.

    Empty for a family that is not described: what makes an activation is not known there.
    """
    if find_architecture(model) is None:
        return []
    return [plan for plan in {id(p): p for p in plans.values()}.values() if not plan.writers]


@torch.no_grad()
def stream_order(
    model: PreTrainedModel,
    stats: Mapping[str, LayerStats],
    method: PruningMethod,
    pattern: Pattern,
    search: OrderSearch,
) -> dict[str, ChannelOrder]:
    """One order for all layers that read the residual stream, by the name of their group.

    The sum of the layers' retained shares is what grows: each layer counts alike, however large its
    scores are. Of large models every k-th row is searched, `MOST_ROWS` in all.

    Args:
        model: of a family that `architectures.py` describes, not pruned yet.
        stats: of every layer, as `collect_layer_stats` gives them; {} for magnitude.
        method: whose scores are to be kept.
        pattern: the N:M pattern.
        search: how to look.

    Raises:
        InputError: if the family is not described.
    """
    plans = stream_readers(model, order_plans(model))
    if not plans:
        raise InputError(
            f"Models of type {model.config.model_type!r} are not described in architectures.py: "
            "what reads and writes their residual stream is not known. Take orders='mask'."
        )
    readers = [group for plan in plans for group in plan.groups]
    layers = [(g, layer) for g in readers for layer in g.layers.values()]
    step = -(-sum(len(layer.weight) for _, layer in layers) // MOST_ROWS)
    scores: list[Tensor] = []
    for group, layer in layers:
        seen = stats.get(group.name)
        by = method if seen is None or seen.n_tokens else Magnitude()
        score = by.score(layer.weight, seen)[::step]
        scores.append(score / score.sum().clamp_min(1e-30))
    order = search_order(torch.cat(scores), pattern, search)
    return {group.name: order for group in readers}
