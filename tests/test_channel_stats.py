"""Layer statistics against numpy, and what breaks them."""

import math

import numpy as np
import pytest
import torch

from esparse_lab import EsparseError, Histogram, LayerStats, Needs, channel_stats
from esparse_lab.channel_stats import StatsAccumulator


@pytest.fixture
def activations() -> torch.Tensor:
    """[sequence, position, in]"""
    return torch.randn(3, 16, 4, generator=torch.Generator().manual_seed(0))


def test_norm_follows_wanda(activations):
    x = activations.double().numpy()
    expected = np.sqrt(np.mean([(sequence**2).sum(axis=0) for sequence in x], axis=0))
    np.testing.assert_allclose(LayerStats.of(activations).norm.numpy(), expected, rtol=1e-6)


def test_batches_add_up(activations):
    batches = StatsAccumulator("layer", Needs(Histogram()), 16)
    batches.add(activations[:2])
    batches.add(activations[2:])
    stats, whole = batches.finish(4), LayerStats.of(activations)
    assert torch.equal(stats.norm, whole.norm)
    assert torch.equal(stats.entropy, whole.entropy)
    assert (stats.n_sequences, stats.n_tokens) == (3, 48)


def test_skipping_the_first_position_changes_the_entropy_alone(activations):
    activations[:, 0] = 100.0  # an attention sink
    skipped = LayerStats.of(activations, Histogram(skip_first=True))
    assert torch.equal(skipped.entropy, LayerStats.of(activations[:, 1:]).entropy)
    assert torch.equal(skipped.norm, LayerStats.of(activations).norm)
    assert torch.equal(skipped.high, activations[:, 1:].amax((0, 1)))


def test_norm_of_half_precision_does_not_overflow():
    loud = torch.full((1, 64, 2), 60000.0, dtype=torch.float16)
    norm = LayerStats.of(loud, None).norm
    # The squares are too large for float16 alone: 60000 * sqrt(64).
    assert norm.tolist() == pytest.approx([60000.0 * 8] * 2, rel=1e-3)


def test_a_broken_channel_names_the_layer(activations):
    activations[1, 2, 3] = math.nan
    broken = StatsAccumulator("model.layers.7.mlp.down_proj", Needs(), 16)
    broken.add(activations)
    with pytest.raises(EsparseError, match=r"layers\.7\.mlp\.down_proj: 1 of 4 .*first: channel 3"):
        broken.finish(4)


def test_an_expert_without_tokens_is_all_zero():
    stats = StatsAccumulator("expert", Needs(Histogram(), gram=True), 16).finish(4)
    assert (stats.n_tokens, stats.norm.tolist()) == (0, [0.0] * 4)


def test_gram_is_the_mean_over_sequences(activations):
    x = activations.double().numpy()
    expected = np.mean([sequence.T @ sequence for sequence in x], axis=0)
    stats = LayerStats.of(activations, None)
    np.testing.assert_allclose(stats.gram.numpy(), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(stats.gram.diagonal().sqrt(), stats.norm, rtol=1e-6)


def test_an_expert_counts_its_tokens_as_parts_of_sequences(activations):
    expert = StatsAccumulator("expert", Needs(), 16)
    expert.add(activations[0, :8])  # half a sequence
    stats = expert.finish(4)
    assert (stats.n_tokens, stats.n_sequences) == (8, 0.5)
    whole = LayerStats.of(torch.cat([activations[:1, :8]] * 2, dim=1), None)
    torch.testing.assert_close(stats.norm, whole.norm)


@pytest.mark.parametrize("bin_range", ["channel", "layer", "percentile"])
def test_what_is_too_large_to_hold_is_read_twice(activations, bin_range, monkeypatch):
    monkeypatch.setattr(channel_stats, "HELD_AT_MOST", 600)
    histogram = Histogram(bin_range=bin_range, skip_first=True)
    stats = StatsAccumulator("layer", Needs(histogram), 16)
    for sequence in activations:
        stats.add(sequence[None])
    assert stats.wants_again == (bin_range != "percentile")
    if stats.wants_again:
        for sequence in activations:
            stats.add_again(sequence[None])
    twice = stats.finish(4)
    monkeypatch.undo()
    once = LayerStats.of(activations, histogram)
    for name in ("entropy", "low", "high", "norm"):
        assert torch.equal(getattr(twice, name), getattr(once, name))


def test_reordered_statistics_are_those_of_reordered_channels(activations):
    order = torch.tensor([2, 0, 3, 1])
    there = LayerStats.of(activations[..., order])
    here = LayerStats.of(activations).ordered(order)
    for name in ("norm", "entropy", "low", "high"):
        assert torch.equal(getattr(there, name), getattr(here, name))
    torch.testing.assert_close(there.gram, here.gram)
