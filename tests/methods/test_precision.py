"""Half models: statistics and choices in float32, results in the model's own dtype, same bits."""

import pytest
import torch
from oracles import layer_case
from tiny_models import random_model

from esparse_lab import METHODS, LayerStats, Pattern, Recipe, Reconstruction, prune_model
from esparse_lab.architectures import prunable_layers
from esparse_lab.storage import require_nm

HALVES = [torch.float16, torch.bfloat16]
# An update is worked out in float32 and rounded once, to the nearest half.
ROUNDING = {torch.float16: 2**-11, torch.bfloat16: 2**-8}


@pytest.mark.parametrize("dtype", HALVES)
def test_statistics_of_halves_are_those_of_the_same_numbers_in_float32(dtype):
    activations = (layer_case(tokens=500)[1] * 40).to(dtype)
    assert float(activations.float().square().sum(dim=0).max()) > 65504  # float16 holds no more
    half, full = LayerStats.of(activations), LayerStats.of(activations.float())
    for name in ("norm", "entropy", "gram"):
        assert getattr(half, name).dtype == torch.float32
        assert torch.equal(getattr(half, name), getattr(full, name)), name
    exact = activations.double().T @ activations.double()
    torch.testing.assert_close(half.gram.double(), exact, rtol=1e-5, atol=1e-5 * float(exact.max()))


@pytest.mark.parametrize("reconstruct", [None, Reconstruction()], ids=["as it is", "solved"])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_half_models_are_pruned_twice_to_the_same_bits(method, dtype, reconstruct, tokens):
    recipe = Recipe(method(), Pattern(2, 4), reconstruct=reconstruct)
    first, second = (random_model("llama").to(dtype) for _ in range(2))
    axes = {p.name: p.group_axis for p in prune_model(first, tokens, recipe, progress=False)}
    prune_model(second, tokens, recipe, progress=False)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert a.dtype == dtype
        assert torch.equal(a, b)
    for name, layer in prunable_layers(first).items():
        assert layer.weight.isfinite().all()
        require_nm(layer.weight if axes[name] == "in" else layer.weight.T, Pattern(2, 4))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["sparsegpt", "isc"])
def test_updated_weights_lose_one_rounding(name, dtype, tokens):
    half = random_model("llama").to(dtype)
    layer = next(iter(prunable_layers(half).values()))
    dense = layer.weight.clone()
    inputs = []
    module = half.model.layers[0].self_attn.q_proj
    hook = module.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    with torch.no_grad():
        half(tokens)
    hook.remove()
    expected = METHODS[name]().choose(dense, LayerStats.of(inputs[0]), Pattern(2, 4)).weight
    prune_model(half, tokens, Recipe(METHODS[name](), Pattern(2, 4)), progress=False)
    bound = expected.abs() * ROUNDING[dtype] + 1e-6
    assert ((layer.weight.float() - expected).abs() <= bound).all()
