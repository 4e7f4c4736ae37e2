"""Kept measurements belong to the weights that were measured."""

import pytest
import torch

from esparse_lab import Magnitude, Pattern, Recipe, prune_model
from esparse_lab.experiments import ladder, perplexity_ladder, weights_fingerprint
from esparse_lab.models import LoadedModel


@pytest.fixture
def loaded(tiny_llama, tmp_path, monkeypatch) -> LoadedModel:
    monkeypatch.setenv("ESPARSE_CACHE", str(tmp_path))
    return LoadedModel(tiny_llama, None, "tiny", "revision")


def test_a_second_ladder_is_read_from_disk_and_leaves_the_model_dense(loaded, tokens):
    before = weights_fingerprint(loaded.model)
    recipes = ladder(["magnitude", "wanda"], ["2:4"], ["none"])
    first, second = (
        perplexity_ladder(loaded, tokens, tokens, recipes, progress=False) for _ in range(2)
    )
    assert first.equals(second)  # the seconds, too
    assert weights_fingerprint(loaded.model) == before


def test_a_model_pruned_in_memory_is_measured_anew(loaded, tokens):
    dense = perplexity_ladder(loaded, tokens, tokens, [], progress=False).perplexity[0]
    prune_model(loaded.model, None, Recipe(Magnitude(), Pattern(1, 4)), progress=False)
    pruned = perplexity_ladder(loaded, tokens, tokens, [], progress=False).perplexity[0]
    assert pruned != dense


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_fingerprint_sees_one_weight(tiny_llama, dtype):
    model = tiny_llama.to(dtype)
    before = weights_fingerprint(model)
    assert weights_fingerprint(model) == before
    model.model.layers[2].mlp.up_proj.weight.data[3, 4] = 0
    assert weights_fingerprint(model) != before
