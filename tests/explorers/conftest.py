"""A tiny random model with an explorer's two arguments."""

import pytest
import torch
from tiny_models import random_model

from esparse_lab.models import LoadedModel


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """Nothing is kept from another test."""
    monkeypatch.setenv("ESPARSE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def loaded(tiny_llama):
    return LoadedModel(tiny_llama, None, "tiny", "none")


@pytest.fixture
def mixture():
    """A model with experts, more of them than three tokens can reach."""
    return LoadedModel(random_model("mixtral"), None, "mixture", "none")


@pytest.fixture
def few_tokens():
    return torch.tensor([[7]])
