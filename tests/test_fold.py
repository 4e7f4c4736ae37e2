"""A folded model computes what it computed, and its stored matrices are N:M."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny_models import TINY_CONFIGS, random_model
from transformers import PreTrainedModel
from whole_forward import layer_names, matrix

from esparse_lab import BlockShuffle, ChannelOrder, InputError, Pattern, Recipe, Wanda, prune_model
from esparse_lab.folding import GatheredNorm, fold, fold_orders, gathered_norms
from esparse_lab.pruning import PrunedLayer

pytestmark = pytest.mark.filterwarnings("ignore:.*no calibration token was sent here")
PATTERN = Pattern(2, 4)
# What a family leaves open: heads of a key-value head, layouts, which norm is read.
VARIANTS = {
    **{name: (name, {}) for name in TINY_CONFIGS},
    "llama, 2 kv heads": ("llama", {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "phi3, 2 kv heads": ("phi3", {"num_attention_heads": 6, "num_key_value_heads": 2}),
    "gpt_neox, one after the other": ("gpt_neox", {"use_parallel_residual": False}),
    "opt, norms behind": ("opt", {"do_layer_norm_before": False, "_remove_final_layer_norm": True}),
    "bloom, norms in the stream": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "falcon, many values": ("falcon", {"multi_query": False}),
    "falcon, two norms": ("falcon", {"parallel_attn": False}),
    "falcon, 2 kv heads": (
        "falcon",
        {"new_decoder_architecture": True, "num_attention_heads": 4, "num_kv_heads": 2},
    ),
}
POST_NORM = ("opt, norms behind", "bloom, norms in the stream")


def in_float64(norm: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """The norm's own formula: transformers rounds it to float32 whatever the model is."""
    name = type(norm).__name__
    offset = 1.0 if name.startswith("Gemma") else 0.0
    eps = norm.eps if name.startswith("Gemma") else norm.variance_epsilon

    def forward(x: torch.Tensor) -> torch.Tensor:
        return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * (offset + norm.weight)

    return forward


def exactly(model: PreTrainedModel) -> PreTrainedModel:
    """The model with RMS norms that compute in float64."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = in_float64(module)
    return model


def lively(variant: str) -> PreTrainedModel:
    """A float64 model whose biases and norms do something: transformers starts them at 0 and 1."""
    model_type, changes = VARIANTS[variant]
    model = random_model(model_type, **changes).double()
    if model_type in ("mixtral", "qwen2_moe", "qwen3_moe"):
        model.set_experts_implementation("eager")  # the grouped product knows no float64
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data += (0.3 if parameter.dim() == 1 else 0.1) * noise
    return exactly(model)


def pruned_and_folded(
    variant: str, tokens: torch.Tensor, orders: str = "legal"
) -> tuple[PreTrainedModel, PreTrainedModel, list[PrunedLayer]]:
    masked = lively(variant)
    recipe = Recipe(Wanda(), PATTERN, BlockShuffle(block=12), orders=orders)
    layers = prune_model(masked, tokens, recipe, progress=False)
    folded = exactly(copy.deepcopy(masked))
    return masked, folded, fold(folded, layers)


def is_nm(weight: torch.Tensor) -> bool:
    kept = weight.numpy() != 0
    counts = [kept[:, i : i + 4].sum(axis=1).max() for i in range(0, kept.shape[1], 4)]
    return max(counts) <= 2


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_folded_model_is_nm_in_memory_and_computes_the_same(variant, tokens):
    masked, folded, layers = pruned_and_folded(variant, tokens)
    assert {layer.name for layer in layers} == layer_names(folded)
    assert all(is_nm(matrix(folded, layer.name)) for layer in layers)
    assert not all(is_nm(matrix(masked, layer.name)) for layer in layers)  # the fold did it
    assert all(layer.folded for layer in layers)

    expected, found = masked(tokens).logits, folded(tokens).logits
    assert float((found - expected).abs().max()) < 1e-9 < float(expected.abs().max())

    prompt = tokens[:, :5]
    cache = folded(prompt, use_cache=True).past_key_values
    stepwise = [
        folded(tokens[:, i : i + 1], past_key_values=cache, use_cache=True).logits
        for i in range(5, tokens.shape[1])
    ]
    assert float((torch.cat(stepwise, dim=1) - expected[:, 5:]).abs().max()) < 1e-9

    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    settings["attention_mask"] = torch.ones_like(prompt)
    written = folded.generate(prompt, **settings)
    assert torch.equal(written, masked.generate(prompt, **settings))


@pytest.mark.parametrize("orders", ["free", "stream"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_other_orders_need_no_gather(variant, orders, tokens):
    masked, folded, layers = pruned_and_folded(variant, tokens, orders=orders)
    if orders == "stream":
        assert all(layer.order is not None for layer in layers)
    assert not gathered_norms(folded)
    assert any(layer.order is not None for layer in layers)
    assert all(is_nm(matrix(folded, layer.name)) for layer in layers)
    assert set(folded.state_dict()) == set(masked.state_dict())
    with torch.no_grad():
        assert float((folded(tokens).logits - masked(tokens).logits).abs().max()) < 1e-9


@pytest.mark.parametrize("variant", VARIANTS)
def test_gathers_are_where_the_residual_stream_is_read(variant, tokens):
    _, folded, layers = pruned_and_folded(variant, tokens)
    n_blocks = folded.config.get_text_config().num_hidden_layers
    shared = variant in ("falcon", "falcon, many values")
    per_block = 0 if variant in POST_NORM else 1 if shared else 2
    assert len(gathered_norms(folded)) == n_blocks * per_block
    moved = {layer.name for layer in layers if layer.order is not None}
    if per_block:
        assert moved == {layer.name for layer in layers}


@torch.no_grad()
def test_a_fold_upon_a_fold_is_one_fold(tiny_llama, tokens):
    twice = tiny_llama.double()
    expected = twice(tokens).logits
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        order = ChannelOrder(torch.randperm(24, generator=generator))
        fold_orders(twice, {f"model.layers.1.mlp.{n}_proj": order for n in ("gate", "up")})
    assert len(gathered_norms(twice)) == 1
    assert not isinstance(twice.model.layers[1].post_attention_layernorm.norm, GatheredNorm)
    assert float((twice(tokens).logits - expected).abs().max()) < 1e-9


REVERSED = ChannelOrder(torch.arange(23, -1, -1))
REFUSED = {
    "heads": (
        {"model.layers.0.self_attn.o_proj": REVERSED},
        r"self_attn\.o_proj: The order is not within heads of 8, alike in 3 query heads",
    ),
    "lonely": (
        {"model.layers.0.self_attn.q_proj": REVERSED},
        r"q_proj and model\.layers\.0\.self_attn\.k_proj read one activation.*k_proj has none",
    ),
    "length": (
        {"model.layers.0.mlp.down_proj": REVERSED},
        r"down_proj reads 40 channels, its order holds 24",
    ),
    "name": ({"model.layers.0.mlp.dwn_proj": REVERSED}, "Did you mean"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_folded_changes_nothing(tiny_llama, case):
    bad, message = REFUSED[case]
    before = copy.deepcopy(tiny_llama.state_dict())
    good = {"model.layers.1.mlp.down_proj": ChannelOrder(torch.arange(39, -1, -1))}
    with pytest.raises(InputError, match=message):
        fold_orders(tiny_llama, good | bad)
    assert set(tiny_llama.state_dict()) == set(before)
    assert all(torch.equal(v, before[k]) for k, v in tiny_llama.state_dict().items())


def test_shared_weights_are_not_folded(tiny_llama):
    first, second = (tiny_llama.model.layers[i] for i in (0, 1))
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    before = copy.deepcopy(tiny_llama.state_dict())
    order = ChannelOrder(torch.arange(39, -1, -1))
    with pytest.raises(InputError, match=r"shared by model\.layers\.0\.mlp\.up_proj\.weight and"):
        fold_orders(tiny_llama, {"model.layers.0.mlp.down_proj": order})
    second.post_attention_layernorm = first.post_attention_layernorm
    second.mlp = copy.deepcopy(second.mlp)
    gate = {f"model.layers.0.mlp.{n}_proj": REVERSED for n in ("gate", "up")}
    with pytest.raises(InputError, match="the same module is used elsewhere"):
        fold_orders(tiny_llama, gate)
    assert all(torch.equal(v, before[k]) for k, v in tiny_llama.state_dict().items())


def test_masks_of_any_order_cannot_all_be_folded(tiny_llama, tokens):
    layers = prune_model(tiny_llama, tokens, Recipe(Wanda(), PATTERN, BlockShuffle()), progress=0)
    with pytest.raises(InputError, match="orders='legal'"):
        fold(tiny_llama, layers)
    mask = torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(InputError, match="a is folded already"):
        fold(tiny_llama, [PrunedLayer("a", mask, None, 1.0, 0.0, folded=True)])


def test_the_stream_is_ordered_before_any_norm_gathers(tiny_llama):
    readers = [f"self_attn.{n}_proj" for n in "qkv"] + ["mlp.gate_proj", "mlp.up_proj"]
    first = {f"model.layers.0.{name}": REVERSED for name in readers[:3]}
    fold_orders(tiny_llama, first)
    everywhere = {f"model.layers.{i}.{name}": REVERSED for i in range(3) for name in readers}
    with pytest.raises(InputError, match=r"layers\.0\.input_layernorm gathers already"):
        fold_orders(tiny_llama, everywhere)


@torch.no_grad()
def test_tied_embeddings_are_permuted_once(tokens):
    tied = random_model("gemma").double()  # head and embedding are one matrix
    before, embedding = tied(tokens).logits, tied.get_input_embeddings().weight.clone()
    readers = [f"self_attn.{n}_proj" for n in "qkv"] + ["mlp.gate_proj", "mlp.up_proj"]
    fold_orders(tied, {f"model.layers.{i}.{n}": REVERSED for i in range(3) for n in readers})
    assert torch.equal(tied.get_input_embeddings().weight, embedding.flip(1))
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    assert float((tied(tokens).logits - before).abs().max()) < 1e-5


def test_no_order_no_change(tiny_llama):
    before = copy.deepcopy(tiny_llama.state_dict())
    fold_orders(tiny_llama, {"model.layers.0.mlp.down_proj": ChannelOrder.identity(40)})
    fold_orders(tiny_llama, {})
    assert all(torch.equal(v, before[k]) for k, v in tiny_llama.state_dict().items())


def test_a_gathered_norm_reorders_what_the_norm_gives():
    norm = GatheredNorm(torch.nn.LayerNorm(3), torch.tensor([2, 0, 1]))
    x = torch.tensor([[1.0, 2.0, 6.0]])
    plain = (np.array([1, 2, 6]) - 3) / np.sqrt(14 / 3 + 1e-5)
    assert norm(x)[0].tolist() == pytest.approx([plain[2], plain[0], plain[1]], abs=1e-5)
    assert list(norm.state_dict()) == ["index", "norm.weight", "norm.bias"]
