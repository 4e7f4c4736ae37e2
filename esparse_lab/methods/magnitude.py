"""Magnitude: the size of the weight alone."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from esparse_lab.channel_stats import LayerStats
from esparse_lab.methods.method import ByScore


@dataclass(frozen=True)
class Magnitude(ByScore):
    """Score |w|; needs no calibration."""

    needs: ClassVar[None] = None

    def score(self, weight: Tensor, stats: LayerStats | None = None) -> Tensor:
        """Importance of each weight, float32 [out, in]; `stats` is not read."""
        return weight.abs().float()
