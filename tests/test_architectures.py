"""Every supported family is described completely."""

import copy

import pytest
import torch
from tiny_models import TINY_CONFIGS, random_model
from torch import nn
from whole_forward import layer_names, matrix

from esparse_lab import EsparseError, InputError, find_layer, prunable_layers
from esparse_lab.architectures import ARCHITECTURES, transformer_blocks
from esparse_lab.experiments import weights_restored
from esparse_lab.tables import layer_place


def test_every_listed_model_type_has_a_tiny_model():
    listed = [t for a in ARCHITECTURES for t in a.model_types]
    assert sorted(listed) == sorted(TINY_CONFIGS)


@pytest.mark.parametrize("model_type", TINY_CONFIGS)
def test_every_matrix_of_a_block_is_listed_once(model_type):
    model = random_model(model_type)
    listed = [n for block in transformer_blocks(model) for g in block.groups for n in g.layers]
    assert sorted(listed) == sorted(layer_names(model))
    for name, layer in prunable_layers(model).items():
        assert torch.equal(layer.weight, matrix(model, name))
        layer.weight[0, 1] = 7.0  # reaches the model
        assert matrix(model, name)[0, 1] == 7


@pytest.mark.parametrize("model_type", TINY_CONFIGS)
def test_what_a_layer_feeds_is_as_wide_as_what_it_makes(model_type):
    fed = set()
    for block in transformer_blocks(random_model(model_type)):
        for group in block.groups:
            if group.feeds is None:
                continue
            reader = block.groups[group.feeds]
            fed.add(reader.name)
            [after] = reader.layers.values()
            for name, before in group.layers.items():
                fused = 2 if name.endswith("gate_up_proj") else 1
                assert before.weight.shape[0] == fused * after.weight.shape[1]
    ends = ("down_proj", "fc2", "dense_4h_to_h", "mlp.c_proj")
    assert fed == {n for n in layer_names(random_model(model_type)) if n.endswith(ends)}


def test_groups_follow_the_kind_of_the_block():
    blocks = transformer_blocks(random_model("qwen2_moe"))
    names = [[g.name.split(".", 3)[3] for g in block.groups] for block in blocks]
    attention = ["self_attn.q_proj", "self_attn.o_proj"]
    assert names[0] == [*attention, "mlp.gate_proj", "mlp.down_proj"]
    assert names[1][2:6] == [
        "mlp.shared_expert.gate_proj",
        "mlp.shared_expert.down_proj",
        "mlp.experts.0.gate_up_proj",
        "mlp.experts.0.down_proj",
    ]
    assert len(names[1]) == 4 + 2 * 4


@pytest.mark.parametrize(
    ("model_type", "role", "name"),
    [
        ("gpt2", "c_attn", "transformer.h.1.attn.c_attn"),
        ("gpt2", "mlp.c_proj", "transformer.h.1.mlp.c_proj"),
        ("gpt_neox", "dense", "gpt_neox.layers.1.attention.dense"),
        ("opt", "fc1", "model.decoder.layers.1.fc1"),
        ("mixtral", "down_proj", "model.layers.1.mlp.experts.0.down_proj"),
        ("mixtral", "experts.3.gate_up_proj", "model.layers.1.mlp.experts.3.gate_up_proj"),
        ("qwen2_moe", "down_proj", "model.layers.1.mlp.shared_expert.down_proj"),
    ],
)
def test_layers_are_found_by_the_end_of_their_name(model_type, role, name):
    assert find_layer(random_model(model_type), 1, role) == name
    assert layer_place(name) == (1, role.rpartition(".")[2])


def test_a_layer_that_is_not_there_suggests(tiny_llama):
    with pytest.raises(InputError, match=r"Did you mean 'down_proj'"):
        find_layer(tiny_llama, 0, "dwn_proj")
    with pytest.raises(InputError, match="blocks 0 to 2, got 3"):
        find_layer(tiny_llama, 3, "down_proj")


@pytest.mark.parametrize("absent", ["up_proj", "down_proj"])
def test_a_model_that_is_not_built_as_its_family_says_so(tiny_llama, absent):
    setattr(tiny_llama.model.layers[1].mlp, absent, nn.Identity())
    delattr(tiny_llama.model.layers[1].mlp, absent)
    with pytest.raises(EsparseError, match=r"layers\.1 has no mlp\.(up|down)_proj.*'llama'"):
        transformer_blocks(tiny_llama)


@pytest.mark.parametrize("model_type", ["gpt2", "qwen2_moe"])
def test_weights_are_restored_through_views(model_type):
    model = random_model(model_type)
    before = copy.deepcopy(model.state_dict())
    with weights_restored(model):
        for layer in prunable_layers(model).values():
            layer.weight.zero_()
        assert not all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
