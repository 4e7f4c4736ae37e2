"""Whether a model's layers can run sparse: what can be known without a GPU."""

from collections.abc import Iterable
from dataclasses import replace
from typing import get_args

import pandas as pd
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from esparse_lab.architectures import prunable_layers, transformer_blocks
from esparse_lab.blocks import WeightMatrix
from esparse_lab.capture import layer_inputs
from esparse_lab.channel_stats import LayerStats
from esparse_lab.errors import InputError, unknown
from esparse_lab.gemm.cusparselt import LINEAR_DTYPES, TWO_FOUR, check_weight
from esparse_lab.gemm.kernel import Kernel
from esparse_lab.gemm.nm_linear import check_nm_product
from esparse_lab.masks import Pattern, in_groups
from esparse_lab.methods import PruningMethod
from esparse_lab.storage import require_nm


def sparse_layers(
    model: PreTrainedModel,
    names: Iterable[str] | None = None,
    *,
    pattern: Pattern = TWO_FOUR,
    kernel: Kernel = "cusparselt",
) -> dict[str, WeightMatrix]:
    """The layers that `sparsify` would replace, by name.

    Args:
        model: on any device.
        names: which; every prunable one when None.
        pattern: that they have.
        kernel: that is to multiply them.

    Raises:
        InputError: a layer is not sparse in the pattern (its first offending group is named), has a
            shape or dtype without a kernel, or is not one that can be replaced.
    """
    if kernel not in get_args(Kernel):
        raise unknown("kernel", kernel, get_args(Kernel))
    if kernel == "cusparselt" and pattern != TWO_FOUR:
        raise InputError(f"Sparse tensor cores multiply 2:4, not {pattern}: kernel='compressed'.")
    layers = prunable_layers(model)
    names = list(layers) if names is None else list(names)
    for name in names:
        if name not in layers:
            raise unknown("layer", name, list(layers))
    chosen = {name: layers[name] for name in names}
    if not chosen:
        raise InputError("No layer is to be replaced: leave layers out for every prunable one.")
    for name, layer in chosen.items():
        if kernel == "cusparselt":
            check_weight(layer.weight, name, dtypes=LINEAR_DTYPES)
        else:
            try:
                check_nm_product(1, layer.weight.shape[1], pattern, layer.weight.dtype)
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
        if not isinstance(layer.module, nn.Linear | Conv1D):
            raise InputError(
                f"{name} is part of a {type(layer.module).__name__}, which multiplies it itself: "
                "only linear layers can be replaced. Leave it out with layers=[...]."
            )
    for name, layer in chosen.items():
        require_nm(layer.weight, pattern, name)
    return chosen


def overfull_share(weight: Tensor, pattern: Pattern = TWO_FOUR) -> float:
    """Share of the groups along the input that hold more weights than sparse tensor cores can read.

    The hardware skips along the input alone, the axis that is summed over. 0 for a layer that can
    run; 5/16 where half of the weights stay in places that have nothing to do with each other.

    Args:
        weight: [out, in].
        pattern: what each group may hold.
    """
    per_group = in_groups(weight != 0, pattern.m, fill=False).sum(dim=-1)
    return float((per_group > pattern.n).float().mean())


def mlp_readiness(
    model: PreTrainedModel, tokens: Tensor, block: int, methods: Iterable[PruningMethod]
) -> pd.DataFrame:
    """What each method's 2:4 masks of one MLP leave in the groups along the input.

    Args:
        model: it stays as it is.
        tokens: calibration tokens, int64 [sequence, position].
        block: whose MLP, counted from 0.
        methods: that need norms alone.

    Returns:
        One row a method and layer, before and after the activation function; none where it is not
        known which layers these are. Columns: method, layer, grouped_along ("in" or "out"),
        kept_share and overfull_share (0 to 1).

    Raises:
        InputError: the model has no such block.
    """
    blocks = transformer_blocks(model)
    if not 0 <= block < len(blocks):
        raise InputError(f"The model has blocks 0 to {len(blocks) - 1}, got {block}.")
    groups = blocks[block].groups
    before = next((group for group in groups if group.feeds is not None), None)
    if before is None:
        return pd.DataFrame(
            columns=["method", "layer", "grouped_along", "kept_share", "overfull_share"]
        )
    names = before.name, groups[before.feeds].name
    first, second = (
        LayerStats.of(layer_inputs(model, tokens, name), None, gram=False) for name in names
    )
    stats = replace(first, output_norm=second.norm), second
    layers = prunable_layers(model)
    rows = []
    for method in methods:
        for name, of_layer in zip(names, stats, strict=True):
            weight = layers[name].weight
            mask = method.choose(weight, of_layer, TWO_FOUR).mask
            rows.append(
                {
                    "method": type(method).__name__,
                    "layer": name,
                    "grouped_along": method.group_axis(of_layer),
                    "kept_share": float(mask.float().mean()),
                    "overfull_share": overfull_share(mask),
                }
            )
    return pd.DataFrame(rows)
