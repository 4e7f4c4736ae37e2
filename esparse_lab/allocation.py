"""Which sparsity each layer gets."""

from abc import ABC, abstractmethod

from torch import Tensor
from transformers import PreTrainedModel

from esparse_lab.masks import Sparsity
from esparse_lab.methods import PruningMethod


class Allocation(ABC):
    """Gives each layer a sparsity of its own. An allocation is a frozen dataclass."""

    @abstractmethod
    def assign(
        self, model: PreTrainedModel, tokens: Tensor | None, method: PruningMethod
    ) -> dict[str, Sparsity | None]:
        """What each layer is to be pruned to; None leaves it dense."""
