"""A search for channel orders whose objective is the output error itself (the paper's Eq. 4).

It stands here and not in the package until it has shown that it pays: see `proxy_truth.py`.
"""

import torch
from torch import Tensor

from esparse_lab.group_scores import descending
from esparse_lab.masks import Pattern, nm_mask
from esparse_lab.permutation import ChannelOrder, ordered_mask
from esparse_lab.rivals import ways_to_part

# A fall of the error below this share of it may be rounding.
LEAST_FALL = 1e-7


def reduce_error(
    weight: Tensor,
    scores: Tensor,
    gram: Tensor,
    pattern: Pattern,
    order: ChannelOrder,
    *,
    rounds: int,
    seed: int = 0,
) -> ChannelOrder:
    """An order under which the scores' mask leaves less output error than under `order`.

    With E the pruned weights, the error is the trace of E G E^T. In each round the groups meet in
    random pairs; for a pair every way to part its channels is tried, and its error is exact while
    all other groups stay. Changes of several pairs add up only nearly, so half of them are given
    up, worst first, until the whole error falls.

    Args:
        weight: float32 [row, in], the rows of all layers that share the order.
        scores: decide the mask, [row, in].
        gram: G = X^T X of what the layers read, float32 [in, in].
        pattern: N:M; M divides the channels.
        order: where to start.
        rounds: how often every group meets another.
        seed: draws who meets whom.
    """
    m = pattern.m
    groups = order.index.view(-1, m)
    n_pairs = len(groups) // 2
    generator = torch.Generator().manual_seed(seed)
    ways = ways_to_part(m).to(weight.device)
    gone = weight * ~ordered_mask(scores, pattern, order)
    pull = gone @ gram
    error = (gone.double() * pull).sum()
    for _ in range(rounds):
        drawn = torch.randperm(len(groups), generator=generator).to(weight.device)
        a, b = drawn[:n_pairs], drawn[n_pairs : 2 * n_pairs]
        members = torch.cat([groups[a], groups[b]], dim=1)
        change = _changes(
            *(x.T[members] for x in (scores, weight, gone, pull)), gram, members, ways, pattern.n
        )
        best, which = change.min(dim=1)
        useful = best.argsort()[: int((best < -LEAST_FALL * error).sum())]
        while len(useful):
            parted = groups.clone()
            halves = ways[which[useful]]
            parted[a[useful]] = members[useful].gather(1, halves[:, 0])
            parted[b[useful]] = members[useful].gather(1, halves[:, 1])
            touched = parted[torch.cat([a[useful], b[useful]])].flatten()
            after = gone.clone()
            after[:, touched] = weight[:, touched] * ~nm_mask(scores[:, touched], pattern)
            moved = pull + (after - gone)[:, touched] @ gram[touched]
            found = (after.double() * moved).sum()
            if found < error:
                groups, gone, pull, error = parted, after, moved, found
                break
            useful = useful[: len(useful) // 2]
    return ChannelOrder(groups.flatten())


def _changes(
    scores: Tensor,
    weight: Tensor,
    gone: Tensor,
    pull: Tensor,
    gram: Tensor,
    members: Tensor,
    ways: Tensor,
    n: int,
) -> Tensor:
    """What each way to part `members` [pair, 2 m] adds to the error, [pair, way].

    The first four are [pair, 2 m, row].
    """
    own = gram[members[:, :, None], members[:, None, :]]
    changes = []
    for halves in ways:
        flat = halves.flatten()
        parted = scores[:, flat].unflatten(1, halves.shape)  # [pair, half, m, row]
        bar = descending(parted)[n - 1]
        kept = (parted >= bar[:, :, None]).flatten(1, 2)
        added = weight[:, flat].masked_fill(kept, 0) - gone[:, flat]
        pulled = own[:, flat][:, :, flat] @ added
        changes.append((added * (2 * pull[:, flat] + pulled)).sum(dim=(1, 2)))
    return torch.stack(changes, dim=1)
