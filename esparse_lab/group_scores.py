"""What groups of channels keep, and what a channel that came in anew would compete with.

In a row a group keeps its n largest of m scores. Take channel a out: the others keep `secure` for
certain, and whoever stands in a's place adds what it has beyond `rival`, or the rival itself. So
the group keeps secure + max(rival, newcomer), which `pairwise` sums for all newcomers at once.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from esparse_lab.cpu_loops import Loop, compiled, in_shares

# So many rows of a group are worked on at once: they stay in the nearest cache.
ROWS_IN_CACHE = 512

GroupScores = tuple[Tensor, Tensor, Tensor]
"""rival [..., m, row]; secure, summed over rows [..., m]; kept [...], float64."""


def group_scores(x: Tensor, channels: Tensor, n: int) -> GroupScores:
    """Terms of the groups of one block.

    Args:
        x: scores, float32 [channel, row].
        channels: the members of each group, int64 [group, m], m > n.
        n: how many a group keeps in each row.
    """
    terms = _compiled() if x.device.type == "cpu" else None
    if terms is None:
        return scores_inside(x[channels], n)
    groups, m = channels.shape
    rival = torch.empty(groups, m, x.shape[1])
    secure = torch.empty(groups, m)
    kept = torch.empty(groups, dtype=torch.float64)
    members, *found = (t.numpy() for t in (channels.contiguous(), rival, secure, kept))
    in_shares(groups, lambda some: terms(x.numpy(), members[some], n, *(t[some] for t in found)))
    return rival, secure, kept


def scores_inside(inside: Tensor, n: int) -> GroupScores:
    """The same from the members' scores [..., m, row], by PyTorch."""
    in_order = descending(inside)
    top, bar, below = in_order[:n], in_order[n - 1], in_order[n]
    kept = torch.stack(top).sum(dim=0)
    # Without channel a, the group keeps its best n - 1 others whatever comes in a's place, and
    # the newcomer competes with the n-th: both follow from whether a is among the kept.
    secure = kept[..., None, :] - torch.maximum(inside, bar[..., None, :])
    rival = torch.where(inside >= bar[..., None, :], below[..., None, :], bar[..., None, :])
    return rival, secure.sum(dim=-1), kept.sum(dim=-1, dtype=torch.float64)


def descending(x: Tensor) -> list[Tensor]:
    """`x` [..., m, r] sorted along m, largest first, as m tensors [..., r].

    A network of comparisons: for a handful of members it beats a sort along a strided axis.
    """
    members = list(x.unbind(dim=-2))
    for round_ in range(len(members)):
        for i in range(round_ % 2, len(members) - 1, 2):
            a, b = members[i], members[i + 1]
            members[i], members[i + 1] = torch.maximum(a, b), torch.minimum(a, b)
    return members


@cache
def _compiled() -> Loop | None:
    """`scores_inside` in one pass, compiled; None without numba."""

    def terms(x, channels, n, rival, secure, kept):
        m, n_rows = channels.shape[1], x.shape[1]
        ordered = np.empty((m, ROWS_IN_CACHE), np.float32)
        best = np.empty(ROWS_IN_CACHE, np.float32)
        for group in range(len(channels)):
            secure[group], kept[group] = 0, 0
            for start in range(0, n_rows, ROWS_IN_CACHE):
                size = min(ROWS_IN_CACHE, n_rows - start)
                for i in range(m):
                    ordered[i, :size] = x[channels[group, i], start : start + size]
                for round_ in range(m):
                    for i in range(round_ % 2, m - 1, 2):
                        upper, lower = ordered[i], ordered[i + 1]
                        for row in range(size):
                            p, q = upper[row], lower[row]
                            upper[row] = p if p > q else q
                            lower[row] = q if p > q else p
                best[:size] = 0
                for i in range(n):
                    of_rank = ordered[i]
                    for row in range(size):
                        best[row] += of_rank[row]
                total = np.float32(0)
                for row in range(size):
                    total += best[row]
                kept[group] += total
                bar, below = ordered[n - 1], ordered[n]
                for i in range(m):
                    own = x[channels[group, i], start : start + size]
                    against = rival[group, i, start : start + size]
                    total = np.float32(0)
                    for row in range(size):
                        is_kept = own[row] >= bar[row]
                        against[row] = below[row] if is_kept else bar[row]
                        total += best[row] - (own[row] if is_kept else bar[row])
                    secure[group, i] += total

    return compiled(terms)
