"""Searches for a channel order that others use, written from their maths, to compare with ours."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from esparse_lab.errors import EsparseError, InputError
from esparse_lab.group_scores import descending
from esparse_lab.masks import Pattern
from esparse_lab.pairwise import MaximumSums
from esparse_lab.permutation import (
    LEAST_GAIN,
    BlockShuffle,
    ChannelOrder,
    GlobalShuffle,
    OrderSearch,
    SearchStep,
    disjoint_best,
    retained_share,
    search_order,
    search_steps,
    stored_step,
)

# Numbers that the arrangements of some pairs of groups may hold at once.
HELD_AT_MOST = {"cpu": 1 << 22, "cuda": 1 << 27}
# Two groups of 8 can be parted in 6,435 ways; of 16 in 300 million.
WIDEST_STRIPE = 8


@dataclass(frozen=True)
class RandomOrders:
    """The best of `count` random orders; the same ones for the same seed.

    Attributes:
        count: orders drawn.
        seed: draws them.
        stored: let the stored order compete.
    """

    count: int = 100
    seed: int = 0
    stored: bool = True

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"count must be at least 1 order, got {self.count}.")

    def steps(self, scores: Tensor, pattern: Pattern) -> Iterator[SearchStep]:
        """The order as it is, then every one that beats those before it."""
        best = stored_step(scores, pattern)
        yield best
        if not self.stored:
            best = replace(best, retained_share=-1.0)
        generator = torch.Generator().manual_seed(self.seed)
        for drawn in range(self.count):
            index = torch.randperm(scores.shape[1], generator=generator).to(scores.device)
            share = retained_share(scores, pattern, ChannelOrder(index))
            if share > best.retained_share:
                best = SearchStep(ChannelOrder(index), drawn + 1, share)
            yield best


@dataclass(frozen=True)
class SlotAssignment:
    """Slot after slot, the channels that stand there are given to the groups they serve best.

    Which of them goes to which group is a linear assignment problem, solved exactly by SciPy. A
    step is one slot of all groups; none can lose score.

    Attributes:
        start: the search that finds the first order; None to start from the order as it is.
        rounds: how often every slot is assigned at most; RIA does it once. A round that gains
            nothing is the last.

    Source: Zhang et al. 2024, "Plug-and-Play" (RIA), section 4.2.
    """

    start: OrderSearch | None = GlobalShuffle(serpentine=True)
    rounds: int = 1

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise InputError(f"rounds must be at least 1, got {self.rounds}.")

    def steps(self, scores: Tensor, pattern: Pattern) -> Iterator[SearchStep]:
        """The start's end, then one step a slot."""
        assign = _scipy_assignment()
        begun = search_order(scores, pattern, self.start)  # on a GPU far faster than in steps
        step = SearchStep(begun, 0, retained_share(scores, pattern, begun))
        yield step
        columns, groups = _in_groups(scores, pattern, step.order)
        n_channels = scores.shape[1]
        slots = torch.arange(pattern.m, device=scores.device)
        before = step.retained_share
        for turn in range(pattern.m * self.rounds):
            slot = turn % pattern.m
            if turn and not slot:
                if step.retained_share <= before * (1 + LEAST_GAIN):
                    return
                before = step.retained_share
            holes = (groups[:, slot] < n_channels).nonzero().flatten()
            comers = groups[holes, slot]
            # A channel that joins competes with the n-th of those that stay; the rest is settled.
            bar = descending(columns[groups[holes][:, slots != slot]])[pattern.n - 1]
            worth = MaximumSums(columns[comers][None])(holes.new_zeros(1), bar[None])[0]
            # What every group pays alike for a channel changes no choice; without it SciPy's solver
            # is several times faster.
            worth = worth.double()
            _, chosen = assign((worth - worth.mean(dim=0)).cpu().numpy(), maximize=True)
            groups[holes, slot] = comers[torch.from_numpy(chosen).to(comers.device)]
            order = ChannelOrder(groups.flatten()[:n_channels].clone())
            step = SearchStep(order, step.swaps + 1, retained_share(scores, pattern, order))
            yield step


def _scipy_assignment():
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise EsparseError(
            "The search `assignment` needs SciPy: run `pip install 'esparse_lab[rivals]'`."
        ) from None
    return linear_sum_assignment


@dataclass(frozen=True)
class StripePairs:
    """For every two groups, the best of all ways to part their channels, best pairs first.

    At 2:4 that are 35 ways, all evaluated exactly. Of pairs that share a group the better one is
    taken; then pairs with a changed group are looked at again, until none gains. A last group that
    is shorter stays as it is. A step is one round; its moves are pairs of groups.

    Attributes:
        start: the search that finds the first order; None to start from the order as it is.

    Source: Pool & Yu 2021, "Channel Permutations for N:M Sparsity"; NVIDIA's apex, with stripe
    groups of two and no escape attempts.
    """

    start: OrderSearch | None = None

    def steps(self, scores: Tensor, pattern: Pattern) -> Iterator[SearchStep]:
        """Those of the start, then one step a round."""
        if pattern.m > WIDEST_STRIPE:
            raise InputError(
                f"There are too many ways to part two groups of {pattern.m}; take groups of up to "
                f"{WIDEST_STRIPE}, or another search."
            )
        for step in search_steps(scores, pattern, self.start):
            yield step
        columns, groups = _in_groups(scores, pattern, step.order)
        m, n_whole = pattern.m, scores.shape[1] // pattern.m
        if n_whole < 2:
            return
        tail, groups = groups[n_whole:], groups[:n_whole]
        ways = ways_to_part(m).to(scores.device)
        first, second = torch.triu_indices(n_whole, n_whole, 1, device=scores.device)
        gain = columns.new_zeros(n_whole, n_whole)
        way = torch.zeros_like(gain, dtype=torch.long)
        # Far above rounding: a share of what two groups hold.
        least = LEAST_GAIN * 2 * columns.sum(dtype=torch.float64).float() / n_whole
        changed = torch.ones_like(groups[:, 0], dtype=torch.bool)
        at_once = max(HELD_AT_MOST[columns.device.type] // (ways.numel() * len(scores)), 1)
        while True:
            stale = (changed[first] | changed[second]).nonzero().flatten()
            for pairs in stale.split(at_once):
                a, b = first[pairs], second[pairs]
                members = torch.cat([groups[a], groups[b]], dim=1)
                kept = _kept_by_way(columns[members], ways, pattern.n)
                best, which = kept.max(dim=1)
                gain[a, b] = gain[b, a] = best - kept[:, 0]  # way 0 leaves them as they are
                way[a, b] = which
                yield step
            accepted = disjoint_best(gain[None], least[None], None)[0]
            a, b = accepted.triu().nonzero(as_tuple=True)
            members = torch.cat([groups[a], groups[b]], dim=1)
            parted = groups.clone()
            parted[a], parted[b] = (members.gather(1, half) for half in ways[way[a, b]].unbind(1))
            index = torch.cat([parted.flatten(), tail.flatten()])[: scores.shape[1]]
            share = retained_share(scores, pattern, ChannelOrder(index))
            if share <= step.retained_share:  # nothing left, or what was left was rounding
                return
            groups, changed = parted, accepted.any(dim=1)
            step = SearchStep(ChannelOrder(index), step.swaps + len(a), share)
            yield step


@dataclass(frozen=True)
class BestOf:
    """Of what several searches find the order that keeps most score.

    Under a recipe whose objective is the output they are not asked here: each prunes a block on
    trial, and the block decides (`pruning.prune_block`).

    Attributes:
        searches: at least one; None is the order as it is stored.
    """

    searches: tuple[OrderSearch | None, ...]

    def __post_init__(self) -> None:
        if not self.searches:
            raise InputError("BestOf wants at least one search to choose from, got none.")

    def steps(self, scores: Tensor, pattern: Pattern) -> Iterator[SearchStep]:
        """One step a search: the best order so far."""
        best: SearchStep | None = None
        for number, search in enumerate(self.searches):
            order = search_order(scores, pattern, search)
            share = retained_share(scores, pattern, order)
            if best is None or share > best.retained_share:
                best = SearchStep(order, number, share)
            yield best


def _in_groups(scores: Tensor, pattern: Pattern, order: ChannelOrder) -> tuple[Tensor, Tensor]:
    """Scores float32 [channel, row] with a channel of zeros behind, and who stands in each group.

    Groups are int64 [group, m]; the extra channel fills up the last one.
    """
    n_channels = scores.shape[1]
    columns = torch.nn.functional.pad(scores.T.float(), (0, 0, 0, 1)).contiguous()
    fill = -n_channels % pattern.m
    index = torch.nn.functional.pad(order.index, (0, fill), value=n_channels)
    return columns, index.view(-1, pattern.m)


def ways_to_part(m: int) -> Tensor:
    """All ways to part 2 m members in two groups, int64 [way, half, m]; the first changes nothing.

    >>> len(ways_to_part(4))
    35
    """
    first = [(0, *rest) for rest in itertools.combinations(range(1, 2 * m), m - 1)]
    halves = [(half, tuple(c for c in range(2 * m) if c not in half)) for half in first]
    return torch.from_numpy(np.array(halves))


def _kept_by_way(columns: Tensor, ways: Tensor, n: int) -> Tensor:
    """What both groups keep in each way to part `columns` [pair, 2 m, row], float32 [pair, way]."""
    rows = max(HELD_AT_MOST[columns.device.type] // (len(columns) * ways.numel()), 1)
    kept = columns.new_zeros(len(columns), len(ways))
    for some in columns.split(rows, dim=-1):
        best_first = descending(some[:, ways])  # m tensors [pair, way, half, row]
        kept += sum(best_first[:n]).sum(dim=(-1, -2))
    return kept


RIVALS: dict[str, OrderSearch] = {
    "lbs": BlockShuffle(start=None),  # ours without its first half, for ablations
    "random": RandomOrders(),
    "serpentine": GlobalShuffle(serpentine=True),
    "assignment": SlotAssignment(),
    "assignment-repeated": SlotAssignment(rounds=4),
    "gns+lbs+assignment": SlotAssignment(BlockShuffle(), rounds=2),
    "stripes": StripePairs(),
    "best-of": BestOf(
        (
            BlockShuffle(),
            BlockShuffle(start=None),
            BlockShuffle(start=GlobalShuffle(serpentine=True)),
            SlotAssignment(rounds=4),
            SlotAssignment(BlockShuffle(), rounds=2),
        )
    ),
}
