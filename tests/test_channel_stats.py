"""Layer statistics against numpy, and what breaks them."""

import math

import numpy as np
import pytest
import torch

from esparse_lab import EsparseError, Histogram, LayerStats
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
    batches = StatsAccumulator("layer", Histogram())
    batches.add(activations[:2])
    batches.add(activations[2:])
    stats, whole = batches.finish(), LayerStats.of(activations)
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
    broken = StatsAccumulator("model.layers.7.mlp.down_proj", None)
    broken.add(activations)
    with pytest.raises(EsparseError, match=r"layers\.7\.mlp\.down_proj: 1 of 4 .*first: channel 3"):
        broken.finish()


def test_no_token_is_an_error():
    with pytest.raises(EsparseError, match="saw no token"):
        StatsAccumulator("layer", None).finish()
