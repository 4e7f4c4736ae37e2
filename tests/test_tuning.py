"""Tuning by its laws: masks stay, the block comes nearer to the dense one, nothing else moves."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from tiny_models import TINY_CONFIGS, random_model

from esparse_lab import InputError, Magnitude, Pattern, Recipe, Wanda, prune_model
from esparse_lab.architectures import transformer_blocks
from esparse_lab.capture import BlockWalk
from esparse_lab.errors import EsparseError
from esparse_lab.recipes import recipe_label, recipe_of
from esparse_lab.tuning import BlockTuning

TWO_FOUR = Pattern(2, 4)
PLAIN = Recipe(Wanda(), TWO_FOUR)
TUNED = replace(PLAIN, tuning=BlockTuning(epochs=4))


@pytest.fixture
def tokens():
    return torch.randint(1, 256, (6, 24), generator=torch.Generator().manual_seed(5))


def pruned(model_type, tokens, recipe):
    model = random_model(model_type)
    return model, prune_model(model, tokens, recipe, progress=False)


def ends(model, tokens):
    """What each block returns."""
    seen = []

    def keep(_module, _args, out):
        seen.append(out[0] if isinstance(out, tuple) else out)

    with torch.no_grad(), ExitStack() as hooks:
        for block in transformer_blocks(model):
            hooks.enter_context(block.module.register_forward_hook(keep))
        model(tokens, use_cache=False)
    return seen


def end(model, tokens):
    """What the last block returns."""
    return ends(model, tokens)[-1]


def distance(one, other):
    """|one - other|^2 / |other|^2 of a token, averaged over tokens, in float64."""
    one, other = one.double(), other.double()
    return float(((one - other) ** 2).sum(-1).div((other**2).sum(-1)).mean())


@pytest.mark.parametrize("model_type", TINY_CONFIGS)
def test_masks_stay_and_the_last_block_comes_nearer(model_type, tokens):
    plain, layers = pruned(model_type, tokens, PLAIN)
    tuned, same_layers = pruned(model_type, tokens, TUNED)
    dense = random_model(model_type)
    outs = [end(m, tokens) for m in (plain, tuned, dense)]
    assert distance(outs[1], outs[2]) < 0.95 * distance(outs[0], outs[2])
    weights = dict(tuned.named_parameters())
    of_plain = dict(plain.named_parameters())
    prunable = {
        name: layer for block in transformer_blocks(tuned) for name, layer in block.layers.items()
    }
    for layer in same_layers:
        weight = prunable[layer.name].weight
        assert not weight[~layer.mask].any(), layer.name
    # Only matrices that were pruned have moved: no norm, bias, embedding or router.
    moved = {name for name, w in weights.items() if not torch.equal(w, of_plain[name])}
    touched = {layer.weight.untyped_storage().data_ptr() for layer in prunable.values()}
    assert moved
    assert all(weights[n].untyped_storage().data_ptr() in touched for n in moved)
    assert all(weights[n].dim() > 1 for n in moved)
    # The first block reads the same in both, and so its masks are the same.
    first = transformer_blocks(plain)[0].layers
    for one, other in zip(layers, same_layers, strict=True):
        if one.name in first:
            assert torch.equal(one.mask, other.mask)


def test_a_single_weight_goes_where_calculus_says(tokens):
    """The block adds w to one channel and nothing else, so the loss is a parabola in w."""
    model = random_model("opt")
    block = transformer_blocks(model)[0]
    mlp_in, mlp_out = block.module.fc1, block.module.fc2
    with torch.no_grad():
        for layer in block.layers.values():
            layer.weight.zero_()
        mlp_in.bias[7] = 1.0
        mlp_out.weight[3, 7] = 0.02
    walk = BlockWalk.start(model, tokens)
    hidden = torch.cat(walk.hidden).double()
    aim = hidden.clone()
    aim[..., 3] += 0.1 + 0.1 * torch.rand(aim.shape[:2], generator=torch.Generator().manual_seed(1))
    share = 1 / aim.square().sum(-1)
    foot = float((share * (aim - hidden)[..., 3]).sum() / share.sum())
    aims = list(aim.float().split([len(batch) for batch in walk.hidden]))
    before, after = BlockTuning(epochs=300, rate=0.1).tune(walk, 0, aims)
    assert mlp_out.weight.count_nonzero() == 1
    assert float(mlp_out.weight[3, 7].detach()) == pytest.approx(foot, rel=5e-3)
    moved, still = hidden.clone(), hidden.clone()
    moved[..., 3] += foot
    still[..., 3] += 0.02
    assert before == pytest.approx(distance(still, aim), rel=1e-4)
    assert after == pytest.approx(distance(moved, aim), rel=1e-4)


@pytest.mark.parametrize(("ahead", "n_counted"), [(0, 1), (1, 2), (9, 3)])
def test_looking_ahead_the_next_dense_blocks_count_as_much(tokens, ahead, n_counted):
    """The loss is the mean of the distances behind each block, all but the first being dense."""
    model = random_model("llama")
    first = transformer_blocks(model)[0]
    dense = ends(model, tokens)
    with torch.no_grad():
        for layer in first.layers.values():
            layer.weight.masked_fill_(~TWO_FOUR.mask(layer.weight.abs()), 0)
    others = {n: p.clone() for n, p in model.named_parameters() if not n.startswith(first.name)}

    def mean_distance():
        pairs = list(zip(ends(model, tokens), dense, strict=True))[:n_counted]
        return sum(distance(one, other) for one, other in pairs) / n_counted

    untuned = mean_distance()
    walk = BlockWalk.start(model, tokens)
    before, after = BlockTuning(epochs=20, ahead=ahead).tune(walk, 0, [dense[0]])
    assert before == pytest.approx(untuned, rel=1e-4)
    assert after == pytest.approx(mean_distance(), rel=1e-4)
    assert after < 0.9 * before
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], weight) for name, weight in others.items())


def test_looking_ahead_brings_what_follows_nearer(tokens):
    plain, near = (replace(PLAIN, tuning=BlockTuning(epochs=20, ahead=ahead)) for ahead in (0, 1))
    dense = random_model("llama")
    after = [
        distance(end(pruned("llama", tokens, recipe)[0], tokens), end(dense, tokens))
        for recipe in (plain, near)
    ]
    assert after[1] < after[0]


def test_what_does_not_help_is_not_taken(tokens):
    """At the dense block itself nothing can be won: not one bit changes."""
    model = random_model("llama")
    walk = BlockWalk.start(model, tokens)
    aims = [walk.run_batch(0, number) for number in range(len(walk.hidden))]
    weights = {name: p.clone() for name, p in model.named_parameters()}
    before, after = BlockTuning(epochs=2).tune(walk, 0, aims)
    assert before == after < 1e-10
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_a_method_without_statistics_is_tuned_too(tokens):
    dense, model = random_model("llama"), random_model("llama")
    prune_model(model, tokens, Recipe(Magnitude(), TWO_FOUR), progress=False)
    tuned, _ = pruned("llama", tokens, Recipe(Magnitude(), TWO_FOUR, tuning=BlockTuning(4)))
    outs = [end(m, tokens) for m in (model, tuned, dense)]
    assert distance(outs[1], outs[2]) < 0.95 * distance(outs[0], outs[2])


def test_it_is_the_same_every_time(tokens):
    one, other = (pruned("llama", tokens, TUNED)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_step_too_large_is_told(tokens):
    with pytest.raises(EsparseError, match="smaller rate than 1e\\+30"):
        pruned("llama", tokens, replace(PLAIN, tuning=BlockTuning(epochs=2, rate=1e30)))


def test_what_a_device_runs_at_once_decides_nothing(tokens, monkeypatch):
    one, _ = pruned("llama", tokens, TUNED)
    monkeypatch.setattr("esparse_lab.capture.TOKENS_AT_ONCE", {"cpu": 24})  # one sequence, not six
    other, _ = pruned("llama", tokens, TUNED)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(("at_once", "n_batches"), [(24, 6), (48, 3), (71, 3), (1, 6)])
def test_a_step_reads_as_many_tokens_as_it_is_told(tokens, at_once, n_batches):
    tuned = replace(PLAIN, tuning=BlockTuning(tokens=at_once))
    walk = BlockWalk.start(random_model("llama"), tokens, at_once=tuned.tokens_at_once)
    assert len(walk.hidden) == n_batches
    assert torch.equal(
        torch.cat(walk.hidden), BlockWalk.start(random_model("llama"), tokens).hidden[0]
    )
    assert PLAIN.tokens_at_once is None


@pytest.mark.parametrize(
    "settings", [{"epochs": 0}, {"rate": 0.0}, {"rate": float("nan")}, {"tokens": 0}, {"ahead": -1}]
)
def test_settings_that_do_nothing_are_refused(settings):
    with pytest.raises(InputError, match="expected epochs and tokens of at least 1, a rate"):
        BlockTuning(**settings)


def test_a_recipe_in_words_may_set_the_tuning():
    made = recipe_of(Wanda(), pattern="2:4", tune={"epochs": 3, "rate": 1, "tokens": 512})
    assert made.tuning == BlockTuning(epochs=3, rate=1, tokens=512)
    assert recipe_of(Wanda(), tune=True).tuning == BlockTuning()
    assert recipe_of(Wanda(), tune=False).tuning is None


@pytest.mark.parametrize(
    ("tune", "said"),
    [
        ({"epoch": 3}, "Unknown setting of the tuning 'epoch'.*epochs"),
        ({"epochs": 2.5}, "epochs got 2.5, expected a whole number"),
        ({"rate": "fast"}, "rate got 'fast', expected a number"),
        ({"tokens": True}, "tokens got True"),
        ({"epochs": 0}, "at least 1"),
    ],
)
def test_a_setting_that_is_none_is_told(tune, said):
    with pytest.raises(InputError, match=said):
        recipe_of(Wanda(), tune=tune)


def test_a_label_tells_tunings_apart():
    usual = recipe_label(replace(PLAIN, tuning=BlockTuning()))
    assert usual == "wanda 2:4, tuned"
    other = replace(PLAIN, tuning=BlockTuning(epochs=3, tokens=512))
    assert recipe_label(other) == "wanda 2:4, tuned epochs=3 tokens=512"


def test_the_dense_models_own_inputs_are_refused():
    with pytest.raises(InputError, match="Take another calibration"):
        replace(TUNED, calibration="dense")
