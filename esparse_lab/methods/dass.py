"""DaSS: dependency-aware pruning of gated MLPs.

Guo et al. 2024, "Dependency-Aware Semi-Structured Sparsity of GLU Variants in Large Language
Models", arXiv 2405.01943 (TMLR 2025), section 4.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from esparse_lab.channel_stats import LayerStats, Needs
from esparse_lab.errors import InputError
from esparse_lab.methods.method import ByScore, GroupAxis


@dataclass(frozen=True)
class DaSS(ByScore):
    """Gate and up projection: |w| * (norm of the product that the output makes)^exponent.

    Every other layer is scored as Wanda does. The factor is the same along a row, so it can only
    matter between rows: groups of M run along the OUTPUT of gate and up projections. Sparse tensor
    cores skip weights along the input, so those two layers gain no speed from their N:M mask.

    The authors prune MLPs alone and leave attention dense; here every layer is pruned.

    Attributes:
        exponent: of the product's norm, at least 0; the authors use 0.5.
    """

    exponent: float = 0.5

    needs: ClassVar[Needs] = Needs(output_norm=True)
    rows_are_apart: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.exponent) and self.exponent >= 0):
            raise InputError(f"exponent must be a number of at least 0, got {self.exponent}.")

    def group_axis(self, stats: LayerStats) -> GroupAxis:
        """Along the output before an MLP's activation function, along the input elsewhere."""
        return "in" if stats.output_norm is None else "out"

    def score(self, weight: Tensor, stats: LayerStats) -> Tensor:
        """Importance of each weight, float32 [out, in]."""
        size = weight.abs().float()
        if stats.output_norm is None:
            return size * stats.norm
        return size * (stats.output_norm**self.exponent)[:, None]
