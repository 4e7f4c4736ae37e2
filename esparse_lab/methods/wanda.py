"""Wanda: magnitude times the norm of the input channel.

Sun et al. 2023, arXiv 2306.11695, Eq. 1.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from esparse_lab.channel_stats import LayerStats, Needs
from esparse_lab.methods.method import ByScore


@dataclass(frozen=True)
class Wanda(ByScore):
    """Score |w| * norm, the norm per input channel."""

    needs: ClassVar[Needs] = Needs()

    def score(self, weight: Tensor, stats: LayerStats) -> Tensor:
        """Importance of each weight, float32 [out, in]."""
        return weight.abs().float() * stats.norm
