"""SparseGPT: the weight whose loss the others can best make up for goes, and they do.

Frantar and Alistarh 2023, arXiv 2301.00774, Algorithm 1.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from esparse_lab.channel_stats import LayerStats, Needs
from esparse_lab.curvature import check_damping, hessian, inverse_factor
from esparse_lab.masks import Sparsity
from esparse_lab.methods.method import Choice, PruningMethod
from esparse_lab.methods.surgeon import sweep


@dataclass(frozen=True)
class SparseGPT(PruningMethod):
    """Saliency w^2 / [H^-1]_jj, taken during a sweep that updates the weights still to come.

    Attributes:
        damping: share of the Hessian's mean diagonal that is added to its diagonal.
        block: columns that are updated at once.
    """

    damping: float = 0.01
    block: int = 128

    needs: ClassVar[Needs] = Needs(gram=True)
    updates_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_damping(self.damping)

    def score(self, weight: Tensor, stats: LayerStats) -> Tensor:
        """w^2 / [H^-1]_jj before any update, float32 [out, in]."""
        return _scores(weight, inverse_factor(hessian(stats, self.damping)))

    def choose(self, weight: Tensor, stats: LayerStats, sparsity: Sparsity) -> Choice:
        """Mask and updated weights, float32."""
        factor = inverse_factor(hessian(stats, self.damping))
        # A channel that is always zero adds nothing to the output, whatever its weight.
        live = weight.float().masked_fill(stats.gram.diagonal() == 0, 0)
        choice = sweep(live, factor, factor.diagonal() ** -2, sparsity, self.block)
        return replace(choice, scores=_scores(weight, factor))


def _scores(weight: Tensor, factor: Tensor) -> Tensor:
    return weight.float().square() / factor.square().sum(dim=0).float()
