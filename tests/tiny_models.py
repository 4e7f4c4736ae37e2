"""Tiny random models of every supported family."""

import copy

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

SIZE = {
    "vocab_size": 256,
    "hidden_size": 24,  # not a multiple of 16: the last group of m=16 is shorter
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 64,
}
EQUAL_HEADS = {**SIZE, "intermediate_size": 40, "num_key_value_heads": 1}
TINY = {**EQUAL_HEADS, "head_dim": 8}
# Heads that together are wider than the hidden states, as in Gemma and Qwen 3.
WIDE = {**EQUAL_HEADS, "head_dim": 12}
EXPERTS = {"moe_intermediate_size": 20, "num_experts": 4, "num_experts_per_tok": 2}
SLIDING = {
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
ENDS = {"bos_token_id": 0, "eos_token_id": 0}
GEMMA3 = Gemma3TextConfig(**WIDE, **SLIDING)
TINY_CONFIGS = {
    "llama": LlamaConfig(**TINY),
    "mistral": MistralConfig(**TINY, sliding_window=5),
    "qwen2": Qwen2Config(**EQUAL_HEADS),
    "qwen3": Qwen3Config(**WIDE),
    "gemma": GemmaConfig(**WIDE),
    "gemma2": Gemma2Config(**WIDE, **SLIDING),
    "gemma3_text": GEMMA3,
    "gemma3": Gemma3Config(
        text_config=GEMMA3,
        vision_config={
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": 28,
        },
        mm_tokens_per_image=4,
        boi_token_index=250,
        eoi_token_index=251,
        image_token_index=255,
    ),
    "phi3": Phi3Config(**EQUAL_HEADS, pad_token_id=0, eos_token_id=0),
    "opt": OPTConfig(**SIZE, ffn_dim=40, word_embed_proj_dim=16),
    "bloom": BloomConfig(vocab_size=256, hidden_size=24, n_layer=3, n_head=3),
    "gpt2": GPT2Config(
        vocab_size=256, n_embd=24, n_layer=3, n_head=3, n_positions=64, n_inner=40, **ENDS
    ),
    "gpt_neox": GPTNeoXConfig(**SIZE, intermediate_size=40),
    "falcon": FalconConfig(**SIZE, ffn_hidden_size=40, alibi=True),
    "mixtral": MixtralConfig(**TINY, num_local_experts=4),
    # Blocks without experts come first, last, or not at all.
    "qwen2_moe": Qwen2MoeConfig(
        **EQUAL_HEADS, **EXPERTS, shared_expert_intermediate_size=28, mlp_only_layers=[0]
    ),
    "qwen3_moe": Qwen3MoeConfig(**WIDE, **EXPERTS, decoder_sparse_step=2),
}


def random_model(model_type: str, seed: int = 0, **changes) -> PreTrainedModel:
    """A random model of a supported family, small enough for a test; `changes` to its config."""
    torch.manual_seed(seed)
    config = copy.deepcopy(TINY_CONFIGS[model_type])  # a model keeps the one it is given
    for name, value in changes.items():
        setattr(config, name, value)
    return AutoModelForCausalLM.from_config(config).eval()


def byte_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """One token a byte; `special` names special tokens, such as `eos_token`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
