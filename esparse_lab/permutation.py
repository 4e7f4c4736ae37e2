"""Channel order: which input channels share a group of M, searched to keep more score.

The E-Sparse paper calls it channel shuffle, the literature channel permutation. Scores are laid out
[row, channel], rows of all layers that read the same activation stacked; all are at least 0.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from esparse_lab import shuffle_kernel
from esparse_lab.errors import InputError
from esparse_lab.group_scores import descending, group_scores, scores_inside
from esparse_lab.masks import Pattern, in_groups, nm_mask
from esparse_lab.pairwise import MaximumSums

# A swap must add this share of its block's kept score to count as one: far above float32 rounding.
LEAST_GAIN = 1e-6


@dataclass(frozen=True)
class ChannelOrder:
    """An order of input channels: `new[:, k] = old[:, index[k]]`.

    Attributes:
        index: a permutation of 0 .. channels - 1, int64 [in].
    """

    index: Tensor

    def __post_init__(self) -> None:
        index = self.index
        if index.dim() != 1 or not torch.equal(
            index.sort().values, torch.arange(len(index), device=index.device)
        ):
            raise InputError("A channel order must hold each of 0 .. channels - 1 once.")

    @property
    def inverse(self) -> Tensor:
        """Where each channel went, int64 [in]: `old[:, c] = new[:, inverse[c]]`."""
        return torch.argsort(self.index)

    @classmethod
    def identity(cls, n_channels: int, device: torch.device | str = "cpu") -> "ChannelOrder":
        """The order that changes nothing."""
        return cls(torch.arange(n_channels, device=device))


@dataclass(frozen=True)
class SearchStep:
    """Where a search stands.

    Attributes:
        order: the best order so far.
        swaps: pairs of channels swapped so far, or moves of a search that moves more at once.
        retained_share: share of the total score that the N:M mask keeps under `order`, 0 to 1.
    """

    order: ChannelOrder
    swaps: int
    retained_share: float


class OrderSearch(Protocol):
    """A way to look for an order. A search is a frozen dataclass; its fields are its settings."""

    def steps(self, scores: Tensor, pattern: Pattern) -> Iterator[SearchStep]:
        """Yield ever better orders; the first is where the search starts.

        The last step may come again, so that a search that takes long can be stopped.
        """
        ...


@dataclass(frozen=True)
class GlobalShuffle:
    """Global naive shuffle: channels of close mean score go to different groups.

    Channels are sorted by mean score over rows, best first, and dealt like cards: the r-th goes to
    group r mod (number of groups).

    Attributes:
        serpentine: deal every second round from the last group back to the first, as RIA does.

    Source: Li et al. 2023, section 3.3, Figure 3a.
    """

    serpentine: bool = False

    def steps(self, scores: Tensor, pattern: Pattern) -> Iterator[SearchStep]:
        """The order as it is, then the dealt one."""
        yield stored_step(scores, pattern)
        order = ChannelOrder(self.dealt(scores, pattern))
        yield SearchStep(order, 0, retained_share(scores, pattern, order))

    def dealt(self, scores: Tensor, pattern: Pattern) -> Tensor:
        """The order that it ends with, int64 [channel]; a GPU is not waited for."""
        n_channels = scores.shape[1]
        best_first = scores.mean(dim=0, dtype=torch.float64).argsort(descending=True, stable=True)
        place = torch.arange(n_channels, device=scores.device)
        # Places in the order in which cards fall: first slot of every group, then second slots.
        n_groups = -(-n_channels // pattern.m)
        slot, group = place % pattern.m, place // pattern.m
        if self.serpentine:
            group = torch.where(slot % 2 == 1, n_groups - 1 - group, group)
        dealt = (slot * n_groups + group).argsort()
        index = torch.empty_like(place)
        index[dealt] = best_first
        return index


@dataclass(frozen=True)
class BlockShuffle:
    """Local block shuffle after the global one: swaps inside blocks of channels (Algorithm 1).

    In every block the swap of two channels that adds most kept score is made, again and again,
    until none adds anything. Gains are exact, not estimated.

    Attributes:
        block: channels in a block; a multiple of the pattern's M. The last block may be shorter.
        start: the search that finds the first order; None to start from the order as it is.
        at_once: swaps made in a block between two updates of its gains. 1 is the paper's algorithm
            to the letter. None makes every swap, best first, whose two groups no better swap has
            touched: their gains do not depend on each other, so each is still exact.

    Source: Li et al. 2023, section 3.3 and Algorithm 1.
    """

    block: int = 256
    start: GlobalShuffle | None = GlobalShuffle()
    at_once: int | None = None

    def __post_init__(self) -> None:
        if self.block < 2:
            raise InputError(f"block must be at least 2 channels, got {self.block}.")
        if self.at_once is not None and self.at_once < 1:
            raise InputError(f"at_once must be at least 1 swap or None, got {self.at_once}.")

    def steps(self, scores: Tensor, pattern: Pattern) -> Iterator[SearchStep]:
        """The starting order, then one step for each round of swaps over all blocks."""
        if self.block % pattern.m:
            raise InputError(
                f"A block of {self.block} channels does not hold whole groups of {pattern.m}; "
                f"take a multiple, such as {-(-self.block // pattern.m) * pattern.m}."
            )
        order = ChannelOrder.identity(scores.shape[1], scores.device)
        if self.start is not None:
            for step in self.start.steps(scores, pattern):
                order = step.order
        total = float(scores.sum(dtype=torch.float64)) or 1.0
        blocks = _Blocks(scores[:, order.index], pattern, self.block)
        swaps = 0
        yield SearchStep(order, swaps, blocks.kept() / total)
        kept = blocks.kept()
        while made := blocks.swap(self.at_once):
            if blocks.kept() <= kept:  # what was left was rounding: without this it might circle
                return
            kept = blocks.kept()
            swaps += made
            yield SearchStep(ChannelOrder(order.index[blocks.index()]), swaps, kept / total)

    def orders(self, scores: Sequence[Tensor], pattern: Pattern) -> list[ChannelOrder]:
        """The orders that `steps` ends with, up to rounding: all matrices in one CUDA kernel.

        Args:
            scores: matrices that `shuffle_kernel.shuffles`, on one device.
            pattern: N:M.
        """
        starts = [
            torch.arange(s.shape[1], device=s.device)
            if self.start is None
            else self.start.dealt(s, pattern)
            for s in scores
        ]
        found = shuffle_kernel.block_shuffles(
            scores,
            starts,
            pattern,
            block=self.block,
            at_once=self.at_once,
            least_gain=LEAST_GAIN,
        )
        return [ChannelOrder(index) for index in found]


SEARCHES: dict[str, OrderSearch | None] = {
    "none": None,
    "gns": GlobalShuffle(),
    "gns+lbs": BlockShuffle(),
}


class _Blocks:
    """The state of a block shuffle: which channels form which group, and what each swap gains.

    Shapes: b blocks, k channels a block, g groups a block, m channels a group, r rows.
    Channels never move; the membership of groups does. So when channel `a` of group A and channel
    `c` of group C change places, only the rows of `worth` that belong to members of A and C change.

    Attributes:
        x: scores, [b, k, r]; what fills up the last block is zero.
        members: channels of each group by their number inside the block, [b, g, m].
        worth: worth[a, c] = kept score of a's group if channel c stood in a's place, minus what the
            group keeps now, [b, k, k].
        kept_by_group: kept score of each group, [b, g], float64.
    """

    def __init__(self, scores: Tensor, pattern: Pattern, size: int):
        self.n, self.m = pattern.n, pattern.m
        self.n_channels = scores.shape[1]
        # A matrix narrower than one block makes one block of whole groups.
        size = min(size, -(-self.n_channels // self.m) * self.m)
        n_blocks = -(-self.n_channels // size)
        x = scores.new_zeros(n_blocks * size, scores.shape[0], dtype=torch.float32)
        x[: self.n_channels] = scores.T
        self.x = x.view(n_blocks, size, -1)
        self.maximum_sums = MaximumSums(self.x)
        device = x.device
        is_real = torch.arange(n_blocks * size, device=device) < self.n_channels
        self.is_filler = ~is_real.view(n_blocks, size)
        places = torch.arange(size, device=device).view(-1, self.m)
        self.members = places.repeat(n_blocks, 1, 1)
        self.worth = x.new_empty(n_blocks, size, size)
        self.kept_by_group = torch.zeros(
            n_blocks, size // self.m, dtype=torch.float64, device=device
        )
        self.open = torch.arange(n_blocks, device=device)  # blocks that may still improve
        self._update_all(self.open, is_real.view(n_blocks, -1, self.m).any(dim=-1))

    def kept(self) -> float:
        """The score kept now, over all blocks."""
        return float(self.kept_by_group.sum())

    def index(self) -> Tensor:
        """The order that the groups now make, int64 [channel].

        Fillers sit behind the real channels of their block and are never swapped, so cutting the
        end off leaves a permutation.
        """
        size = self.worth.shape[1]
        first = size * torch.arange(len(self.x), device=self.x.device)
        return (self.members.flatten(1) + first[:, None]).flatten()[: self.n_channels]

    def swap(self, at_once: int | None) -> int:
        """Make one round of swaps in every block that still improves; returns how many."""
        if not len(self.open):
            return 0
        members = self.members[self.open]
        b, g, m = members.shape
        gain = self._gain_by_place(members)
        best, which = gain.view(b, g, g, m * m).max(dim=-1)
        least = LEAST_GAIN * self.kept_by_group[self.open].sum(dim=1).float()
        accepted = disjoint_best(best, least, at_once)
        block, group, other = accepted.nonzero(as_tuple=True)
        upper = group < other
        block, group, other = block[upper], group[upper], other[upper]
        here, there = which[block, group, other] // m, which[block, group, other] % m
        whole = self.open[block]
        moved = self.members[whole, group, here].clone()
        self.members[whole, group, here] = self.members[whole, other, there]
        self.members[whole, other, there] = moved

        touched = accepted.any(dim=-1)
        improved = touched.any(dim=-1)
        self.open = self.open[improved]
        if len(self.open):
            self._update_all(self.open, touched[improved])
        return len(block)

    def _gain_by_place(self, members: Tensor) -> Tensor:
        """What swapping each two places adds, [b, g, g, m, m]; -inf where no swap may be."""
        b, g, m = members.shape
        flat = members.flatten(1)
        worth = self.worth[self.open]
        worth.masked_fill_(self.is_filler[self.open][:, :, None], -torch.inf)
        by_place = worth.gather(1, flat[:, :, None].expand(-1, -1, worth.shape[2]))
        by_place = by_place.gather(2, flat[:, None, :].expand(-1, worth.shape[1], -1))
        gain = by_place + by_place.transpose(1, 2)
        gain = gain.view(b, g, m, g, m).permute(0, 1, 3, 2, 4).contiguous()
        gain.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        return gain

    def _update_all(self, blocks: Tensor, chosen: Tensor) -> None:
        """Bring `worth` and `kept_by_group` up to date for the `chosen` groups [b, g]."""
        if self.x.device.type == "cpu":  # block by block nothing is computed twice
            for block, of_block in zip(blocks.split(1), chosen, strict=True):
                self._update(block, of_block.nonzero().T)
        else:
            self._update(blocks, _ragged_columns(chosen))

    def _update(self, blocks: Tensor, groups: Tensor) -> None:
        """Bring `worth` and `kept_by_group` up to date for `groups` [b, t] of `blocks` [b]."""
        channels = self.members[blocks[:, None], groups]  # [b, t, m]
        if self.x.device.type == "cpu":  # one block
            found = group_scores(self.x[blocks.item()], channels[0], self.n)
            rival, secure, kept = (term[None] for term in found)
        else:
            inside = self.x[blocks[:, None, None], channels]  # [b, t, m, r]
            rival, secure, kept = scores_inside(inside, self.n)
        self.kept_by_group[blocks[:, None], groups] = kept
        maximum = self.maximum_sums(blocks, rival.flatten(1, 2))
        now = kept.float()[:, :, None].expand(-1, -1, self.m).flatten(1)
        worth = maximum + (secure.flatten(1) - now)[:, :, None]
        self.worth[blocks[:, None], channels.flatten(1)] = worth


def disjoint_best(gain: Tensor, least: Tensor, at_once: int | None) -> Tensor:
    """Pairs of groups to swap between: best first, no group twice.

    Args:
        gain: what the best swap between two groups adds, [block, group, group], symmetric.
        least: gains up to this are not worth a swap, [block].
        at_once: pairs per block; None for as many as there are.

    Returns:
        bool [block, group, group], symmetric.
    """
    gain = gain.masked_fill(gain <= least[:, None, None], -torch.inf)
    accepted = torch.zeros_like(gain, dtype=torch.bool)
    groups = torch.arange(gain.shape[1], device=gain.device).expand(gain.shape[:2])
    made = 0
    while at_once is None or made < at_once:
        value, partner = gain.max(dim=-1)
        chosen = value.isfinite()
        if at_once is None:
            # Two groups that are each other's best choice would come before any other pair of
            # theirs in a best-first pass, so all such pairs can be taken together.
            chosen &= partner.gather(1, partner) == groups
        else:
            chosen &= groups == value.argmax(dim=-1, keepdim=True)
        if not chosen.any():
            break
        block, group = chosen.nonzero(as_tuple=True)
        other = partner[block, group]
        accepted[block, group, other] = True
        accepted[block, other, group] = True
        used = accepted.any(dim=-1)
        gain = gain.masked_fill(used[:, :, None] | used[:, None, :], -torch.inf)
        made += 1
    return accepted


def _ragged_columns(chosen: Tensor) -> Tensor:
    """Numbers of the true columns of each row of `chosen` [b, g], as int64 [b, most of any row].

    Rows with fewer are filled up with one of their own columns, which is then updated twice.
    """
    most = int(chosen.sum(dim=1).max())
    columns = chosen.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
    return torch.where(chosen.gather(1, columns), columns, columns[:, :1])


def stored_step(scores: Tensor, pattern: Pattern) -> SearchStep:
    """Where a search starts that leaves the channels as they are."""
    order = ChannelOrder.identity(scores.shape[1], scores.device)
    return SearchStep(order, 0, retained_share(scores, pattern))


def search_steps(
    scores: Tensor, pattern: Pattern, search: OrderSearch | None, *, seconds: float | None = None
) -> Iterator[SearchStep]:
    """Yield ever better channel orders, the starting one first.

    Args:
        scores: importance of each weight, float [row, in], finite and at least 0; stack the rows of
            all layers that read the same activation.
        pattern: the N:M pattern whose kept score is to grow.
        search: such as `GlobalShuffle()` or `BlockShuffle()`; None yields the order as it is.
        seconds: ends the search with its first step after that time.

    Raises:
        InputError: if a score is negative, NaN or infinite.
    """
    _require_scores([scores])
    if search is None:
        yield stored_step(scores, pattern)
        return
    started = time.perf_counter()
    last = None
    for step in search.steps(scores, pattern):
        if step is not last:
            yield step
        last = step
        if seconds is not None and time.perf_counter() - started > seconds:
            return


def search_order(
    scores: Tensor, pattern: Pattern, search: OrderSearch | None, *, seconds: float | None = None
) -> ChannelOrder:
    """The channel order that `search` ends with; see `search_steps` and `search_orders`."""
    if seconds is None:
        return search_orders([scores], pattern, search)[0]
    return _last(search_steps(scores, pattern, search, seconds=seconds)).order


def search_orders(
    scores: Sequence[Tensor], pattern: Pattern, search: OrderSearch | None
) -> list[ChannelOrder]:
    """The channel order that `search` ends with for each of several matrices.

    Block shuffles on a CUDA device run as one kernel for all of them, where `cuda.core` is
    installed: much faster than in the steps of `search_steps`, and the same up to rounding.

    Args:
        scores: matrices as of `search_steps`; their shapes may differ.
        pattern: the N:M pattern whose kept score is to grow.
        search: as of `search_steps`.

    Raises:
        InputError: as `search_steps`.
    """
    if (
        isinstance(search, BlockShuffle)
        and len({s.device for s in scores}) == 1
        and all(s.dim() == 2 for s in scores)
        and all(shuffle_kernel.shuffles(s, pattern, search.block) for s in scores)
    ):
        _require_scores(scores)
        return search.orders(scores, pattern)
    return [_last(search_steps(s, pattern, search)).order for s in scores]


def _require_scores(scores: Sequence[Tensor]) -> None:
    """Raise `InputError` for scores that cannot be ordered; waits for a GPU once."""
    limits = [torch.stack(s.aminmax()).double() for s in scores if s.numel()]  # NaN if any is
    ends = torch.stack(limits).tolist() if limits else []
    if any(s.dim() != 2 for s in scores) or not all(
        low >= 0 and math.isfinite(high) for low, high in ends
    ):
        raise InputError("Scores to order must be a matrix of finite numbers of at least 0.")


def _last(steps: Iterator[SearchStep]) -> SearchStep:
    for step in steps:  # noqa: B007
        pass
    return step


def retained_share(scores: Tensor, pattern: Pattern, order: ChannelOrder | None = None) -> float:
    """Share of the total score that the N:M mask keeps under `order`, 0 to 1."""
    if order is not None:
        scores = scores[:, order.index]
    groups = in_groups(scores, pattern.m, fill=0.0)
    best_first = descending(groups.transpose(-1, -2))
    kept = sum(rank.sum(dtype=torch.float64) for rank in best_first[: pattern.n])
    return float(kept / scores.sum(dtype=torch.float64).clamp_min(1e-300))


def ordered_mask(scores: Tensor, pattern: Pattern, order: ChannelOrder | None) -> Tensor:
    """The N:M mask of the permuted scores, in the channels' original places, bool [out, in].

    A model masked with it computes what the permuted, N:M sparse model computes.
    """
    if order is None:
        return nm_mask(scores, pattern)
    return nm_mask(scores[:, order.index], pattern)[:, order.inverse]
