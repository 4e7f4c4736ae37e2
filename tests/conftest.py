"""Seeded fixtures that every test may use."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

TINY = {
    "vocab_size": 256,
    "hidden_size": 24,  # not a multiple of 16: the last group of m=16 is shorter
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
TINY_CONFIGS = {
    "llama": LlamaConfig(**TINY),
    "mistral": MistralConfig(**TINY),
    "qwen2": Qwen2Config(**{k: v for k, v in TINY.items() if k != "head_dim"}),
    "qwen3": Qwen3Config(**TINY),
}


def random_model(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A random model of a supported family, small enough for a test."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(TINY_CONFIGS[model_type]).eval()


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
