"""Where the prunable layers of each model family are, as data.

One entry serves every model whose `config.model_type` it lists. To add a family, add an entry to
`ARCHITECTURES`; `tests/test_architectures.py` then prunes a tiny random model of it.
"""

from dataclasses import dataclass

from torch import nn
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
    """

    model_types: tuple[str, ...]
    blocks: str
    input_groups: tuple[tuple[str, ...], ...]


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
class Block:
    """One transformer block of a model.

    Attributes:
        name: its path in the model, such as "model.layers.3".
        module: the block itself.
        groups: for each activation that linear layers read, those layers by their full name.
    """

    name: str
    module: nn.Module
    groups: tuple[dict[str, nn.Linear], ...]

    @property
    def layers(self) -> dict[str, nn.Linear]:
        """Every prunable layer of the block, by full name, in the order of the data."""
        return {name: layer for group in self.groups for name, layer in group.items()}


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
    blocks = []
    for index, module in enumerate(model.get_submodule(architecture.blocks)):
        name = f"{architecture.blocks}.{index}"
        groups = tuple(
            {f"{name}.{path}": module.get_submodule(path) for path in group}
            for group in architecture.input_groups
        )
        blocks.append(Block(name, module, groups))
    return blocks


def prunable_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
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
