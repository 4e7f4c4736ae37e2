"""Statistics of a whole model's layers, kept on disk: seen once, they are there at once."""

from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from esparse_lab.channel_stats import LayerStats, Needs
from esparse_lab.corpora import tokens_sha256
from esparse_lab.experiments import weights_fingerprint
from esparse_lab.models import LoadedModel
from esparse_lab.result_cache import cached

_TENSORS = ("norm", "entropy", "low", "high")


def kept_stats(
    loaded: LoadedModel, tokens: Tensor, needs: Needs, measure: Callable[[], dict[str, LayerStats]]
) -> dict[str, LayerStats]:
    """What `measure()` returns, of this model on these tokens, or what it returned before.

    Args:
        loaded: the model; weights changed in memory count as another model.
        tokens: int64 [sequence, position].
        needs: what is measured; neither Gram matrices nor norms of outputs, which are large.
        measure: takes the statistics, by layer.
    """
    key = {
        "table": "statistics",
        "model": loaded.revision,
        "weights": weights_fingerprint(loaded.model),
        "name": loaded.name,
        "dtype": str(loaded.model.dtype),
        "device": loaded.model.device.type,
        "tokens": tokens_sha256(tokens),
        "needs": asdict(needs),
    }
    rows = cached(key, lambda: {name: _written(stats) for name, stats in measure().items()})
    return {name: _read(row, loaded.model.device) for name, row in rows.items()}


def _written(stats: LayerStats) -> dict:
    row = {"n_tokens": stats.n_tokens, "n_sequences": stats.n_sequences}
    for name in _TENSORS:
        value = getattr(stats, name)
        # As bytes: a list of numbers takes JSON seconds.
        row[name] = None if value is None else b64encode(value.cpu().numpy().tobytes()).decode()
    return row


def _read(row: dict, device: torch.device) -> LayerStats:
    tensors = {
        name: None
        if row[name] is None
        else torch.tensor(np.frombuffer(b64decode(row[name]), np.float32), device=device)
        for name in _TENSORS
    }
    return LayerStats(**row | tensors)
