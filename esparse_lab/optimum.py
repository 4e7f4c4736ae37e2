"""How far an order is from optimal: the best there is for a few channels, a bound for many."""

from dataclasses import dataclass
from functools import cache
from itertools import combinations

import torch
from torch import Tensor

from esparse_lab.errors import InputError
from esparse_lab.group_scores import descending
from esparse_lab.masks import Pattern
from esparse_lab.permutation import ChannelOrder, retained_share

# All arrangements of so many channels are covered in about a second.
MOST_CHANNELS = 16


@dataclass(frozen=True)
class Recoverable:
    """What an order of the channels can win back of the score that a mask drops.

    Attributes:
        stored: share of the score that is kept in the stored order, 0 to 1.
        bound: share that no order exceeds: each row keeps its largest N/M, wherever they stand.
    """

    stored: float
    bound: float

    def recovered(self, retained: float) -> float:
        """(retained - stored) / (bound - stored), at most 1; NaN where nothing can be won."""
        return (retained - self.stored) / gap if (gap := self.bound - self.stored) else float("nan")


def recoverable(scores: Tensor, pattern: Pattern) -> Recoverable:
    """The limits between which orders of these channels keep score.

    Args:
        scores: at least 0, [row, in]; the rows of all layers that share an order.
        pattern: N:M.
    """
    whole, rest = divmod(scores.shape[1], pattern.m)
    kept = scores.topk(whole * pattern.n + min(rest, pattern.n), dim=1, sorted=False).values
    total = float(scores.sum(dtype=torch.float64)) or 1.0
    return Recoverable(retained_share(scores, pattern), float(kept.double().sum()) / total)


def optimal_order(scores: Tensor, pattern: Pattern) -> ChannelOrder:
    """An order of a few channels that no other one beats.

    Looks at every way to part the channels into groups: 35 for 8 channels in groups of 4, 5,775 for
    12 and 2,627,625 for 16. Groups that are left when others are taken are solved once.

    Args:
        scores: at least 0, [row, in].
        pattern: N:M.

    Raises:
        InputError: for more than 16 channels.
    """
    n_channels, m = scores.shape[1], pattern.m
    if n_channels > MOST_CHANNELS:
        raise InputError(
            f"All arrangements of {n_channels} channels are too many to try; take up to "
            f"{MOST_CHANNELS}, or `recoverable` for a bound."
        )
    kept: dict[tuple[int, ...], float] = {}
    for size in {min(m, n_channels), n_channels % m or m}:
        for group in combinations(range(n_channels), size):
            best = descending(scores.T[list(group)])[: pattern.n]
            kept[group] = float(sum(best).sum(dtype=torch.float64))

    @cache
    def best_of(left: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
        if not left:
            return 0.0, ()
        if len(left) % m:  # a group that is not whole comes last
            groups = combinations(left, len(left) % m)
        else:
            groups = ((left[0], *others) for others in combinations(left[1:], m - 1))
        found = []
        for group in groups:
            value, before = best_of(tuple(c for c in left if c not in group))
            found.append((kept[group] + value, before + group))
        return max(found)

    return ChannelOrder(torch.tensor(best_of(tuple(range(n_channels)))[1], device=scores.device))
