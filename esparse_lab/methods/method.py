"""What a pruning method is."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from esparse_lab.channel_stats import LayerStats, Needs
from esparse_lab.masks import Sparsity

GroupAxis = Literal["in", "out"]


@dataclass(frozen=True)
class Choice:
    """What a method made of one weight matrix.

    Attributes:
        mask: True where the weight is kept, bool [out, in].
        weight: the weights after pruning, [out, in], zero where not kept, float32; None from a
            method that leaves kept weights as they are.
        scores: importance of each weight of the dense matrix, as `PruningMethod.score` gives it,
            [out, in]; None where nothing was compared.
    """

    mask: Tensor
    weight: Tensor | None = None
    scores: Tensor | None = None


class PruningMethod(ABC):
    """Chooses the weights to keep. A method is a frozen dataclass; its fields are its settings.

    Attributes:
        updates_weights: whether it changes the weights that it keeps.
        rows_are_apart: whether what becomes of a row depends on no other row of its matrix, so
            that layers which read one activation can be stacked and pruned as one.
    """

    updates_weights: ClassVar[bool] = False
    rows_are_apart: ClassVar[bool] = True

    @property
    @abstractmethod
    def needs(self) -> Needs | None:
        """What must be measured on calibration text; None if the method takes none."""

    @abstractmethod
    def score(self, weight: Tensor, stats: LayerStats | None) -> Tensor:
        """Importance of each weight, float32 [out, in], at least 0.

        Searches for channel orders group the channels by it.
        """

    @abstractmethod
    def choose(self, weight: Tensor, stats: LayerStats | None, sparsity: Sparsity) -> Choice:
        """The weights to keep, and what becomes of them, for channels in the order given."""

    def group_axis(self, stats: LayerStats | None) -> GroupAxis:
        """The axis along which M weights form a group.

        "in" is the reduction, the one that sparse tensor cores can skip; "out" is not.
        """
        return "in"


class ByScore(PruningMethod):
    """A method whose score says it all: the best of each group are kept, as they are."""

    def choose(self, weight: Tensor, stats: LayerStats | None, sparsity: Sparsity) -> Choice:
        """The best scores of each group."""
        scores = self.score(weight, stats)
        if self.group_axis(stats) == "out":
            return Choice(sparsity.mask(scores.T).T, scores=scores)
        return Choice(sparsity.mask(scores), scores=scores)
