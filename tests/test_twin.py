"""Matching to the dense model: what a layer aims at, against sums written out."""

import copy

import pytest
import torch
from tiny_models import TINY_CONFIGS, random_model

from esparse_lab import Magnitude, Needs, Pattern, Recipe, Reconstruction, Wanda, prune_model
from esparse_lab.architectures import transformer_blocks
from esparse_lab.capture import BlockWalk
from esparse_lab.curvature import aim, hessian
from esparse_lab.twin import DenseTwin, matched_stats

PATTERN = Pattern(2, 4)
PLAIN = ["llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "gpt2"]


def reads(model, module, tokens) -> torch.Tensor:
    """What a module reads in a whole forward, float64 [token, in]."""
    caught = []
    handle = module.register_forward_pre_hook(lambda _m, args: caught.append(args[0]))
    with torch.no_grad():
        model(tokens)
    handle.remove()
    return caught[0].flatten(0, -2).double()


def returned(model, module, tokens) -> torch.Tensor:
    caught = []
    handle = module.register_forward_hook(
        lambda _m, _a, out: caught.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        model(tokens)
    handle.remove()
    return caught[0].flatten(0, -2).double()


@pytest.mark.parametrize("model_type", PLAIN)
def test_what_a_layer_aims_at_brings_the_dense_model_back(model_type, tokens):
    """The aim is that of the least squares fit, written out, to the dense model's activations."""
    dense, pruned = random_model(model_type), random_model(model_type)
    with torch.no_grad():  # drift from before block 1: block 0 of one model is changed
        for layer in transformer_blocks(pruned)[0].layers.values():
            layer.weight.mul_(1.3)
    walk = BlockWalk.start(pruned, tokens)
    walk.advance(0)
    twin = DenseTwin(BlockWalk.start(dense, tokens))
    twin.walk.advance(0)
    twin.walk.blocks = walk.blocks
    twin.enter(1)
    ours, theirs = transformer_blocks(pruned)[1], transformer_blocks(dense)[1]
    n = len(tokens)
    for number, group in enumerate(ours.groups):
        stats = matched_stats(walk, twin, 1, number, Needs(gram=True))
        for name, layer in group.layers.items():
            x = reads(pruned, group.module, tokens)
            z = reads(dense, theirs.groups[number].module, tokens)
            weight = layer.weight.double()
            wanted = z @ weight.T
            if number == ours.attention_out:
                into = [reads(m, transformer_blocks(m)[1].module, tokens) for m in (dense, pruned)]
                wanted = wanted + into[0] - into[1]
            elif number == ours.mlp_out:
                outs = [
                    returned(m, transformer_blocks(m)[1].module, tokens) for m in (dense, pruned)
                ]
                wanted = x @ weight.T + outs[0] - outs[1]
            found = aim(layer.weight, stats[name], hessian(stats[name], 0.0).float())
            expected = 2 * wanted.T @ x / n
            torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("model_type", PLAIN)
def test_the_mlp_adds_its_output_to_what_the_block_returns(model_type, tokens):
    """`mlp_out` promises it: a change of those weights moves the block's output by dW x."""
    model = random_model(model_type)
    block = transformer_blocks(model)[1]
    layer = block.layers[block.groups[block.mlp_out].name]
    x = reads(model, layer.module, tokens)
    before = returned(model, block.module, tokens)
    change = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(3)) / 10
    with torch.no_grad():
        layer.weight.add_(change)
    after = returned(model, block.module, tokens)
    torch.testing.assert_close(after - before, x @ change.double().T, rtol=1e-3, atol=1e-4)


def test_families_that_do_more_than_add_are_not_promised():
    for model_type in set(TINY_CONFIGS) - set(PLAIN):
        blocks = transformer_blocks(random_model(model_type))
        assert all(block.mlp_out is None for block in blocks) or "moe" in model_type, model_type


def test_matched_to_itself_changes_nothing(tokens):
    """Nothing is pruned before block 0's first group: the aim is what it is without a twin."""
    model = random_model("llama")
    walk = BlockWalk.start(model, tokens)
    twin = DenseTwin.of(walk)
    twin.enter(0)
    stats = matched_stats(walk, twin, 0, 0, Needs(gram=True))
    one = stats["model.layers.0.self_attn.q_proj"]
    torch.testing.assert_close(one.cross, one.gram)
    weight = model.model.layers[0].self_attn.q_proj.weight.data
    h = hessian(one, 0.01).float()
    torch.testing.assert_close(aim(weight, one, h), weight @ h, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", TINY_CONFIGS)
def test_every_family_is_pruned_layer_by_layer_and_matched(model_type, tokens):
    for calibration in ("layerwise", "matched"):
        model = random_model(model_type)
        recipe = Recipe(Wanda(), PATTERN, calibration=calibration, reconstruct=Reconstruction())
        layers = prune_model(model, tokens, recipe, progress=False)
        assert all(float(layer.mask.float().mean()) == 0.5 for layer in layers)
        with torch.no_grad():
            assert bool(model(tokens).logits.isfinite().all())


def test_matched_pruning_comes_nearer_to_the_dense_output(tokens):
    """On the calibration text the block outputs of the matched model are nearer."""

    def distance(calibration):
        model = random_model("llama")
        dense = copy.deepcopy(model)
        recipe = Recipe(Magnitude(), PATTERN, calibration=calibration, reconstruct=Reconstruction())
        many = torch.randint(256, (64, 12), generator=torch.Generator().manual_seed(4))
        prune_model(model, many, recipe, progress=False)
        last = [returned(m, m.model.layers[-1], many) for m in (model, dense)]
        return float((last[0] - last[1]).square().sum())

    assert distance("matched") < distance("layerwise")


def test_the_twin_moves_alone_and_its_weights_do_not_outlive_their_block(tokens):
    walk = BlockWalk.start(random_model("llama"), tokens)
    twin = DenseTwin.of(walk)
    before = [batch.clone() for batch in walk.hidden]
    twin.enter(0)
    assert twin.weights
    twin.advance(0)
    assert not twin.weights
    assert all(torch.equal(a, b) for a, b in zip(walk.hidden, before, strict=True))
