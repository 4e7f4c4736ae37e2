"""Perplexity against the model library's own loss and a model whose answer is known."""

import math

import pytest
import torch
from tiny_models import random_model

from esparse_lab import EsparseError, InputError, perplexity


def test_equals_the_mean_of_the_library_loss(tiny_llama, tokens, monkeypatch):
    monkeypatch.setattr("esparse_lab.likelihood.POSITIONS_AT_ONCE", 5)
    with torch.no_grad():
        losses = [float(tiny_llama(w[None], labels=w[None]).loss) for w in tokens]
    found = perplexity(tiny_llama, tokens, progress=False)
    assert found.nll.tolist() == pytest.approx(losses, rel=1e-5)
    assert found.value == pytest.approx(math.exp(sum(losses) / 5), rel=1e-5)
    assert found.n_tokens == 5 * 11


def test_a_model_that_knows_nothing_is_as_surprised_as_the_vocabulary_is_large(tiny_llama, tokens):
    tiny_llama.lm_head.weight.data.zero_()
    assert perplexity(tiny_llama, tokens, progress=False).value == pytest.approx(256)


def test_a_broken_model_is_an_error(tiny_llama, tokens):
    tiny_llama.lm_head.weight.data[3] = float("nan")
    with pytest.raises(EsparseError, match="loss of window 0 is not finite"):
        perplexity(tiny_llama, tokens, progress=False)


def test_one_position_predicts_nothing(tiny_llama):
    with pytest.raises(InputError, match="at least two positions"):
        perplexity(tiny_llama, torch.zeros(2, 1, dtype=torch.int64), progress=False)


def test_value_prints_short():
    model = random_model("llama")
    text = str(perplexity(model, torch.zeros(1, 4, dtype=torch.int64), progress=False))
    assert float(text) > 0
    assert len(text.split(".")[1]) == 3
