"""Seeded fixtures that every test may use, and what this machine cannot run."""

import pytest
import torch
from tiny_models import random_model
from transformers import PreTrainedModel


@pytest.fixture
def tiny_llama() -> PreTrainedModel:
    return random_model("llama")


@pytest.fixture
def tokens() -> torch.Tensor:
    """Random calibration tokens, [sequence, position]."""
    return torch.randint(256, (5, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def scores() -> torch.Tensor:
    """Scores whose channels differ in scale, [row, in]."""
    generator = torch.Generator().manual_seed(2)
    return torch.rand(6, 24, generator=generator) * torch.rand(24, generator=generator) ** 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
