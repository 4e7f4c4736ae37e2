"""A pruned model made to run sparse: its 2:4 layers replaced in place."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from esparse_lab.blocks import WeightMatrix
from esparse_lab.errors import EsparseError, InputError, unknown
from esparse_lab.gemm import cusparselt
from esparse_lab.gemm.algorithms import AlgorithmStore
from esparse_lab.gemm.cusparselt import Product, padded_tokens
from esparse_lab.gemm.linear import Choice, SparseLinear
from esparse_lab.gemm.readiness import sparse_layers
from esparse_lab.gemm.search import found

Policy = Literal["auto", "sparse"]


@dataclass(frozen=True)
class SparseLayer:
    """What became of one layer.

    Attributes:
        name: dotted path in the model.
        rows, columns: of its weight.
        choices: how it is computed, by number of tokens.
        dense_ms, chosen_ms: device time at each of those numbers of tokens, as the search measured
            it on random data.
        dense_bytes, stored_bytes: of the weight before and now. A layer that is dense for some and
            sparse for other numbers of tokens holds both forms.
    """

    name: str
    rows: int
    columns: int
    choices: list[Choice]
    dense_ms: list[float]
    chosen_ms: list[float]
    dense_bytes: int
    stored_bytes: int


def sparsify(
    model: PreTrainedModel,
    *,
    tokens: Sequence[int] = (16, 64, 256, 1024, 4096),
    policy: Policy = "auto",
    layers: Iterable[str] | None = None,
    store: AlgorithmStore | None = None,
    progress: bool = True,
) -> list[SparseLayer]:
    """Replace a model's 2:4 layers by sparse ones, in place; for inference.

    The first time that a shape comes up on a device its algorithms are searched (about a minute a
    shape and number of tokens); the result is kept on disk.

    Args:
        model: pruned 2:4 and stored in float16 or bfloat16, on a CUDA device.
        tokens: the numbers of tokens in one forward (batch times positions) to be fast at. Others
            take the algorithm of the next larger one.
        policy: "auto" computes a layer dense where that is faster; "sparse" never does, which takes
            the least memory.
        layers: names of the layers to replace; every prunable one when None.
        store: where searches are kept; the device's file in the cache when None.
        progress: whether to show a bar.

    Returns:
        What became of each layer, in the model's order.

    Raises:
        InputError: a layer is not 2:4 (its first offending group is named), has a shape or dtype
            without a kernel, or is not one that can be replaced. Nothing is changed then.
        EsparseError: this machine cannot run it, and why.
    """
    if policy not in get_args(Policy):
        raise unknown("policy", policy, get_args(Policy))
    if not tokens or min(tokens) < 1:
        raise InputError(f"tokens must be numbers of at least 1, got {tokens}.")
    chosen = sparse_layers(model, layers)
    if reason := cusparselt.unavailable(model.device if model.device.type == "cuda" else None):
        raise EsparseError(f"The model cannot run sparse here: {reason}.")
    if model.device.type != "cuda":
        raise InputError(f"The model is on {model.device}: move it first, model.to('cuda').")
    store = store or AlgorithmStore(model.device)
    buckets = sorted({padded_tokens(n, torch.float16) for n in tokens})
    kinds = {(*layer.weight.shape, layer.weight.dtype) for layer in chosen.values()}
    products = {
        (kind, n): Product(*kind[:2], n, kind[2])
        for kind in sorted(kinds, key=str)
        for n in buckets
    }
    wanted = tqdm(products.values(), "searching", unit="product", disable=not progress)
    searched = found(wanted, model.device, store)
    results = []
    for name in tqdm(list(chosen), "compressing", unit="layer", disable=not progress):
        layer = chosen.pop(name)  # so that the dense weight goes when its layer is replaced
        kind = (*layer.weight.shape, layer.weight.dtype)
        of_layer = [searched[products[kind, n]] for n in buckets]
        sparse = [policy == "sparse" or f.ms < f.dense_ms for f in of_layer]
        choices = [
            Choice(n, f.algorithm if use else None)
            for n, f, use in zip(buckets, of_layer, sparse, strict=True)
        ]
        weight = layer.weight
        new = SparseLinear(weight, _bias(layer), choices=choices, name=name)
        results.append(
            SparseLayer(
                name,
                *weight.shape,
                choices,
                [f.dense_ms for f in of_layer],
                [f.ms if use else f.dense_ms for f, use in zip(of_layer, sparse, strict=True)],
                weight.nbytes,
                new.weight_bytes,
            )
        )
        del weight, layer
        model.set_submodule(name, new)
    return results


def _bias(layer: WeightMatrix) -> Tensor | None:
    return getattr(layer.module, "bias", None)
