"""Mask descent: the mask with the least output error that coordinate descent finds.

E-Sparse states its problem as min |(W - M*W) X|^2 over N:M masks (Li et al. 2023, arXiv 2310.15929,
Eq. 4) and then ranks weights by a score instead. This solves the stated problem: kept weights stay
as they are.
"""

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from esparse_lab.channel_stats import LayerStats, Needs
from esparse_lab.curvature import check_damping, hessian
from esparse_lab.errors import InputError
from esparse_lab.masks import Pattern, Sparsity
from esparse_lab.methods.method import Choice, PruningMethod

# Ways to keep n of m that are all tried in every group; 8:16 has 12870.
MOST_WAYS = 12870


@dataclass(frozen=True)
class MaskDescent(PruningMethod):
    """Start at Wanda's mask; give each group in turn the best mask while all others stay.

    With E the pruned weights, the error is e H e^T for every row e of E. No step can raise it.

    Attributes:
        damping: share of the Hessian's mean diagonal that is added to its diagonal.
        sweeps: rounds over all groups at most; it ends earlier when no group changes.
    """

    damping: float = 0.01
    sweeps: int = 10

    needs: ClassVar[Needs] = Needs(gram=True)

    def __post_init__(self) -> None:
        check_damping(self.damping)
        if self.sweeps < 1:
            raise InputError(f"sweeps must be at least 1, got {self.sweeps}.")

    def score(self, weight: Tensor, stats: LayerStats) -> Tensor:
        """Wanda's score, float32 [out, in]: the root of the error that a weight makes alone."""
        return weight.abs().float() * stats.norm

    def choose(self, weight: Tensor, stats: LayerStats, sparsity: Sparsity) -> Choice:
        """The mask where the descent ends."""
        start = sparsity.mask(self.score(weight, stats))
        curvature = hessian(stats, self.damping).float()
        # A channel that is always zero adds nothing to the output, whatever its weight.
        weight = weight.float().masked_fill(stats.gram.diagonal() == 0, 0)
        if isinstance(sparsity, Pattern):
            return Choice(_descend_groups(weight, start, curvature, sparsity, self.sweeps))
        return Choice(_descend_rows(weight, start, curvature, self.sweeps))


def _descend_groups(w: Tensor, mask: Tensor, h: Tensor, pattern: Pattern, sweeps: int) -> Tensor:
    """Coordinate descent over groups of M channels, all rows at once.

    With pruned set p, group g costs e_p H_gg e_p^T + 2 e_p r^T, where r = (E H)_g without the
    group's own share. Both terms are sums over members and pairs of members of p: one product of
    [row, member or pair] with [member or pair, way] gives every way's cost.
    """
    error = w.masked_fill(mask, 0)
    pull = error @ h
    n_channels, m = w.shape[1], pattern.m
    whole = n_channels // m * m
    sizes = [(left, m) for left in range(0, whole, m)]
    if whole < n_channels:
        sizes.append((whole, n_channels - whole))
    ways = {size: _ways(size, min(pattern.n, size), w.device) for _, size in sizes}
    for _ in range(sweeps):
        before = error.clone()
        for left, size in sizes:
            members = slice(left, left + size)
            pruned, of_pairs, first, second = ways[size]
            mine, own = w[:, members], h[members, members]
            rest = pull[:, members] - error[:, members] @ own
            single = mine * (mine * own.diagonal() + 2 * rest)
            pairs = mine[:, first] * mine[:, second] * (2 * own[first, second])
            costs = single @ pruned.T + pairs @ of_pairs.T
            best = mine * pruned[costs.argmin(dim=1)]
            pull.addmm_(best - error[:, members], h[members])
            error[:, members] = best
        if torch.equal(before, error):
            break
    # A weight of 0 counts as pruned or kept alike: complete the mask to exactly n a group.
    return pattern.mask(torch.where(error != 0, -1.0, w.abs() + mask))


def _ways(size: int, n_kept: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every way to prune all but `n_kept` of `size` members.

    Returns:
        Which members go, [way, member]; which pairs go together, [way, pair]; the pairs' members.
    """
    if math.comb(size, n_kept) > MOST_WAYS:
        raise InputError(
            f"Mask descent tries every way to keep {n_kept} of {size} weights, here "
            f"{math.comb(size, n_kept):,}; it can take up to {MOST_WAYS:,}."
        )
    kept = torch.tensor(list(itertools.combinations(range(size), n_kept)), device=device)
    pruned = torch.ones(len(kept), size, device=device).scatter_(1, kept, 0.0)
    first, second = torch.triu_indices(size, size, offset=1, device=device)
    return pruned, pruned[:, first] * pruned[:, second], first, second


def _descend_rows(w: Tensor, mask: Tensor, h: Tensor, sweeps: int) -> Tensor:
    """Without groups: in every row one weight comes back and the best one goes, again and again."""
    nothing_to_swap = mask.all(dim=1, keepdim=True)
    mask = mask.clone()
    pull = w.masked_fill(mask, 0) @ h
    curve = w.square() * h.diagonal()
    rows = torch.arange(len(w), device=w.device)
    for step in range(sweeps * w.shape[1]):
        back = (curve - 2 * w * pull).masked_fill_(mask, torch.inf).argmin(dim=1)
        mask[rows, back] = True
        pull.addcmul_(w[rows, back, None], h[back], value=-1)
        gone = (curve + 2 * w * pull).masked_fill_(~mask, torch.inf).argmin(dim=1)
        mask[rows, gone] = False
        pull.addcmul_(w[rows, gone, None], h[gone])
        if step % 16 == 0 and torch.equal(back, gone):
            break
    return mask | nothing_to_swap
