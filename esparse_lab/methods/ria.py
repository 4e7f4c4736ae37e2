"""RIA: relative importance of the weight in its row and column, times the activation.

Zhang et al. 2024, "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language
Models", ICLR 2024, Eq. 3 and 4.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from esparse_lab.channel_stats import LayerStats, Needs
from esparse_lab.errors import InputError
from esparse_lab.methods.method import ByScore


@dataclass(frozen=True)
class RIA(ByScore):
    """Score (|w| / sum of its column + |w| / sum of its row) * norm^exponent.

    Attributes:
        exponent: of the channel's norm, at least 0; the paper's a, which it sets to 0.5.
    """

    exponent: float = 0.5

    needs: ClassVar[Needs] = Needs()
    rows_are_apart: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.exponent) and self.exponent >= 0):
            raise InputError(f"exponent must be a number of at least 0, got {self.exponent}.")

    def score(self, weight: Tensor, stats: LayerStats) -> Tensor:
        """Importance of each weight, float32 [out, in]; 0 for a weight of 0."""
        size = weight.abs().float()
        # An all-zero row or column has no shares; its weights are 0 and score 0.
        of_column = size / size.sum(dim=0, keepdim=True).clamp_min(1e-30)
        of_row = size / size.sum(dim=1, keepdim=True).clamp_min(1e-30)
        return (of_column + of_row) * stats.norm**self.exponent
