"""The exercises of notebook 03: which channels share a group, and what an order must not change."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from esparse_lab.exercises.exercise import Exercise, Mistake
from esparse_lab.masks import Pattern, in_groups


def dealt_groups(means: Sequence[float], n_groups: int) -> Exercise:
    """The group, 0 to `n_groups` - 1, that GNS gives each channel of these distinct means."""
    channels = range(len(means))
    rank = {c: r for r, c in enumerate(sorted(channels, key=lambda c: -means[c]))}
    size = len(means) // n_groups
    there_and_back = [*range(n_groups), *reversed(range(n_groups))]
    return Exercise(
        [rank[c] % n_groups for c in channels],
        "The strongest channels are now in different groups, where each can be kept.",
        (
            "Number the channels from the largest mean, 0, to the smallest.",
            f"Deal them like cards: number r goes to group r mod {n_groups}.",
        ),
        (
            Mistake(
                [rank[c] // size for c in channels],
                "You cut the sorted channels into groups: now all strong ones compete with each "
                "other. Deal them out one by one.",
            ),
            Mistake(
                [there_and_back[rank[c] % (2 * n_groups)] for c in channels],
                "You dealt there and back (0 1 2, 2 1 0). GNS starts each round at group 0.",
            ),
            Mistake(
                [c % n_groups for c in channels],
                "You dealt the channels as stored; sort them by mean first.",
            ),
            Mistake(
                [(len(means) - 1 - rank[c]) % n_groups for c in channels],
                "You dealt the weakest first; the strongest come first.",
            ),
            Mistake(
                [rank[c] for c in channels],
                f"Those are the ranks; the group is the rank mod {n_groups}.",
            ),
        ),
    )


def groupings() -> Exercise:
    """How many ways there are to put 16 channels into 4 groups of 4."""
    orders, inside, between = math.factorial(16), math.factorial(4) ** 4, math.factorial(4)
    return Exercise(
        orders // inside // between,
        "2.6 million for 16 channels; a layer with thousands cannot try them all, so searches "
        "begin with a good deal (GNS) and improve it (LBS).",
        (
            "Begin with all orders of 16 channels, and ask which of them make the same groups.",
            "Neither the order inside each of the 4 groups matters, nor the order of the groups.",
        ),
        (
            Mistake(orders, "That counts orders: many of them make the same groups."),
            Mistake(
                orders // inside,
                "You left out the order inside groups. The order of the 4 groups does not matter "
                "either: divide by 4! once more.",
            ),
            Mistake(
                orders // math.factorial(4) // between,
                "4! orders inside one group; there are four groups, so divide by (4!)⁴.",
            ),
            Mistake(math.comb(16, 4), "That chooses one group; the other 12 channels are left."),
        ),
    )


def swap_gain(scores: Tensor, order: Tensor, one: int, other: int, *, pattern: Pattern) -> Exercise:
    """What swapping channels `one` and `other` adds to the score that the mask keeps.

    Args:
        scores: importance of each weight, [row, in].
        order: channel at each place, int64 [in].
        one: a channel.
        other: a channel of another group.
        pattern: the groups and what each keeps.
    """

    def kept(order: Tensor) -> Tensor:
        """Kept score of each group."""
        best = in_groups(scores[:, order], pattern.m, fill=0.0).topk(pattern.n).values
        return best.double().sum(dim=(0, 2))

    def swapped(places: list[int]) -> Tensor:
        new = order.clone()
        new[places] = order[places[::-1]]
        return new

    places = [int((order == channel).nonzero()) for channel in (one, other)]
    change = kept(swapped(places)) - kept(order)
    gain = float(change.sum())
    of_one, of_other = (float(change[place // pattern.m]) for place in places)
    one_group = "That is the change of one group; the swap changes two."
    return Exercise(
        gain,
        "Only two groups change, so a search need not look at the rest of the matrix.",
        (
            f"Channel {one} is at place {places[0]} of the order, channel {other} at place "
            f"{places[1]}.",
            f"Kept score: scores[:, order].reshape({len(scores)}, -1, {pattern.m})"
            f".topk({pattern.n}).values.sum(), with the two swapped minus before.",
        ),
        (
            Mistake(-gain, "After minus before, please: you have the sign turned."),
            Mistake(of_one, one_group),
            Mistake(of_other, one_group),
            Mistake(
                float((kept(swapped([one, other])) - kept(order)).sum()),
                f"You swapped the places {one} and {other}. Channels {one} and {other} are at the "
                f"places {places[0]} and {places[1]} of the order.",
            ),
            Mistake(gain / float(scores.sum()), "That is a share of the total; give the score."),
        ),
    )


def matching_input(order: Tensor) -> Exercise:
    """The index [in] that the input needs where the weight's columns are taken by `order`."""
    return Exercise(
        order,
        "W[:, order] @ x[order] adds the same products in another order. In a model the layer "
        "before writes its outputs in this order: it costs nothing at run time.",
        (
            "y = Σ w_c x_c: each column must still meet its own entry of x.",
            "Place k holds column order[k] of W. Which entry of x must be at place k?",
        ),
        (
            Mistake(
                torch.argsort(order),
                "That is the inverse: it says where each channel went. Place k needs the entry of "
                "x whose column stands there.",
            ),
            Mistake(
                torch.arange(len(order)),
                "x cannot stay as it is: column k of the new matrix is another channel.",
            ),
        ),
    )
