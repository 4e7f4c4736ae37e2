"""What methods make of one weight matrix: score kept, output error, where they differ.

Nothing is written to the model; every layer is taken as the dense model has it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from esparse_lab.channel_stats import LayerStats
from esparse_lab.masks import Sparsity
from esparse_lab.methods import Choice, PruningMethod
from esparse_lab.pruning import kept_share, output_error


@dataclass(frozen=True)
class Outcome:
    """What one method made of a matrix.

    Attributes:
        choice: mask, weights and scores, [out, in].
        retained_share: share of the method's own total score that it keeps, 0 to 1.
        output_error: |(W - W') X|^2 / |W X|^2 on the calibration tokens; None without Gram matrix.
    """

    choice: Choice
    retained_share: float
    output_error: float | None


def outcome_of(
    method: PruningMethod, weight: Tensor, stats: LayerStats | None, sparsity: Sparsity
) -> Outcome:
    """Prune `weight`, [out, in], by `method`, without changing it."""
    choice = method.choose(weight, stats, sparsity)
    return Outcome(choice, kept_share(choice), output_error(weight, choice, stats))


def disagreement(one: Outcome, other: Outcome) -> float:
    """Share of the matrix's weights that one method keeps and the other drops, 0 to 1."""
    return float((one.choice.mask != other.choice.mask).float().mean())


def score_given_up(judge: Outcome, other: Outcome) -> float:
    """Share of the score that `judge`'s mask keeps, by its own scores, and `other`'s does not."""
    scores = judge.choice.scores
    best, got = (float((scores * o.choice.mask).double().sum()) for o in (judge, other))
    return (best - got) / best if best else 0.0


def comparison_table(outcomes: Mapping[str, Outcome]) -> pd.DataFrame:
    """One row a method of the same matrix; the first is what the others are compared with.

    Columns: method, kept_share (of the weights), retained_share, output_error, disagreement (share
    of weights kept by one of this and the first alone), score_given_up (of what the first keeps, by
    its scores).
    """
    first = next(iter(outcomes.values()))
    return pd.DataFrame(
        {
            "method": name,
            "kept_share": float(o.choice.mask.float().mean()),
            "retained_share": o.retained_share,
            "output_error": o.output_error,
            "disagreement": disagreement(first, o),
            "score_given_up": score_given_up(first, o),
        }
        for name, o in outcomes.items()
    )
