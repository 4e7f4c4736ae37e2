"""Tracing a family that no entry describes."""

import pytest
import torch
from test_capture import hooks_and_overrides
from tiny_models import EQUAL_HEADS, TINY_CONFIGS, WIDE, random_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma4TextConfig,
    GptOssConfig,
    OlmoeConfig,
    PhiConfig,
    T5Config,
    T5ForConditionalGeneration,
)
from whole_forward import layer_names

from esparse_lab import DaSS, EsparseError, Pattern, Recipe, layer_inputs, prune_model
from esparse_lab.architectures import find_architecture, transformer_blocks
from esparse_lab.blocks import Block
from esparse_lab.discovery import discover_blocks


def described(blocks: list[Block]) -> list[tuple[str, int, list[set[str]]]]:
    return [(b.name, b.returns, [set(g.layers) for g in b.groups]) for b in blocks]


def of_config(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("model_type", TINY_CONFIGS)
def test_tracing_finds_what_the_table_says(model_type):
    # In a parallel Falcon, both halves of a block read one activation.
    changes = {"parallel_attn": False} if model_type == "falcon" else {}
    model = random_model(model_type, **changes)
    assert described(discover_blocks(model)) == described(transformer_blocks(model))
    assert hooks_and_overrides(model) == 0


def test_layers_of_both_halves_of_a_block_may_read_one_activation():
    model = of_config(PhiConfig(**EQUAL_HEADS, pad_token_id=0))
    assert find_architecture(model) is None
    [first, *_] = transformer_blocks(model)[0].groups
    assert [name.rpartition(".")[2] for name in first.layers] == [
        "q_proj",
        "k_proj",
        "v_proj",
        "fc1",
    ]


@pytest.mark.parametrize(
    "config",
    [
        OlmoeConfig(**EQUAL_HEADS, num_experts=4, num_experts_per_tok=2, pad_token_id=0),
        # Hands each block numbers that depend on the text.
        Gemma4TextConfig(**WIDE, hidden_size_per_layer_input=4, vocab_size_per_layer_input=256),
    ],
    ids=lambda config: config.model_type,
)
def test_a_traced_family_is_read_and_pruned(config, tokens, monkeypatch):
    model = of_config(config)
    monkeypatch.setattr("esparse_lab.capture.TOKENS_AT_ONCE", {"cpu": 24})  # 2 + 2 + 1 sequences
    *_, last = transformer_blocks(model)
    read, group = [], last.groups[-1]
    handle = group.module.register_forward_pre_hook(
        lambda _m, args: read.append(group.read(args, 12))
    )
    with torch.no_grad():
        for sequence in tokens:
            model(sequence[None])
    handle.remove()
    torch.testing.assert_close(layer_inputs(model, tokens, group.name), torch.cat(read))
    pruned = prune_model(model, tokens, Recipe(DaSS(), Pattern(2, 4)), progress=False)
    assert {layer.name for layer in pruned} == layer_names(model)
    assert bool(model(tokens).logits.isfinite().all())


class OneOfMany(nn.Module):
    """An MLP in a list, as experts once were."""

    def __init__(self, mlp: nn.Module):
        super().__init__()
        self.experts = nn.ModuleList([mlp])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.experts[0](x)


def test_a_list_inside_a_block_is_no_list_of_blocks(tiny_llama):
    for block in tiny_llama.model.layers:
        block.mlp = OneOfMany(block.mlp)
    blocks = discover_blocks(tiny_llama)
    assert [block.name for block in blocks] == [f"model.layers.{index}" for index in range(3)]
    assert blocks[2].groups[3].name == "model.layers.2.mlp.experts.0.down_proj"


def fails(model, message: str) -> None:
    model.config.model_type = "unheard_of"
    with pytest.raises(EsparseError, match=f"'unheard_of' are not described.*{message}"):
        transformer_blocks(model)
    assert hooks_and_overrides(model) == 0


def test_no_list_of_blocks_says_so(tiny_llama):
    tiny_llama.model.layers = nn.Sequential(*tiny_llama.model.layers)
    fails(tiny_llama, "it needs one nn.ModuleList of blocks with layers, none runs on text")


def test_layers_that_never_run_are_named(tiny_llama):
    tiny_llama.model.layers[1].spare = nn.Linear(4, 4)
    fails(tiny_llama, r"never called with an activation: model\.layers\.1\.spare")


def test_a_model_that_does_not_run_on_text_says_why():
    fails(
        T5ForConditionalGeneration(T5Config(vocab_size=256, d_model=8, num_layers=1)), "input_ids"
    )


def test_weights_outside_linear_layers_are_named():
    model = of_config(GptOssConfig(**EQUAL_HEADS, head_dim=8, num_local_experts=4))
    fails(model, r"in no linear layer: model\.layers\.0\.mlp\.experts\.(gate_up|down)_proj")
