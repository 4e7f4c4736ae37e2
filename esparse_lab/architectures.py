"""Where the prunable layers of each model family are, as data.

One entry serves every model whose `config.model_type` it lists. To add a family, add an entry to
`ARCHITECTURES`; `tests/test_architectures.py` then prunes a tiny random model of it. Families
without an entry are traced (`discovery.py`).
"""

from dataclasses import dataclass, replace
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from esparse_lab.blocks import Block, InputGroup, WeightMatrix
from esparse_lab.discovery import discover_blocks
from esparse_lab.errors import EsparseError, InputError, unknown
from esparse_lab.experts import expert_groups


@dataclass(frozen=True)
class MLP:
    """Layers on both sides of an activation function.

    Attributes:
        before: read the block's activation; the product of their outputs (or the one output) is
            what `after` reads. Gate and up projection may be one fused matrix, gate first.
        after: the layer that leads back.
    """

    before: tuple[str, ...]
    after: str


@dataclass(frozen=True)
class Architecture:
    """A family of decoders. Paths lead from a block to a layer.

    Attributes:
        family: what people call these models.
        model_types: values of `config.model_type`.
        blocks: path of the list of transformer blocks inside the model.
        attention: layers grouped by the activation that they read. Layers of one group share input
            statistics and a channel order.
        mlps: each block has one or more of these; models with experts mix kinds of blocks.
        experts: path of the module that stacks experts, in blocks that have them.
        returns: items of the tuple that a block returns; 0 if it returns hidden states bare.
        plain_residual: attention's last layer and the MLP's each add their output to the residual
            stream, one after the other, and no norm or factor stands between.
        values: where the rows of the value projection are in the first group of `attention`:
            "last" is a layer of its own, "stacked" behind all query and key rows of a fused one,
            "grouped" behind the query and key rows of its own key-value head.
        norms: whose output attention reads, and whose the MLPs; of several that may be meant, the
            first that a block has.
        also_read: layers that are never pruned and read what the MLPs read.
        norm_is_residual: a field of the config, and the value with which a norm's output is also
            added to the residual stream.
    """

    family: str
    model_types: tuple[str, ...]
    blocks: str
    attention: tuple[tuple[str, ...], ...]
    mlps: tuple[MLP, ...]
    experts: str | None = None
    returns: int = 0
    plain_residual: bool = False
    values: Literal["last", "stacked", "grouped"] = "last"
    norms: tuple[tuple[str, ...], tuple[str, ...]] = (
        ("input_layernorm",),
        ("post_attention_layernorm",),
    )
    also_read: tuple[str, ...] = ()
    norm_is_residual: tuple[str, bool] | None = None


def _gated(path: str) -> MLP:
    return MLP((f"{path}.gate_proj", f"{path}.up_proj"), f"{path}.down_proj")


_LLAMA = Architecture(
    family="Llama, Mistral, Qwen 2 and 3, Gemma",
    model_types=("llama", "mistral", "qwen2", "qwen3", "gemma"),
    blocks="model.layers",
    attention=(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
    ),
    mlps=(_gated("mlp"),),
    plain_residual=True,
)
_NEOX = Architecture(
    family="GPT-NeoX, Pythia",
    model_types=("gpt_neox",),
    blocks="gpt_neox.layers",
    attention=(("attention.query_key_value",), ("attention.dense",)),
    mlps=(MLP(("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),),
    values="grouped",
)
_BLOOM = replace(
    _NEOX,
    family="BLOOM",
    model_types=("bloom",),
    blocks="transformer.h",
    attention=(("self_attention.query_key_value",), ("self_attention.dense",)),
    returns=2,
    norm_is_residual=("apply_residual_connection_post_layernorm", True),
)
_GEMMA2 = replace(
    _LLAMA,
    family="Gemma 2 and 3",
    model_types=("gemma2", "gemma3_text"),
    plain_residual=False,
    norms=(("input_layernorm",), ("pre_feedforward_layernorm",)),
)
ARCHITECTURES = (
    _LLAMA,
    _GEMMA2,
    replace(
        _GEMMA2,
        family="Gemma 3 with images (its text model)",
        model_types=("gemma3",),
        blocks="model.language_model.layers",
    ),
    replace(
        _LLAMA,
        family="Mixtral, Qwen 2 and 3 with experts",
        model_types=("mixtral", "qwen2_moe", "qwen3_moe"),
        mlps=(_gated("mlp"), _gated("mlp.shared_expert")),
        experts="mlp.experts",
        also_read=("mlp.gate", "mlp.shared_expert_gate"),
    ),
    replace(
        _LLAMA,
        family="Phi 3",
        model_types=("phi3",),
        attention=(("self_attn.qkv_proj",), ("self_attn.o_proj",)),
        mlps=(MLP(("mlp.gate_up_proj",), "mlp.down_proj"),),
        values="stacked",
    ),
    Architecture(
        family="OPT",
        model_types=("opt",),
        blocks="model.decoder.layers",
        attention=(
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("self_attn.out_proj",),
        ),
        mlps=(MLP(("fc1",), "fc2"),),
        norms=(("self_attn_layer_norm",), ("final_layer_norm",)),
        norm_is_residual=("do_layer_norm_before", False),
    ),
    Architecture(
        family="GPT-2",
        model_types=("gpt2",),
        blocks="transformer.h",
        attention=(("attn.c_attn",), ("attn.c_proj",)),
        mlps=(MLP(("mlp.c_fc",), "mlp.c_proj"),),
        plain_residual=True,
        values="stacked",
        norms=(("ln_1",), ("ln_2",)),
    ),
    _NEOX,
    _BLOOM,
    # Attention and MLP of Falcon read one activation in some models and two in others: two groups
    # are right for all, and the norms tell whether they share one order.
    replace(
        _BLOOM,
        family="Falcon",
        model_types=("falcon",),
        norms=(
            ("ln_attn", "input_layernorm"),
            ("ln_mlp", "post_attention_layernorm", "input_layernorm"),
        ),
        norm_is_residual=None,
    ),
)


def find_architecture(model: PreTrainedModel) -> Architecture | None:
    """The entry of `ARCHITECTURES` that describes `model`, or None."""
    for architecture in ARCHITECTURES:
        if model.config.model_type in architecture.model_types:
            return architecture
    return None


def transformer_blocks(model: PreTrainedModel) -> list[Block]:
    """The transformer blocks of `model` in the order in which they run.

    Raises:
        EsparseError: if the model is of no known family and tracing cannot make it out, or if it is
            not built as its family is.
    """
    architecture = find_architecture(model)
    if architecture is None:
        return discover_blocks(model)
    blocks = []
    for index, module in enumerate(model.get_submodule(architecture.blocks)):
        name = f"{architecture.blocks}.{index}"
        groups = tuple(_groups(architecture, name, module))
        before_mlp = len(architecture.attention)
        # With experts, or several MLPs, what a layer returns is weighted before it is added.
        one_mlp = len(groups) == before_mlp + 2
        outs = (before_mlp - 1, before_mlp + 1 if one_mlp else None)
        plain = outs if architecture.plain_residual else (None, None)
        blocks.append(Block(name, module, groups, architecture.returns, *plain))
    return blocks


def _groups(architecture: Architecture, block: str, module: nn.Module) -> list[InputGroup]:
    inside = dict(module.named_modules())
    mlps = [mlp for mlp in architecture.mlps if mlp.after in inside]
    wanted = {path for mlp in mlps for path in mlp.before}.union(*architecture.attention)
    if not mlps and architecture.experts not in inside:
        wanted |= {mlp.after for mlp in architecture.mlps}
    if absent := sorted(wanted - set(inside)):
        raise EsparseError(
            f"{block} has no {', '.join(absent)}, which models of type "
            f"{architecture.model_types[0]!r} should have. Does esparse_lab know this version of "
            "transformers? Correct the entry in esparse_lab/architectures.py."
        )

    def group(paths: tuple[str, ...], feeds: int | None = None) -> InputGroup:
        return InputGroup({f"{block}.{p}": WeightMatrix.of(inside[p]) for p in paths}, feeds)

    groups = [group(paths) for paths in architecture.attention]
    for mlp in mlps:
        groups += [group(mlp.before, len(groups) + 1), group((mlp.after,))]
    if architecture.experts in inside:
        path = architecture.experts
        groups += expert_groups(f"{block}.{path}", inside[path], len(groups))
    return groups


def prunable_layers(model: PreTrainedModel) -> dict[str, WeightMatrix]:
    """Every linear layer that pruning may touch, by full name; embeddings and head are not."""
    return {n: layer for block in transformer_blocks(model) for n, layer in block.layers.items()}


def find_layer(model: PreTrainedModel, block: int, role: str) -> str:
    """Full name of the layer called `role` ("down_proj") in block number `block`.

    A role may be more of the name ("mlp.c_proj", "experts.3.down_proj"); of several layers that end
    in it, the first is meant.

    Raises:
        InputError: if the model has no such block or the block no such layer; suggests.
    """
    blocks = transformer_blocks(model)
    if not 0 <= block < len(blocks):
        raise InputError(f"The model has blocks 0 to {len(blocks) - 1}, got {block}.")
    for name in blocks[block].layers:
        if name.endswith(f".{role}"):
            return name
    roles = {name.rpartition(".")[2] for name in blocks[block].layers}
    raise unknown("layer of a block", role, roles)
