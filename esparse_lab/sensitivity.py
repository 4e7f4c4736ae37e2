"""How much a model's loss, or its scores, say that a layer can lose: what allocations go by."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from esparse_lab.architectures import prunable_layers, transformer_blocks
from esparse_lab.capture import check_tokens, collect_layer_stats
from esparse_lab.errors import EsparseError, InputError
from esparse_lab.methods import Wanda


def hessian_traces(
    model: PreTrainedModel, tokens: Tensor, *, probes: int = 1, seed: int = 0
) -> dict[str, Tensor]:
    """Estimates of the trace of the loss's Hessian by each weight matrix.

    Hutchinson's: z . Hz for random signs z, where all matrices share one second backward pass. The
    loss is the mean cross entropy of a sequence's next tokens. Weights of half precision are made
    float32 meanwhile, as second derivatives drown in their rounding: the whole model is held
    once more, beside the activations of every block.

    Args:
        model: a supported decoder; its weights, flags and `.grad` are afterwards as they were.
        tokens: int64 [sequence, position], at least two positions.
        probes: sign vectors a sequence.
        seed: of the signs; they are the same on every device.

    Returns:
        Layer name to its estimates, float64 [sequence, probe], in CPU memory. Their mean estimates
        the trace, of either sign; their spread tells how well.

    Raises:
        EsparseError: if an estimate is not finite; names the layer.
        InputError: if the tokens do not fit the model, or there is no probe.
    """
    check_tokens(model, tokens)
    if probes < 1 or tokens.shape[1] < 2:
        raise InputError(
            f"A trace needs at least 1 probe and 2 positions, got {probes} and {tokens.shape[1]}."
        )
    layers = prunable_layers(model)
    holders = {id(p): p for x in layers.values() for p in [getattr(x.module, x.parameter)]}
    weights = list(holders.values())
    generator = torch.Generator().manual_seed(seed)
    estimates = {name: torch.zeros(len(tokens), probes, dtype=torch.float64) for name in layers}
    # Fused attention has no second derivative.
    with _differentiable(model, weights), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        for number, sequence in enumerate(tokens.to(model.device)):
            logits = model(sequence[None], use_cache=False).logits[0, :-1]
            loss = nn.functional.cross_entropy(logits, sequence[1:])
            # Experts that no token was sent to are not in the graph: their gradient is zero.
            options = {"allow_unused": True, "materialize_grads": True}
            slopes = torch.autograd.grad(loss, weights, create_graph=True, **options)
            for probe in range(probes):
                signs = [_signs(w, generator) for w in weights]
                along = sum((s * z).sum() for s, z in zip(slopes, signs, strict=True))
                bends = torch.autograd.grad(along, weights, retain_graph=True, **options)
                found = {  # a number a matrix; for a stack of experts, [expert]
                    id(w): (z * b).sum((-2, -1), dtype=torch.float64).cpu()
                    for w, z, b in zip(weights, signs, bends, strict=True)
                }
                for name, layer in layers.items():
                    trace = found[id(getattr(layer.module, layer.parameter))]
                    its_own = trace if layer.expert is None else trace[layer.expert]
                    estimates[name][number, probe] = its_own
    for name, estimate in estimates.items():
        if not estimate.isfinite().all():
            raise EsparseError(
                f"{name}: the trace of its Hessian is not finite. Check the model's weights with "
                "check_finite_weights, and its loss on these tokens with perplexity."
            )
    return estimates


def _signs(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Random signs (Rademacher) in the shape of `weight`."""
    drawn = torch.randint(2, weight.shape, generator=generator, dtype=torch.int8)
    return drawn.to(weight.device).to(weight.dtype).mul_(2).sub_(1)


@contextmanager
def _differentiable(model: nn.Module, weights: list[nn.Parameter]) -> Iterator[None]:
    """Only `weights` want gradients, and no weight is of half precision, until the end."""
    before = [(p, p.data, p.requires_grad) for p in model.parameters()]
    wanted = {id(w) for w in weights}
    try:
        for parameter, data, _ in before:
            if data.dtype in (torch.float16, torch.bfloat16):
                parameter.data = data.float()
            parameter.requires_grad_(id(parameter) in wanted)
        yield
    finally:
        for parameter, data, flag in before:
            parameter.data = data
            parameter.requires_grad_(flag)


def outlier_shares(
    model: PreTrainedModel, tokens: Tensor, *, factor: float = 5.0
) -> dict[str, float]:
    """Share of each block's weights whose Wanda score is above `factor` times the block's mean.

    Yin et al. 2023, arXiv 2310.05175 (OWL). As in its code, all weights of a transformer block
    share one mean, and inputs are those of the dense model.

    Returns:
        Block name, such as "model.layers.3", to a share from 0 to 1. Experts that no token was sent
        to are left out of it.
    """
    stats = collect_layer_stats(model, tokens, histogram=None, progress=False)
    shares = {}
    for block in transformer_blocks(model):
        scores = [
            Wanda().score(layer.weight, stats[name])
            for name, layer in block.layers.items()
            if stats[name].n_tokens
        ]
        size = sum(s.numel() for s in scores)
        mean = sum(float(s.sum(dtype=torch.float64)) for s in scores) / size
        shares[block.name] = sum(int((s > factor * mean).sum()) for s in scores) / size
    return shares
