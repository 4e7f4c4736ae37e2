"""Every supported family is described completely."""

import pytest
from tiny_models import TINY_CONFIGS, random_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from esparse_lab import EsparseError, prunable_layers
from esparse_lab.architectures import ARCHITECTURES, transformer_blocks


def test_every_listed_model_type_has_a_tiny_model():
    assert {t for a in ARCHITECTURES for t in a.model_types} == set(TINY_CONFIGS)


@pytest.mark.parametrize("model_type", TINY_CONFIGS)
def test_every_linear_layer_of_a_block_is_listed_once(model_type):
    model = random_model(model_type)
    listed = prunable_layers(model)
    inside = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"}
    assert set(listed) == inside
    assert sum(len(block.layers) for block in transformer_blocks(model)) == len(inside)


def test_unknown_family_says_what_is_known():
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=16))
    with pytest.raises(EsparseError, match="type 'gpt2' are not described yet; supported: llama"):
        prunable_layers(model)
