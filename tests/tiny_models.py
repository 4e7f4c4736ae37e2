"""Tiny random models of every supported family."""

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
