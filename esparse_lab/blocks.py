"""What pruning sees of a model: its blocks, the activations in them, the matrices that read them.

Matrices are [out, in] here, however the model stores them.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

LINEAR = (nn.Linear, Conv1D)


@dataclass(frozen=True)
class WeightMatrix:
    """One linear map of a model, whatever holds it.

    Attributes:
        module: holds the weights.
        parameter: their name in the module.
        expert: which slice of a stack [expert, out, in], or None.
        transposed: the module stores [in, out] (GPT-2's Conv1D).
    """

    module: nn.Module
    parameter: str = "weight"
    expert: int | None = None
    transposed: bool = False

    @classmethod
    def of(cls, module: nn.Module) -> "WeightMatrix":
        """The weights of one of `LINEAR`."""
        return cls(module, transposed=isinstance(module, Conv1D))

    @property
    def stored(self) -> nn.Parameter:
        """The parameter that holds the weights, as the model has it."""
        return getattr(self.module, self.parameter)

    @property
    def bias(self) -> nn.Parameter | None:
        """What is added to the outputs, [out]; stacked experts have none."""
        return self.module.bias if isinstance(self.module, LINEAR) else None

    @property
    def weight(self) -> Tensor:
        """The weights, [out, in]: a view, so writing into it changes the model."""
        weight = self.stored.data
        if self.expert is not None:
            weight = weight[self.expert]
        return weight.T if self.transposed else weight


@dataclass(frozen=True)
class InputGroup:
    """Layers that read one activation.

    Attributes:
        layers: by full name, in the order of the data.
        feeds: number, inside the block, of the group that reads what these layers' outputs become
            after the MLP's activation function; None outside MLPs, or where it is not known.
    """

    layers: dict[str, WeightMatrix]
    feeds: int | None = None

    @property
    def name(self) -> str:
        """The name of the first layer."""
        return next(iter(self.layers))

    @property
    def module(self) -> nn.Module:
        """The module whose call hands over the activation."""
        return self.layers[self.name].module

    def read(self, args: tuple, length: int) -> Tensor:
        """The activation, [sequence, position, in], from what `module` is called with.

        Some models flatten it to [token, in]; `length` is the positions of a sequence. Where these
        do not make whole sequences it stays [token, in].
        """
        x = args[0]
        n_tokens = x.shape[:-1].numel()
        if n_tokens % length:
            return x.flatten(0, -2)
        return x.reshape(n_tokens // length, length, x.shape[-1])


@dataclass(frozen=True)
class Block:
    """One transformer block of a model.

    Attributes:
        name: its path in the model, such as "model.layers.3".
        module: the block itself.
        groups: for each activation that linear layers read, those layers.
        returns: items of the tuple that it returns, hidden states first; 0 if it returns them bare.
        attention_out: number of the group whose output is added to what the block reads; None where
            more than an addition happens to it, or where it is not known.
        mlp_out: number of the group whose output is added last, likewise.
    """

    name: str
    module: nn.Module
    groups: tuple[InputGroup, ...]
    returns: int = 0
    attention_out: int | None = None
    mlp_out: int | None = None

    @property
    def layers(self) -> dict[str, WeightMatrix]:
        """Every prunable layer of the block, by full name, in the order of the data."""
        return {name: layer for group in self.groups for name, layer in group.layers.items()}
