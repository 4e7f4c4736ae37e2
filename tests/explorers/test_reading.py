"""Going from layer to layer reads what a whole run reads, whatever is kept in between."""

import pytest
import torch

import esparse_lab as el
from esparse_lab.channel_stats import Needs
from esparse_lab.errors import InputError
from esparse_lab.explorers import Reading, reading

NEEDS = Needs(el.Histogram(20), gram=True)


def equal(one, other):
    pairs = [(getattr(one, n), getattr(other, n)) for n in ("norm", "entropy", "low", "gram")]
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in pairs)


@pytest.mark.parametrize("family", ["loaded", "mixture"])
@pytest.mark.parametrize("held", [0, 1 << 30])
def test_every_layer_in_any_order_has_the_statistics_of_one_run(
    request, tokens, monkeypatch, family, held
):
    loaded = request.getfixturevalue(family)
    walk = Reading(loaded, tokens)
    monkeypatch.setattr(reading, "HELD_AT_MOST", held)
    whole = el.collect_layer_stats(loaded.model, tokens, needs=NEEDS, progress=False)
    places = walk.places()
    assert places.keys() == whole.keys()
    for name in [*[*whole][::-2], *whole]:  # backwards, then forwards
        block, role = places[name]
        assert walk.layer(block, role) == name
        assert equal(walk.stats(block, role, NEEDS), whole[name])
        assert torch.equal(walk.inputs(block, role), el.layer_inputs(loaded.model, tokens, name))
    for name, stats in walk.block_stats(1, NEEDS).items():
        assert equal(stats, whole[name])


def test_statistics_of_a_whole_model_are_taken_once_and_kept(request, tokens, monkeypatch):
    for family in ("loaded", "mixture"):
        loaded = request.getfixturevalue(family)
        needs = Needs(el.Histogram(20))
        whole = el.collect_layer_stats(loaded.model, tokens, needs=needs, progress=False)
        n_blocks = len(Reading(loaded, tokens).blocks)
        read = []
        for expected in (n_blocks, n_blocks):  # the second Reading only looks on the disk
            walk = Reading(loaded, tokens)
            found = walk.all_stats(needs, (read.append(b) or b for b in range(n_blocks)))
            assert len(read) == expected
            assert found.keys() == {name for name, stats in whole.items() if stats.n_tokens}
            for name, stats in found.items():
                pairs = [
                    (getattr(stats, field), getattr(whole[name], field))
                    for field in ("norm", "entropy", "low", "high")
                ]
                assert all(torch.equal(one, other) for one, other in pairs)
                numbers = (stats.n_tokens, stats.n_sequences)
                assert numbers == (whole[name].n_tokens, whole[name].n_sequences)
    # Other weights, other statistics.
    el.prune_model(loaded.model, None, el.Recipe(el.Magnitude(), el.Pattern(2, 4)), progress=False)
    Reading(loaded, tokens).all_stats(needs, (read.append(b) or b for b in range(n_blocks)))
    assert len(read) == 2 * n_blocks


def test_roles_are_short_where_that_is_clear(loaded, mixture, tokens):
    assert "down_proj" in Reading(loaded, tokens).roles
    assert "mlp.experts.0.down_proj" in Reading(mixture, tokens).roles


def test_an_expert_without_tokens_has_no_statistics(mixture, few_tokens):
    walk = Reading(mixture, few_tokens)
    silent = [r for r in walk.roles if r.startswith("mlp.experts") and r.endswith("down_proj")]
    seen = walk.block_stats(0, Needs())
    unseen = [role for role in silent if not seen[walk.layer(0, role)].n_tokens]
    assert len(unseen) == 2  # of four experts a token is sent to two
    for role in unseen:
        with pytest.raises(InputError, match=f"{role} has no statistics"):
            walk.stats(0, role, Needs())


def test_too_many_tokens_are_refused_with_a_number_that_fits(loaded, tokens, monkeypatch):
    monkeypatch.setattr(reading, "HELD_AT_MOST", 3 * 12 * 40 * 4)  # bytes of three sequences
    with pytest.raises(InputError, match=r"5 × 12 tokens are too many.*such as tokens\[:3\]"):
        Reading(loaded, tokens)
    Reading(loaded, tokens[:3])


def test_a_model_that_changed_is_refused(loaded, tokens):
    walk = Reading(loaded, tokens)
    walk.inputs(1, "q_proj")
    el.prune_model(loaded.model, None, el.Recipe(el.Magnitude(), el.Pattern(2, 4)), progress=False)
    for look in (
        lambda: walk.inputs(1, "o_proj"),
        lambda: walk.inputs(2, "q_proj"),
        lambda: walk.weight(0, "q_proj"),
    ):
        with pytest.raises(InputError, match="have changed since this explorer was made"):
            look()


def test_an_explorer_needs_tokens(loaded):
    with pytest.raises(InputError, match="token_windows makes them"):
        Reading.of(loaded, None)
