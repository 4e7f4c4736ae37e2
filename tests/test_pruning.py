"""Pruning a whole model: what is dropped, from which statistics, and what is left alone."""

import copy
import time
import weakref
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tiny_models import TINY_CONFIGS, random_model
from whole_forward import block_of, inputs_of_whole_forward, matrix

from esparse_lab import (
    METHODS,
    SEARCHES,
    BlockShuffle,
    EsparseError,
    GlobalShuffle,
    InputError,
    Magnitude,
    Pattern,
    Recipe,
    Uniform,
    Unstructured,
    Wanda,
    capture,
    prunable_layers,
    prune_model,
    require_nm,
)
from esparse_lab.permutation import search_order

PATTERN = Pattern(2, 4)


def wanda_by_hand(model, tokens, pattern: Pattern) -> dict[str, torch.Tensor]:
    """Wanda's loop written as its paper describes it: dense block, masks, pruned block, next."""
    masks = {}
    for index in range(model.config.get_text_config().num_hidden_layers):
        read = inputs_of_whole_forward(model, tokens)  # blocks before this one are pruned already
        for name in (n for n in read if block_of(n) == index):
            weight = matrix(model, name)
            squares = torch.stack([x.double().square().sum(0) for x in read[name]])
            score = weight.double().abs() * squares.mean(0).sqrt()
            mask = torch.zeros_like(score, dtype=torch.bool)
            for start in range(0, score.shape[1], pattern.m):
                group = score[:, start : start + pattern.m]
                best = group.topk(min(pattern.n, group.shape[1]), dim=1).indices + start
                mask.scatter_(1, best, True)
            masks[name] = mask
        for name in (n for n in read if block_of(n) == index):
            matrix(model, name)[~masks[name]] = 0
    return masks


@pytest.mark.parametrize("model_type", TINY_CONFIGS)
def test_sequential_wanda_equals_its_description(model_type, tokens):
    ours, theirs = random_model(model_type), random_model(model_type)
    pruned = prune_model(ours, tokens, Recipe(Wanda(), PATTERN), progress=False)
    expected = wanda_by_hand(theirs, tokens, PATTERN)
    assert {layer.name for layer in pruned} == set(expected)
    for layer in pruned:
        assert torch.equal(layer.mask, expected[layer.name]), layer.name
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("model_type", TINY_CONFIGS)
@pytest.mark.parametrize("method", [*METHODS, "esparse after gns+lbs"])
def test_every_family_is_pruned_by_every_method(model_type, method, tokens):
    name, _, search = method.partition(" after ")
    model = random_model(model_type)
    recipe = Recipe(METHODS[name](), PATTERN, SEARCHES[search or "none"])
    with torch.no_grad():
        for layer in prune_model(model, tokens, recipe, progress=False):
            weight = matrix(model, layer.name)
            if layer.group_axis == "out":
                weight = weight.T
            if layer.order is not None:
                weight = weight[:, layer.order.index]
            require_nm(weight, PATTERN)
            assert int((weight != 0).sum()) == weight.numel() // 2
            assert layer.n_tokens > 0 or name == "magnitude"
        assert bool(model(tokens).logits.isfinite().all())


@pytest.mark.parametrize("method", [name for name in METHODS if name != "magnitude"])
def test_an_expert_that_sees_no_token_falls_back_to_magnitude(method):
    model, dense = random_model("mixtral"), random_model("mixtral")
    recipe = Recipe(METHODS[method](), PATTERN)
    with pytest.warns(UserWarning, match=r"experts\.\d\..*no calibration token was sent here"):
        pruned = prune_model(model, torch.tensor([[7]]), recipe, progress=False)  # 2 experts of 4
    unseen = [layer for layer in pruned if not layer.n_tokens]
    assert len(unseen) == 3 * 2 * 2
    for layer in unseen:
        kept = matrix(dense, layer.name)
        assert torch.equal(layer.mask, PATTERN.mask(kept.abs()))
        assert torch.equal(matrix(model, layer.name), kept * layer.mask)
    assert bool(model(torch.tensor([[7, 8, 9]])).logits.isfinite().all())


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_pruned_weights_are_nm_in_their_order_and_else_untouched(method, search, tokens):
    model = random_model("llama")
    dense = copy.deepcopy(model)
    pruned = prune_model(model, tokens, Recipe(method(), PATTERN, search), progress=False)
    by_name = {layer.name: layer for layer in pruned}
    assert list(by_name) == list(prunable_layers(model))
    untouched = set(dict(model.named_parameters())) - {f"{name}.weight" for name in by_name}
    for name in untouched:
        assert torch.equal(model.get_parameter(name), dense.get_parameter(name))
    for name, layer in prunable_layers(model).items():
        record = by_name[name]
        weight = layer.weight
        assert not weight[~record.mask].any()
        if not method.updates_weights:
            assert torch.equal(weight, dense.get_submodule(name).weight * record.mask)
        assert (record.order is None) == (search is None)
        if record.group_axis == "out":
            weight = weight.T
        require_nm(weight if search is None else weight[:, record.order.index], PATTERN)
        assert float(record.mask.float().mean()) == 0.5
        assert 0.5 < record.retained_share < 1


def test_layers_that_share_an_input_share_an_order(tiny_llama, tokens):
    pruned = prune_model(tiny_llama, tokens, Recipe(Wanda(), PATTERN, BlockShuffle()), progress=0)
    orders = {layer.name.split(".", 3)[3]: layer.order for layer in pruned if ".1." in layer.name}
    assert orders["self_attn.q_proj"] is orders["self_attn.v_proj"]
    assert orders["mlp.gate_proj"] is orders["mlp.up_proj"]
    assert orders["self_attn.o_proj"] is not orders["self_attn.q_proj"]


def test_a_shared_order_comes_from_the_scores_of_all_its_layers(tiny_llama):
    dense = {n: m.weight.detach().clone() for n, m in prunable_layers(tiny_llama).items()}
    started = time.perf_counter()
    pruned = prune_model(
        tiny_llama, None, Recipe(Magnitude(), PATTERN, GlobalShuffle()), progress=0
    )
    elapsed = time.perf_counter() - started
    names = [f"model.layers.1.self_attn.{role}_proj" for role in "qkv"]
    mean = np.concatenate([dense[n].abs().double().numpy() for n in names]).mean(axis=0)
    best_first = np.argsort(-mean)
    dealt = [best_first[slot * 6 + group] for group in range(6) for slot in range(4)]
    for layer in pruned:
        if layer.name in names:
            assert layer.order.index.tolist() == dealt
        size = dense[layer.name].abs().double()
        kept = float(size[layer.mask].sum() / size.sum())
        assert layer.retained_share == pytest.approx(kept, rel=1e-6)
    assert sum(layer.seconds for layer in pruned) <= elapsed


def test_dense_calibration_reads_the_unpruned_model(tokens):
    def masks(calibration, seed=0):
        model = random_model("llama", seed)
        recipe = Recipe(Wanda(), Pattern(1, 4), calibration=calibration)
        return {p.name: p.mask for p in prune_model(model, tokens, recipe, progress=False)}

    sequential, dense = masks("sequential"), masks("dense")
    first = [n for n in dense if n.startswith("model.layers.0.")]
    assert all(torch.equal(sequential[n], dense[n]) for n in first)
    assert any(not torch.equal(sequential[n], dense[n]) for n in dense)


def test_magnitude_needs_no_tokens(tiny_llama):
    assert prune_model(tiny_llama, None, Recipe(Magnitude(), PATTERN), progress=False)
    with pytest.raises(InputError, match="needs calibration tokens"):
        prune_model(tiny_llama, None, Recipe(Wanda(), PATTERN), progress=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", [Magnitude(), Wanda()])
def test_broken_weights_name_the_layer(tiny_llama, tokens, value, method):
    tiny_llama.model.layers[1].self_attn.o_proj.weight.data[2, 3] = value
    with pytest.raises(EsparseError, match=r"layers\.1\.(self_attn\.o_proj|mlp\.gate_proj): 1?"):
        prune_model(tiny_llama, tokens, Recipe(method, PATTERN), progress=False)


def test_unknown_calibration_suggests():
    with pytest.raises(InputError, match="Did you mean 'sequential'"):
        Recipe(Wanda(), PATTERN, calibration="sequental")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_models_stay_half(tokens, dtype):
    model = random_model("llama").to(dtype)
    prune_model(model, tokens, Recipe(METHODS["esparse"](), PATTERN), progress=False)
    for layer in prunable_layers(model).values():
        assert layer.weight.dtype == dtype
        require_nm(layer.weight.data, PATTERN)


@pytest.mark.gpu
def test_gpu_and_cpu_prune_alike(tokens):
    masks = []
    for device in ("cpu", "cuda"):
        model = random_model("llama").to(device)
        recipe = Recipe(METHODS["esparse"](), PATTERN)
        masks.append([p.mask for p in prune_model(model, tokens, recipe, progress=False)])
    same = sum(int((a == b).sum()) for a, b in zip(*masks, strict=True))
    assert same / sum(m.numel() for m in masks[0]) > 0.999


def test_a_search_needs_groups_of_its_own_size():
    for pattern, menu in ((PATTERN, "4:8, dense"), (PATTERN, "unstructured")):
        with pytest.raises(InputError, match=rf"2:4 with the menu '{menu}' has none such"):
            Recipe(Wanda(), pattern, GlobalShuffle(), allocation=Uniform(0.6, menu))
    with pytest.raises(InputError, match="50% has none such"):
        Recipe(Wanda(), Unstructured(0.5), GlobalShuffle())


@pytest.mark.filterwarnings("always")
def test_unseen_experts_are_told_of_once_a_block(recwarn):
    model = random_model("mixtral")
    prune_model(model, torch.tensor([[7]]), Recipe(Wanda(), PATTERN), progress=False)
    told = [str(w.message) for w in recwarn if "no calibration token" in str(w.message)]
    assert len(told) == model.config.num_hidden_layers
    assert "and 1 more: no calibration" in told[0]  # 2 experts of 2 layers, three of them named


def test_layers_left_dense_have_no_say_in_the_order(tiny_llama, tokens):
    names = [f"model.layers.0.self_attn.{letter}_proj" for letter in "qkv"]

    @dataclass(frozen=True)
    class DenseQ(Uniform):
        def assign(self, model, tokens):
            thin = dict.fromkeys(prunable_layers(model), PATTERN)
            return thin | {names[0]: None}

    k, v = (matrix(tiny_llama, name).abs().clone() for name in names[1:])
    dense = matrix(tiny_llama, names[0]).clone()
    recipe = Recipe(Magnitude(), PATTERN, GlobalShuffle(), allocation=DenseQ(0.5, "2:4, dense"))
    pruned = {p.name: p for p in prune_model(tiny_llama, None, recipe, progress=False)}
    expected = search_order(torch.cat([k, v]), PATTERN, GlobalShuffle())
    assert all(torch.equal(pruned[name].order.index, expected.index) for name in names)
    assert torch.equal(matrix(tiny_llama, names[0]), dense)


def test_dense_calibration_holds_one_batch_of_outputs(tokens, monkeypatch):
    monkeypatch.setitem(capture.TOKENS_AT_ONCE, "cpu", tokens.shape[1])
    model, outs, most = random_model("llama"), [], 0

    def watch(module, _args, out):
        nonlocal most
        if "forward" in vars(module):  # the walk learns how blocks are called: nothing runs
            return
        outs.append(weakref.ref(out))
        most = max(most, sum(ref() is not None for ref in outs))

    for block in model.model.layers:
        block.register_forward_hook(watch)
    prune_model(model, tokens, Recipe(Wanda(), PATTERN, calibration="dense"), progress=False)
    assert len(outs) >= 2 * len(tokens)
    assert most <= 2


def test_matched_is_layerwise_where_nothing_is_solved(tokens):
    def weights(calibration):
        model = random_model("llama")
        prune_model(model, tokens, Recipe(Wanda(), PATTERN, calibration=calibration))
        return [layer.weight for layer in prunable_layers(model).values()]

    pairs = zip(weights("matched"), weights("layerwise"), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
