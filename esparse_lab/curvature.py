"""The layer-wise Hessian: how the output error |(W - W') X|^2 bends with each pair of weights.

It is the same for every row of a layer: H = 2 X^T X, damped so that it can be inverted.
"""

import torch
from torch import Tensor

from esparse_lab.channel_stats import LayerStats
from esparse_lab.errors import EsparseError, InputError


def hessian(stats: LayerStats, damping: float) -> Tensor:
    """2 X^T X with `damping` times the mean of its diagonal added to the diagonal, float64.

    A channel that was never anything but zero has no curvature: it gets a diagonal of 1 (as in
    SparseGPT's code), so that it stands apart from all others.

    Raises:
        InputError: if the statistics hold no Gram matrix.
    """
    if stats.gram is None:
        raise InputError("This method needs the Gram matrix: collect with Needs(gram=True).")
    # float64: with loud channels the condition passes 1e7, where float32 cannot factorise any more.
    damped = 2 * stats.gram.double()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1.0
    diagonal += damping * diagonal.mean()
    return damped


def aim(weight: Tensor, stats: LayerStats, curvature: Tensor) -> Tensor:
    """What W' H is for the best unrestricted W', [out, in]: W H, so that W' = W.

    Where the statistics are matched to the dense model, the best W' is the one whose output on what
    the layer now reads comes nearest to what the dense model has in its place.

    Args:
        weight: of the dense layer, [out, in].
        stats: of what it reads.
        curvature: from `hessian` of the same statistics; its damping pulls W' towards W.
    """
    if stats.cross is None:
        return weight @ curvature
    damping = curvature.diagonal() - 2 * stats.gram.diagonal()
    wanted = weight @ stats.cross
    if stats.drift is not None:
        wanted += stats.drift
    return 2 * wanted + weight * damping


def inverse_factor(curvature: Tensor) -> Tensor:
    """Upper triangular U with U^T U the inverse of `curvature` [in, in].

    U[j, j]^2 is the inverse curvature of channel j when the channels before it cannot move any
    more: what a sweep from left to right needs.

    Raises:
        EsparseError: if the matrix is not positive definite.
    """
    # H = R R^T with R upper triangular gives U = R^-1. Half by half, from the last channels to the
    # first, nearly all of it is matrix products.
    n = len(curvature)
    if n <= 192:
        return _inverse_factor_at_once(curvature)
    first, last = slice(0, n // 2), slice(n // 2, n)
    u = torch.zeros_like(curvature)
    u[last, last] = inverse_factor(curvature[last, last])
    across = curvature[first, last] @ u[last, last].T
    u[first, first] = inverse_factor(curvature[first, first] - across @ across.T)
    u[first, last] = -u[first, first] @ (across @ u[last, last])
    return u


def _inverse_factor_at_once(curvature: Tensor) -> Tensor:
    # A Cholesky factor seen in the mirror is upper triangular.
    lower, failed = torch.linalg.cholesky_ex(curvature.flip(0, 1))
    if failed:
        raise EsparseError(
            "The Hessian of this layer's inputs is not positive definite: channels that are copies "
            "or sums of others, or too few tokens. Raise the damping (0.01 adds one percent of the "
            "mean diagonal), or calibrate on more tokens than the layer has channels."
        )
    identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
    return torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)


def check_damping(damping: float) -> None:
    """Raise `InputError` unless `damping` is a finite share of at least 0."""
    if not 0 <= damping < float("inf"):
        raise InputError(f"damping must be a share of at least 0, such as 0.01, got {damping}.")
