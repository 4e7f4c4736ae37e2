"""Where the prunable layers of each model family are, as data.

One entry serves every model whose `config.model_type` it lists. To add a family, add an entry to
`ARCHITECTURES`; `tests/test_architectures.py` then prunes a tiny random model of it.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from esparse_lab.errors import EsparseError, InputError, unknown


@dataclass(frozen=True)
class Architecture:
    """A family of decoders.

    Attributes:
        model_types: values of `config.model_type`.
        blocks: path of the list of transformer blocks inside the model.
        input_groups: linear layers by their path inside a block, grouped by the activation that
            they read. Layers of one group share input statistics and a channel order.
        mlp: numbers of the two groups between which the MLP's activation function stands: what
            the first one's outputs become is what the second one reads.
    """

    model_types: tuple[str, ...]
    blocks: str
    input_groups: tuple[tuple[str, ...], ...]
    mlp: tuple[int, int] = (2, 3)


LLAMA = Architecture(
    model_types=("llama", "mistral", "qwen2", "qwen3"),
    blocks="model.layers",
    input_groups=(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.down_proj",),
    ),
)

ARCHITECTURES = (LLAMA,)


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

    @property
    def weight(self) -> Tensor:
        """The weights, [out, in]: a view, so writing into it changes the model."""
        weight = getattr(self.module, self.parameter).data
        if self.expert is not None:
            weight = weight[self.expert]
        return weight.T if self.transposed else weight


@dataclass(frozen=True)
class InputGroup:
    """Layers that read one activation.

    Attributes:
        layers: by full name, in the order of the data.
        feeds: number, inside the block, of the group that reads what these layers' outputs become
            after the MLP's activation function; None outside MLPs.
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

    def read(self, args: tuple) -> Tensor:
        """The activation, [sequence, position, in], from what `module` is called with."""
        return args[0]


@dataclass(frozen=True)
class Block:
    """One transformer block of a model.

    Attributes:
        name: its path in the model, such as "model.layers.3".
        module: the block itself.
        groups: for each activation that linear layers read, those layers.
    """

    name: str
    module: nn.Module
    groups: tuple[InputGroup, ...]

    @property
    def layers(self) -> dict[str, WeightMatrix]:
        """Every prunable layer of the block, by full name, in the order of the data."""
        return {name: layer for group in self.groups for name, layer in group.layers.items()}


def find_architecture(model: PreTrainedModel) -> Architecture:
    """The entry of `ARCHITECTURES` that describes `model`.

    Raises:
        EsparseError: if no entry lists the model's type.
    """
    model_type = model.config.model_type
    for architecture in ARCHITECTURES:
        if model_type in architecture.model_types:
            return architecture
    known = ", ".join(sorted(t for a in ARCHITECTURES for t in a.model_types))
    raise EsparseError(
        f"Models of type {model_type!r} are not described yet; supported: {known}. "
        "To add one, write its entry in esparse_lab/architectures.py."
    )


def transformer_blocks(model: PreTrainedModel) -> list[Block]:
    """The transformer blocks of `model` in the order in which they run."""
    architecture = find_architecture(model)
    first, second = architecture.mlp
    blocks = []
    for index, module in enumerate(model.get_submodule(architecture.blocks)):
        name = f"{architecture.blocks}.{index}"
        groups = tuple(
            InputGroup(
                {f"{name}.{path}": WeightMatrix(module.get_submodule(path)) for path in group},
                feeds=second if number == first else None,
            )
            for number, group in enumerate(architecture.input_groups)
        )
        blocks.append(Block(name, module, groups))
    return blocks


def prunable_layers(model: PreTrainedModel) -> dict[str, WeightMatrix]:
    """Every linear layer that pruning may touch, by full name; embeddings and head are not."""
    return {n: layer for block in transformer_blocks(model) for n, layer in block.layers.items()}


def find_layer(model: PreTrainedModel, block: int, role: str) -> str:
    """Full name of the layer called `role` ("down_proj") in block number `block`.

    Raises:
        InputError: if the model has no such block or the block no such layer; suggests.
    """
    blocks = transformer_blocks(model)
    if not 0 <= block < len(blocks):
        raise InputError(f"The model has blocks 0 to {len(blocks) - 1}, got {block}.")
    by_role = {name.rpartition(".")[2]: name for name in blocks[block].layers}
    if role not in by_role:
        raise unknown("layer of a block", role, by_role)
    return by_role[role]
