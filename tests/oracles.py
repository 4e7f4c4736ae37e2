"""The layer-wise problem in numpy float64, straight from its formulas; nothing of ours runs."""

import numpy as np
import torch


def layer_case(
    seed: int = 0, rows: int = 5, channels: int = 24, tokens: int = 200
) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [out, in] and correlated activations [token, in], some channels far louder."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(tokens, channels)) @ rng.normal(size=(channels, channels))
    loud = np.exp(rng.normal(size=channels))
    weight = rng.normal(size=(rows, channels))
    return torch.tensor(weight).float(), torch.tensor(mixed * loud / 10).float()


def damped_hessian(activations: torch.Tensor, damping: float) -> np.ndarray:
    """2 X^T X + damping * mean(diagonal) * I; 1 on the diagonal of a channel that is always 0."""
    x = activations.double().numpy()
    h = 2 * x.T @ x
    dead = np.diag(h) == 0
    h[dead, dead] = 1.0
    return h + damping * np.mean(np.diag(h)) * np.eye(len(h))


def row_errors(weight, after, hessian: np.ndarray) -> np.ndarray:
    """What each row's output error is, e H e^T of e = weight - after, [out]."""
    e = np.asarray(weight, dtype=np.float64) - np.asarray(after, dtype=np.float64)
    return np.einsum("ri,ij,rj->r", e, hessian, e)
