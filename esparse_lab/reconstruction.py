"""The kept weights of a finished mask, solved for: least squares against the dense layer's output.

Per row: min |(w - w') X|^2 over w' that are zero outside the mask, so (w' H)_S = (w H)_S on the
kept channels S. With statistics matched to the dense model, `curvature.aim` stands in for w H.
"""

from dataclasses import dataclass

from torch import Tensor

from esparse_lab.channel_stats import LayerStats
from esparse_lab.curvature import aim, check_damping, hessian
from esparse_lab.errors import InputError


@dataclass(frozen=True)
class Reconstruction:
    """Solves for the kept weights by conjugate gradients, all rows at once.

    Attributes:
        damping: share of the Hessian's mean diagonal that is added to its diagonal; it also pulls
            the solution towards the weights as they were.
        tolerance: ends when every row's gradient has shrunk to this share of the first one.
        steps: at most this many steps.
    """

    damping: float = 0.01
    tolerance: float = 1e-3
    steps: int = 300

    def __post_init__(self) -> None:
        check_damping(self.damping)
        if self.steps < 1:
            raise InputError(f"steps must be at least 1, got {self.steps}.")

    def solve(self, weight: Tensor, mask: Tensor, stats: LayerStats) -> Tensor:
        """The weights after solving, float32 [out, in], zero outside the mask.

        Args:
            weight: of the dense layer, [out, in].
            mask: True where a weight is kept, bool [out, in].
            stats: with Gram matrix.
        """
        h = hessian(stats, self.damping).float()
        dense = weight.float()
        solved = dense * mask
        # Each row is a system of its own; the diagonal is a good preconditioner because what makes
        # the Hessian ill-conditioned is that some channels are far louder than others.
        easing = 1 / h.diagonal()
        gradient = (aim(dense, stats, h) - solved @ h) * mask
        direction = gradient * easing
        slope = (gradient * direction).sum(dim=1, keepdim=True)
        goal = slope * self.tolerance**2
        for _ in range(self.steps):
            curved = (direction @ h) * mask
            length = slope / (direction * curved).sum(dim=1, keepdim=True).clamp_min(1e-30)
            solved.addcmul_(direction, length)
            gradient.addcmul_(curved, length, value=-1)
            eased = gradient * easing
            new_slope = (gradient * eased).sum(dim=1, keepdim=True)
            if bool((new_slope <= goal).all()):
                break
            direction = eased.addcmul_(direction, new_slope / slope.clamp_min(1e-30))
            slope = new_slope
        return solved
