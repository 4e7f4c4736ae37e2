"""How likely a language model finds a text: its perplexity, in Wanda's convention."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.std import tqdm
from transformers import PreTrainedModel

from esparse_lab.capture import check_tokens, sequences_at_once
from esparse_lab.errors import EsparseError, InputError

# Hears of progress: what is done, how much of it, of how much. May raise to stop it.
Told = Callable[[str, int, int], None]

# Positions whose logits are turned into losses together: a vocabulary is large.
POSITIONS_AT_ONCE = 512


@dataclass(frozen=True)
class Perplexity:
    """Perplexity over windows of equal length.

    Attributes:
        value: exp of the mean of `nll` over windows.
        nll: mean negative log likelihood of each window's predicted tokens in nats, float64
            [window]; a window of length L predicts L - 1 tokens.
        n_tokens: tokens that were predicted.
    """

    value: float
    nll: Tensor
    n_tokens: int

    def __str__(self) -> str:
        return f"{self.value:.3f}"


@torch.no_grad()
def perplexity(
    model: PreTrainedModel, tokens: Tensor, *, progress: bool = True, told: Told | None = None
) -> Perplexity:
    """How surprised `model` is by `tokens`: exp of the mean negative log likelihood.

    Windows do not see each other. Wanda weighs each window's mean by its length; windows of equal
    length make that the plain mean over windows.

    Args:
        model: a causal language model.
        tokens: int64 [window, position] with at least two positions.
        progress: show a bar, one step a window.
        told: hears of windows before each batch of them.

    Raises:
        EsparseError: if a window's loss is not finite; names the window.
        InputError: if the tokens do not fit the model.
    """
    check_tokens(model, tokens)
    if tokens.shape[1] < 2:
        raise InputError("A window needs at least two positions: one to read, one to predict.")
    losses = []
    with tqdm(total=len(tokens), desc="perplexity", unit="window", disable=not progress) as bar:
        for batch in tokens.split(sequences_at_once(model, tokens)):
            if told is not None:
                told("perplexity, window", sum(map(len, losses)), len(tokens))
            losses.append(_window_losses(model, batch.to(model.device)))
            bar.update(len(batch))
    nll = torch.cat(losses)
    broken = (~nll.isfinite()).nonzero().flatten().tolist()
    if broken:
        raise EsparseError(
            f"The loss of window {broken[0]} is not finite ({len(broken)} such). Load the model as "
            "float32, or find the layer that breaks with collect_layer_stats."
        )
    return Perplexity(math.exp(nll.mean()), nll, len(tokens) * (tokens.shape[1] - 1))


def _window_losses(model: PreTrainedModel, windows: Tensor) -> Tensor:
    """Mean negative log likelihood of each window, float64 [window], in CPU memory."""
    logits = model(windows, use_cache=False).logits[:, :-1]
    targets = windows[:, 1:]
    total = torch.zeros(len(windows), dtype=torch.float64, device=windows.device)
    parts = zip(
        logits.split(POSITIONS_AT_ONCE, 1), targets.split(POSITIONS_AT_ONCE, 1), strict=True
    )
    for part, target in parts:
        # One row a position: softmax over a strided vocabulary rounds worse and is slower.
        loss = torch.nn.functional.cross_entropy(
            part.flatten(0, 1).float(), target.flatten(), reduction="none"
        )
        total += loss.view_as(target).sum(dim=1, dtype=torch.float64)
    return (total / targets.shape[1]).cpu()
