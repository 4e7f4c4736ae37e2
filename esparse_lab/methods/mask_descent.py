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
from esparse_lab.methods.triton_limits import runs_in_triton

# Ways to keep n of m that are all tried in every group; 8:16 has 12870.
MOST_WAYS = 12870

# Columns between two updates of the rest of the row.
BLOCK = 128

# A row that a CUDA kernel can hold in registers.
WIDEST_ROW = 16384


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
        scores = self.score(weight, stats)
        start = sparsity.mask(scores)
        curvature = hessian(stats, self.damping).float()
        # A channel that is always zero adds nothing to the output, whatever its weight.
        weight = weight.float().masked_fill(stats.gram.diagonal() == 0, 0)
        if isinstance(sparsity, Pattern):
            mask = _descend_groups(weight, start, curvature, sparsity, self.sweeps)
        else:
            mask = _descend_rows(weight, start, curvature, self.sweeps)
        return Choice(mask, scores=scores)


def _descend_groups(w: Tensor, mask: Tensor, h: Tensor, pattern: Pattern, sweeps: int) -> Tensor:
    """Coordinate descent over groups of M channels, block by block, all rows at once."""
    w, gone = w.contiguous(), w.masked_fill(mask, 0)
    pull = gone @ h
    block = max(pattern.m, BLOCK // pattern.m * pattern.m)
    descend = _descend_block
    if runs_in_triton(w, block, pattern.m):
        from esparse_lab.methods.kernels import descend_block as descend
    # The last group may be shorter.
    sizes = {pattern.m, w.shape[1] % pattern.m or pattern.m}
    ways = {size: _ways(size, min(pattern.n, size), w.device) for size in sizes}
    for _ in range(sweeps):
        before = gone.clone()
        for start in range(0, w.shape[1], block):
            inside = slice(start, min(start + block, w.shape[1]))
            descend(w, gone, pull, h, ways, start, block, pattern)
            pull.addmm_(gone[:, inside] - before[:, inside], h[inside])
        if torch.equal(before, gone):
            break
    # A weight of 0 counts as pruned or kept alike: complete the mask to exactly n a group.
    return pattern.mask(torch.where(gone != 0, -1.0, w.abs() + mask))


def _descend_block(
    w: Tensor,
    gone: Tensor,
    pull: Tensor,
    h: Tensor,
    ways: dict[int, Tensor],
    start: int,
    block: int,
    pattern: Pattern,
) -> None:
    """Give each group of a block of columns its best mask, in order.

    With pruned set p, group g costs e_p H_gg e_p^T + 2 e_p r^T, where r = (E H)_g without the
    group's own share. Both terms are sums over members and pairs of members of p: one product of
    [row, member or pair] with [member or pair, way] gives every way's cost.

    Args:
        w: weights, float32 [out, in].
        gone: the pruned weights, zero where kept, [out, in]; written.
        pull: `gone @ h`, [out, in]; read only, the caller brings it up to date.
        h: the Hessian, float32 [in, in].
        ways: which members go, float32 [way, member], by the size of a group.
        start: first column.
        block: columns; may reach beyond the last one.
        pattern: its M is the size of a group, its N the members that stay.
    """
    end = min(start + block, w.shape[1])
    pull = pull[:, start:end].clone()
    for left in range(start, end, pattern.m):
        members = slice(left, min(left + pattern.m, end))
        mine, own = w[:, members], h[members, members]
        pruned = ways[mine.shape[1]]
        first, second = torch.triu_indices(len(own), len(own), offset=1, device=w.device)
        rest = pull[:, left - start : left - start + len(own)] - gone[:, members] @ own
        single = mine * (mine * own.diagonal() + 2 * rest)
        pairs = mine[:, first] * mine[:, second] * (2 * own[first, second])
        costs = single @ pruned.T + pairs @ (pruned[:, first] * pruned[:, second]).T
        best = mine * pruned[costs.argmin(dim=1)]
        pull.addmm_(best - gone[:, members], h[members, start:end])
        gone[:, members] = best


def _ways(size: int, n_kept: int, device: torch.device) -> Tensor:
    """Every way to prune all but `n_kept` of `size` members, 1.0 where one goes, [way, member]."""
    if math.comb(size, n_kept) > MOST_WAYS:
        raise InputError(
            f"Mask descent tries every way to keep {n_kept} of {size} weights, here "
            f"{math.comb(size, n_kept):,}; it can take up to {MOST_WAYS:,}."
        )
    kept = torch.tensor(list(itertools.combinations(range(size), n_kept)), device=device)
    return torch.ones(len(kept), size, device=device).scatter_(1, kept, 0.0)


def _descend_rows(w: Tensor, mask: Tensor, h: Tensor, sweeps: int) -> Tensor:
    """Without groups: in every row the best weight comes back and the worst goes, over and over."""
    w = w.contiguous()
    swap = _swap_in_rows
    if runs_in_triton(w, 1, 1) and w.shape[1] <= WIDEST_ROW:
        from esparse_lab.methods.kernels import swap_in_rows as swap
    swapped = swap(w, mask, w.masked_fill(mask, 0) @ h, h, sweeps * w.shape[1])
    return swapped | mask.all(dim=1, keepdim=True)  # a row that keeps all has nothing to swap


def _swap_in_rows(w: Tensor, mask: Tensor, pull: Tensor, h: Tensor, most: int) -> Tensor:
    """Swap a pruned weight with a kept one in each row until none pays, at most `most` times.

    Args:
        w: weights, float32 [out, in].
        mask: where to start, bool [out, in].
        pull: the pruned weights times `h`, [out, in]; overwritten.
        h: the Hessian, float32 [in, in].
        most: swaps of a row at most.

    Returns:
        The mask, bool [out, in].
    """
    mask = mask.clone()
    curve = w.square() * h.diagonal()
    rows = torch.arange(len(w), device=w.device)
    for _ in range(most):
        back = (curve - 2 * w * pull).masked_fill_(mask, torch.inf).argmin(dim=1)
        mask[rows, back] = True
        pull.addcmul_(w[rows, back, None], h[back], value=-1)
        gone = (curve + 2 * w * pull).masked_fill_(~mask, torch.inf).argmin(dim=1)
        mask[rows, gone] = False
        pull.addcmul_(w[rows, gone, None], h[gone])
        if torch.equal(back, gone):
            break
    return mask
