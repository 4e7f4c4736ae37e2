"""A pruned model made to run sparse: its N:M layers replaced in place."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from esparse_lab.blocks import WeightMatrix
from esparse_lab.errors import EsparseError, InputError, unknown
from esparse_lab.gemm.algorithms import AlgorithmStore
from esparse_lab.gemm.compressed_linear import CompressedLinear
from esparse_lab.gemm.cusparselt import TWO_FOUR, Product, padded_tokens
from esparse_lab.gemm.kernel import Kernel, unavailable
from esparse_lab.gemm.linear import Choice, SparseLinear
from esparse_lab.gemm.readiness import sparse_layers
from esparse_lab.gemm.search import found
from esparse_lab.masks import Pattern

Policy = Literal["auto", "sparse"]


@dataclass(frozen=True)
class SparseLayer:
    """What became of one layer.

    Attributes:
        name: dotted path in the model.
        rows, columns: of its weight.
        choices: how it is computed, by number of tokens; empty for the kernel "compressed".
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
    pattern: Pattern = TWO_FOUR,
    kernel: Kernel | None = None,
    layers: Iterable[str] | None = None,
    store: AlgorithmStore | None = None,
    progress: bool = True,
) -> list[SparseLayer]:
    """Replace a model's N:M layers by sparse ones, in place; for inference.

    2:4 runs on sparse tensor cores (`SparseLinear`). The first time that a shape comes up on a
    device its algorithms are searched, some seconds a shape and number of tokens; the result is
    kept on disk. Other patterns are stored compressed (`CompressedLinear`): reading less makes them
    faster up to some tens of tokens, and slower beyond, where the weight is decompressed first.

    Args:
        model: pruned and stored in float16 or bfloat16, on a CUDA device.
        tokens: the numbers of tokens in one forward (batch times positions) to be fast at. Others
            take the algorithm of the next larger one.
        policy: "auto" computes a layer dense where that is faster; "sparse" never does, which takes
            the least memory. "compressed" has no other choice.
        pattern: of the layers: 2:4, or 1:4, 2:8 or 4:8.
        kernel: "cusparselt" (2:4 alone) or "compressed"; by the pattern when None.
        layers: names of the layers to replace; every prunable one when None.
        store: where searches are kept; the device's file in the cache when None.
        progress: whether to show a bar.

    Returns:
        What became of each layer, in the model's order.

    Raises:
        InputError: a layer is not sparse in the pattern (its first offending group is named), has a
            shape or dtype without a kernel, or is not one that can be replaced. Nothing is changed
            then.
        EsparseError: this machine cannot run it, and why.
    """
    if policy not in get_args(Policy):
        raise unknown("policy", policy, get_args(Policy))
    if not tokens or min(tokens) < 1:
        raise InputError(f"tokens must be numbers of at least 1, got {tokens}.")
    kernel = kernel or ("cusparselt" if pattern == TWO_FOUR else "compressed")
    chosen = sparse_layers(model, layers, pattern=pattern, kernel=kernel)
    if reason := unavailable(kernel, model.device if model.device.type == "cuda" else None):
        raise EsparseError(f"The model cannot run sparse here: {reason}.")
    if model.device.type != "cuda":
        raise InputError(f"The model is on {model.device}: move it first, model.to('cuda').")
    if kernel == "compressed":
        return _compressed(model, chosen, pattern, progress)
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


def _compressed(
    model: PreTrainedModel, layers: dict[str, WeightMatrix], pattern: Pattern, progress: bool
) -> list[SparseLayer]:
    results = []
    for name in tqdm(list(layers), "compressing", unit="layer", disable=not progress):
        layer = layers.pop(name)  # so that the dense weight goes when its layer is replaced
        weight = layer.weight
        new = CompressedLinear(weight, pattern, _bias(layer), name=name)
        size = weight.nbytes, new.weight_bytes
        results.append(SparseLayer(name, *weight.shape, [], [], [], *size))
        del weight, layer
        model.set_submodule(name, new)
    return results


def _bias(layer: WeightMatrix) -> Tensor | None:
    return getattr(layer.module, "bias", None)
