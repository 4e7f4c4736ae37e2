"""The exercises of notebook 02: what N:M is, how it is stored and run, what it loses."""

import math

import torch
from torch import Tensor

from esparse_lab import entropy, tables
from esparse_lab.channel_stats import LayerStats
from esparse_lab.exercises.exercise import Exercise, Mistake
from esparse_lab.masks import Pattern, Unstructured
from esparse_lab.methods.esparse import ESparse
from esparse_lab.storage import bits_per_weight

_TWO_OF_FOUR = Pattern(2, 4)


def kept_one_of_four(weight: Tensor) -> Exercise:
    """Which weights 1:4 keeps by magnitude, bool of the weight's shape [out, in]."""
    size = weight.abs()
    one = Pattern(1, 4)
    kept = one.mask(size)
    return Exercise(
        kept,
        "In each row one weight of every four neighbours stays.",
        (
            "Look at w.abs() in groups: w.abs().reshape(4, 2, 4) is [row, group, member].",
            "argmax(dim=-1) finds the largest of a group; torch.nn.functional.one_hot(..., 4) "
            "marks it; reshape back to [4, 8].",
        ),
        (
            Mistake(
                Pattern(3, 4).mask(size),
                "You counted pruned weights instead of kept ones: this is 3:4. In this library, "
                "as in NVIDIA's, N counts what is KEPT.",
            ),
            Mistake(~kept, "True must mark the kept weights; yours marks the removed ones."),
            Mistake(
                one.mask(size.T).T,
                "You grouped along the output: each column keeps one of four rows. Groups run "
                "along the input, inside a row.",
            ),
            Mistake(
                one.mask(weight), "You compared signed values. −8 matters more than 5: take |w|."
            ),
            Mistake(
                Unstructured(0.25).mask(size),
                "These are the two largest of each row, wherever they are. N:M keeps one in each "
                "group of four.",
            ),
            Mistake(weight * kept, "These are the kept weights; the question is for True or False"),
        ),
    )


def stored_share() -> Exercise:
    """Share of dense storage that 2:4 takes with weights of 8 bits."""
    return Exercise(
        bits_per_weight(_TWO_OF_FOUR, value_bits=8) / 8,
        "20 of 32 bits: the smaller the values, the more the indices weigh (9/16 at 16 bits).",
        (
            "Count the bits of one group of four, dense and stored.",
            "Dense: 4 × 8 bits. Stored: 2 values of 8 bits, and 2 indices of 2 bits.",
        ),
        (
            Mistake(0.5, "You forgot the metadata: each kept value brings an index of 2 bits."),
            Mistake(9 / 16, "That is the share for values of 16 bits; these have 8."),
            Mistake(0.375, "That is the share saved; the question is for the share stored."),
            Mistake(
                0.75, "You gave each of the four weights an index; only the two kept ones have one."
            ),
            Mistake(
                9 / 16 / 2,
                "You compared with a dense matrix of 16 bits; the dense weights have 8 too.",
            ),
            Mistake(1.6, "That is dense over stored; turn it round."),
            Mistake(20, "Those are the bits of a group as stored; divide by the dense ones."),
        ),
    )


def decoded_row(values: list[float], byte: int) -> Exercise:
    """The dense row of 8 that `values` [4] and the indices in `byte` stand for."""
    index = [byte >> shift & 3 for shift in (0, 2, 4, 6)]

    def spread(places: list[int]) -> list[float]:
        row = [0.0] * 8
        for place, value in zip(places, values, strict=True):
            row[place] = value
        return row

    def by_group(index: list[int]) -> list[int]:
        return [4 * (number // 2) + place for number, place in enumerate(index)]

    return Exercise(
        spread(by_group(index)),
        "Two bits are enough because they count inside the group; the group follows from the "
        "value's number.",
        (
            "Cut the byte into pairs of bits and read them from the right: the lowest pair "
            "belongs to the first value.",
            "The first two values lie in channels 0 to 3, the last two in channels 4 to 7.",
        ),
        (
            Mistake(
                spread(by_group(index[::-1])),
                "You read the byte from the left. The lowest two bits belong to the first value.",
            ),
            Mistake(
                spread(index),
                "You counted all indices from the row's start. They count inside the group: the "
                "second pair belongs to channels 4 to 7.",
            ),
        ),
    )


def multiply_adds(weight: Tensor) -> Exercise:
    """Multiply-adds of 2:4 hardware for one token, on a weight [out, in] pruned to 1:4."""
    n = weight.numel()
    return Exercise(
        n // 2,
        "Every 1:4 mask is a 2:4 mask. The format has two slots a group, so the second holds a "
        "zero and is multiplied like any other: 2:4 hardware gains nothing more from it.",
        (
            "What does the format store for a group in which one weight is kept?",
            "The format has two slots a group. One is filled with a zero.",
        ),
        (
            Mistake(
                n // 4,
                "That many weights are kept, but the format has two slots a group: an explicit "
                "zero fills the second, and the hardware multiplies it.",
            ),
            Mistake(3 * n // 4, "You counted pruned weights instead of kept ones."),
            Mistake(n, "That is the dense count: the hardware skips what has no slot."),
            Mistake(
                math.prod(weight.shape) // weight.shape[0] // 2, "That is one row; count all rows."
            ),
        ),
    )


def runnable_share() -> Exercise:
    """Share of the 4:8 masks of 8 neighbours that are 2:4 masks as well."""
    two, four = math.comb(4, 2), math.comb(8, 4)
    return Exercise(
        two**2 / four,
        "36 of 70. The other 34 put three or four kept weights into one half, which has only two "
        "slots: 2:4 hardware cannot run them.",
        (
            "Count the ways to keep 2 of 4 in the first half, then in the second half.",
            "Each way of the first half goes with each way of the second: multiply. All 4:8 masks: "
            "'8 choose 4'.",
        ),
        (
            Mistake(two / four, "You counted one half alone; the other half has 6 ways too."),
            Mistake(2 * two / four, "You added the ways of the two halves; they multiply."),
            Mistake(1, "Turned round: every 2:4 mask is 4:8, but not every 4:8 mask is 2:4."),
            Mistake(four / two**2, "That is all masks over the runnable ones; turn it round."),
            Mistake(two**2, "That is their number; divide it by the number of 4:8 masks."),
            Mistake(1 - two**2 / four, "That is the share that cannot be run."),
        ),
    )


def output_error(weight: Tensor, activations: Tensor) -> Exercise:
    """Share of a layer's output energy that 1:4 by magnitude loses.

    Args:
        weight: W, [out, in].
        activations: what the layer reads, [..., in].
    """
    pruned = weight * Pattern(1, 4).mask(weight.abs())
    x = activations.flatten(0, -2).float()
    error = tables.output_error(weight, pruned, x)
    whole, kept = (torch.nn.functional.linear(x, w).square().sum() for w in (weight, pruned))
    return Exercise(
        error,
        "Squares of what is lost over squares of what was there, summed over outputs and tokens.",
        (
            "First the mask: by |w|, one of every four, as in exercise 1. "
            "el.Pattern(1, 4).mask(weight.abs()) makes it.",
            "The layer's output is x.flatten(0, 1) @ weight.T. Take what the pruned weight "
            "changes in it.",
        ),
        (
            Mistake(
                math.sqrt(error),
                "You forgot the squares: this is the ratio of norms, not of energies.",
            ),
            Mistake(
                float((weight - pruned).square().sum() / weight.square().sum()),
                "That is the energy lost from the weights. The error is measured at the output: "
                "multiply by the activations first.",
            ),
            Mistake(
                float(kept / whole),
                "That is the energy of the pruned layer's output, not of the difference.",
            ),
            Mistake(
                float(1 - kept / whole),
                "The energy of the difference is not the difference of the energies: subtract "
                "the outputs first, then square.",
            ),
            Mistake(
                tables.output_error(weight, weight * Pattern(3, 4).mask(weight.abs()), x),
                "You pruned one of four; 1:4 keeps one of four.",
            ),
            Mistake(
                tables.output_error(weight, weight * _TWO_OF_FOUR.mask(weight.abs()), x),
                "That is 2:4; the question is for 1:4.",
            ),
        ),
    )


def channel_entropy(activations: Tensor, channel: int, *, bins: int) -> Exercise:
    """Eq. 1 for one input channel of `activations` [sequence, position, in], in nats."""
    x = activations.flatten(0, -2).float()
    right, by_layer = (
        float(entropy.channel_entropy(x, bins=bins, bin_range=span)[channel])
        for span in ("channel", "layer")
    )
    one = x[:, [channel]]
    width = float(one.max() - one.min()) / bins or 1.0
    by_sequence = [
        float(entropy.channel_entropy(sequence.float(), bins=bins))
        for sequence in activations[..., [channel]]
    ]
    return Exercise(
        right,
        f"It lies between 0, a constant channel, and ln {bins} = {math.log(bins):.3f}, all bins "
        "equally full.",
        (
            f"torch.histc(values, bins={bins}) counts the values between their own least and "
            "largest.",
            "Divide the counts by their sum, leave out the empty bins, then −Σ p ln p.",
        ),
        (
            Mistake(
                float(entropy.channel_entropy(one, bins=100)),
                f"That is for 100 bins; the question is for {bins}.",
            ),
            Mistake(right / math.log(2), "You took log2: these are bits. Nats take ln."),
            Mistake(right / math.log(10), "You took log10. Nats take ln."),
            Mistake(-right, "You forgot the minus sign: logarithms of shares are negative."),
            Mistake(
                by_layer,
                "Your bins span the whole layer's values. Here they span the channel's own.",
            ),
            Mistake(
                right + math.log(width),
                "You took densities in place of shares: count over total, not over bin width.",
            ),
            Mistake(
                sum(by_sequence) / len(by_sequence),
                "You averaged the entropies of the sequences. Sort all tokens into one histogram.",
            ),
            Mistake(math.nan, "An empty bin gave 0 · ln 0 = NaN. It counts 0: leave it out."),
        ),
        # A value on the edge of two bins may be counted in either.
        tolerance=max(1e-3, 4 / len(x)),
    )


def esparse_scores(weight: Tensor, stats: LayerStats) -> Exercise:
    """Eq. 3 with α = 1 for the weights [in] of one output."""
    size, entropies, norm = weight.abs(), stats.entropy, stats.norm
    whole_norm = norm * math.sqrt(stats.n_sequences)
    return Exercise(
        ESparse(alpha=1.0).score(weight[None], stats)[0],
        "Entropy and norm belong to the channel, |w| to the weight: a column shares the first two.",
        (
            "Nothing needs to be measured again: stats.entropy and stats.norm are there.",
            "|w| multiplies the sum of entropy and α · norm; all three have one entry a channel.",
        ),
        (
            Mistake(size * (entropies + 3 * norm), "That is α = 3; the question is for α = 1."),
            Mistake(weight * (entropies + norm), "Scores of negative weights: take |w|."),
            Mistake(size * entropies * norm, "You multiplied entropy and norm; Eq. 3 adds them."),
            Mistake(size * norm, "That is Wanda's score: the entropy is missing."),
            Mistake(size * entropies, "The norm is missing."),
            Mistake(size + entropies + norm, "|w| multiplies the sum, it is not added to it."),
            Mistake(entropies + norm, "|w| is missing: this is the channel's importance."),
            Mistake(
                size * (entropies + whole_norm),
                "Your norm sums over all tokens. Wanda's, used here, takes the mean over sequences "
                "before the root.",
            ),
            Mistake(
                size * (entropies / math.log(2) + norm),
                "Your entropy is in bits (log2). Eq. 1 is taken in nats (ln).",
            ),
        ),
    )
