"""ISC: optimal brain surgeon's saliency plus optimal brain damage's.

Shao et al. 2023, "One-Shot Sensitivity-Aware Mixed Sparsity Pruning for Large Language Models",
arXiv 2310.09499, Eq. 4.
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
class ISC(PruningMethod):
    """Saliency w^2 (H_jj + 1 / [H^-1]_jj), in SparseGPT's sweep with its weight update.

    1 / [H^-1]_jj is at most H_jj, so the saliency lies between Wanda's (squared) and twice that.
    The authors' code takes 1 / U_jj for the second term, which is not of the first one's unit, and
    uses this saliency for unstructured sparsity alone; here it is the paper's, for every pattern.

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
        """The saliency before any update, float32 [out, in]."""
        curvature = hessian(stats, self.damping)
        return _scores(weight, curvature, inverse_factor(curvature))

    def choose(self, weight: Tensor, stats: LayerStats, sparsity: Sparsity) -> Choice:
        """Mask and updated weights, float32."""
        curvature = hessian(stats, self.damping)
        factor = inverse_factor(curvature)
        live = weight.float().masked_fill(stats.gram.diagonal() == 0, 0)
        saliency = curvature.diagonal() + factor.diagonal() ** -2
        choice = sweep(live, factor, saliency, sparsity, self.block)
        return replace(choice, scores=_scores(weight, curvature, factor))


def _scores(weight: Tensor, curvature: Tensor, factor: Tensor) -> Tensor:
    of_channel = curvature.diagonal() + 1 / factor.square().sum(dim=0)
    return weight.float().square() * of_channel.float()
