"""Self-checking exercises of the teaching notebooks: right, or wrong and why, with hints."""

from esparse_lab.exercises.channel_shuffle import dealt_groups, groupings, matching_input, swap_gain
from esparse_lab.exercises.exercise import Exercise, Mistake, Verdict
from esparse_lab.exercises.nm_sparsity import (
    channel_entropy,
    decoded_row,
    esparse_scores,
    kept_one_of_four,
    multiply_adds,
    output_error,
    runnable_share,
    stored_share,
)

__all__ = [
    "Exercise",
    "Mistake",
    "Verdict",
    "channel_entropy",
    "dealt_groups",
    "decoded_row",
    "esparse_scores",
    "groupings",
    "kept_one_of_four",
    "matching_input",
    "multiply_adds",
    "output_error",
    "runnable_share",
    "stored_share",
    "swap_gain",
]
