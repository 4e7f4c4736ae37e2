"""Block-by-block capture against the model's own forward."""

import copy

import pytest
import torch
from tiny_models import TINY_CONFIGS, random_model
from transformers import AutoModelForCausalLM
from whole_forward import EXPERT, inputs_of_whole_forward

from esparse_lab import EsparseError, InputError, LayerStats, collect_layer_stats, layer_inputs
from esparse_lab.architectures import transformer_blocks
from esparse_lab.capture import BlockWalk, check_tokens, on_input


@pytest.mark.parametrize("model_type", TINY_CONFIGS)
def test_walk_reads_what_a_whole_forward_reads(model_type, tokens):
    model = random_model(model_type)
    stats = collect_layer_stats(model, tokens, progress=False)
    expected = inputs_of_whole_forward(model, tokens)
    assert set(stats) == set(expected)
    for name, activations in expected.items():
        read = torch.cat(activations)
        assert stats[name].n_tokens == len(read) > 0
        n_sequences = len(read) / tokens.shape[1]  # not a whole number for experts
        norm = (read.square().sum(dim=0) / n_sequences).sqrt()
        if not EXPERT.fullmatch(name):
            read = read.view(*tokens.shape, -1)
        whole = LayerStats.of(read)
        torch.testing.assert_close(stats[name].norm, norm)
        torch.testing.assert_close(stats[name].low, whole.low)
        torch.testing.assert_close(stats[name].entropy, whole.entropy, atol=0.05, rtol=0)
        torch.testing.assert_close(layer_inputs(model, tokens, name), read)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 1, "alibi": False}),  # 40B
        ("falcon", {"parallel_attn": False, "multi_query": False}),  # RW
        ("falcon", {"alibi": False}),  # 7B
        ("opt", {"do_layer_norm_before": False}),  # 350m
        ("bloom", {"apply_residual_connection_post_layernorm": True}),
        ("bloom", {"n_layer": 5}),  # more blocks than hidden states have axes
        ("gpt_neox", {"use_parallel_residual": False}),
        ("qwen2_moe", {"norm_topk_prob": True}),
        ("mixtral", {"_attn_implementation": "eager"}),
    ],
)
def test_every_make_of_a_family_is_read_right(model_type, changes, tokens):
    model = random_model(model_type, **changes)
    for name, activations in inputs_of_whole_forward(model, tokens).items():
        read = layer_inputs(model, tokens, name).flatten(0, -2)
        torch.testing.assert_close(read, torch.cat(activations).view_as(read))


def test_batches_of_different_size_agree(tiny_llama, tokens, monkeypatch):
    whole = collect_layer_stats(tiny_llama, tokens, progress=False)
    monkeypatch.setattr("esparse_lab.capture.TOKENS_AT_ONCE", {"cpu": 24})  # 2 + 2 + 1 sequences
    for name, stats in collect_layer_stats(tiny_llama, tokens, progress=False).items():
        torch.testing.assert_close(stats.norm, whole[name].norm)
        assert stats.n_sequences == 5


def test_every_block_and_batch_gets_its_own_arguments(tokens, monkeypatch):
    # Only the later blocks slide a window; eager masks have the batch's size.
    model = random_model("qwen2")
    config = copy.deepcopy(model.config)
    config.sliding_window, config.use_sliding_window = 3, True
    config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    monkeypatch.setattr("esparse_lab.capture.TOKENS_AT_ONCE", {"cpu": 24})  # 2 + 2 + 1 sequences
    for name, activations in inputs_of_whole_forward(model, tokens).items():
        read = torch.stack(activations)
        torch.testing.assert_close(layer_inputs(model, tokens, name), read)


def test_layers_that_read_one_activation_share_statistics(tiny_llama, tokens):
    stats = collect_layer_stats(tiny_llama, tokens, progress=False)
    prefix = "model.layers.1.self_attn"
    assert stats[f"{prefix}.q_proj"] is stats[f"{prefix}.v_proj"]
    assert stats[f"{prefix}.q_proj"] is not stats[f"{prefix}.o_proj"]


def test_each_block_runs_once(tiny_llama, tokens):
    runs = []
    block = tiny_llama.model.layers[1]
    handle = block.register_forward_hook(lambda *_: runs.append(1))
    try:
        collect_layer_stats(tiny_llama, tokens, progress=False)
    finally:
        handle.remove()
    # Once to learn the arguments (nothing is computed) and once for the five sequences together.
    assert len(runs) == 2


def hooks_and_overrides(model) -> int:
    return sum(
        len(m._forward_pre_hooks) + len(m._forward_hooks) + ("forward" in m.__dict__)
        for m in model.modules()
    )


def test_nothing_is_left_on_the_model(tiny_llama, tokens):
    logits = tiny_llama(tokens).logits
    collect_layer_stats(tiny_llama, tokens, progress=False)
    assert hooks_and_overrides(tiny_llama) == 0
    assert torch.equal(tiny_llama(tokens).logits, logits)


def test_nothing_is_left_on_the_model_after_an_error(tiny_llama, tokens):
    tiny_llama.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(EsparseError, match=r"layers\.1\.mlp\.down_proj: 1 of 40 input channels"):
        collect_layer_stats(tiny_llama, tokens, progress=False)
    assert hooks_and_overrides(tiny_llama) == 0


def test_a_forward_of_the_models_own_is_put_back_and_used(tiny_llama, tokens):
    block = tiny_llama.model.layers[1]
    inner, calls = block.forward, []

    def own_forward(*args, **keywords):
        calls.append(1)
        return inner(*args, **keywords)

    block.forward = own_forward
    collect_layer_stats(tiny_llama, tokens, progress=False)
    assert block.forward is own_forward
    assert calls == [1]


def test_hook_comes_off_when_its_body_raises(tiny_llama):
    group = transformer_blocks(tiny_llama)[0].groups[0]
    with pytest.raises(KeyboardInterrupt), on_input(group, 12, print):
        raise KeyboardInterrupt
    assert hooks_and_overrides(tiny_llama) == 0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), "int64 tokens of shape"),
        (torch.zeros(2, 3), "got torch.float32"),
        (torch.zeros(0, 3, dtype=torch.int64), r"shape \[0, 3\]"),
        (torch.full((1, 3), 256), "the model knows 0 to 255"),
    ],
)
def test_tokens_that_do_not_fit_say_why(tiny_llama, bad, message):
    with pytest.raises(InputError, match=message):
        BlockWalk.start(tiny_llama, bad)


def test_a_model_in_training_mode_is_refused(tiny_llama, tokens):
    with pytest.raises(InputError, match=r"call model\.eval\(\)"):
        BlockWalk.start(tiny_llama.train(), tokens)


def test_unknown_layer_suggests(tiny_llama, tokens):
    with pytest.raises(InputError, match=r"Did you mean 'model\.layers\.0\.mlp\.up_proj'"):
        layer_inputs(tiny_llama, tokens, "model.layers.0.mlp.upproj")


@pytest.mark.parametrize(
    ("model_type", "learned"), [("gpt2", True), ("opt", True), ("llama", False)]
)
def test_sequences_longer_than_learned_positions_are_refused(model_type, learned):
    model = random_model(model_type)  # 64 positions
    check_tokens(model, torch.zeros(1, 64, dtype=torch.int64))
    longer = torch.zeros(1, 65, dtype=torch.int64)
    if learned:
        with pytest.raises(InputError, match="65 tokens are too long: the model has learned 64"):
            check_tokens(model, longer)
    else:
        check_tokens(model, longer)


def test_some_layers_alone_are_those_of_a_whole_run(tiny_llama, tokens):
    whole = collect_layer_stats(tiny_llama, tokens, progress=False)
    some = ["model.layers.1.mlp.down_proj", "model.layers.1.self_attn.q_proj"]
    ran = []
    for index, layer in enumerate(tiny_llama.model.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
    found = collect_layer_stats(tiny_llama, tokens, layers=some, progress=False)
    assert set(found) == set(some)
    assert set(ran) == {0, 1} != set(range(len(tiny_llama.model.layers)))
    for name, stats in found.items():
        assert torch.equal(stats.norm, whole[name].norm)
        assert torch.equal(stats.entropy, whole[name].entropy)
    assert collect_layer_stats(tiny_llama, tokens, layers=[], progress=False) == {}
    with pytest.raises(InputError, match="Unknown layer 'down'"):
        collect_layer_stats(tiny_llama, tokens, layers=["down"], progress=False)
