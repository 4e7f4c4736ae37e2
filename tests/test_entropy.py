"""Channel entropy against hand-worked values, numpy's histogram and its laws."""

import math

import numpy as np
import pytest
import torch

from esparse_lab import Histogram, InputError, channel_entropy
from esparse_lab.entropy import binned_entropy


@pytest.fixture
def activations() -> torch.Tensor:
    """Gaussian channels whose scales span three decades, [token, channel]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(512, 6, generator=generator) * torch.logspace(-1, 2, 6)


def numpy_entropy(channel: np.ndarray, bins: int, span: tuple[float, float] | None) -> float:
    counts, _ = np.histogram(channel.astype(np.float64), bins=bins, range=span)
    p = counts[counts > 0] / len(channel)
    return float(-(p * np.log(p)).sum())


def test_two_equally_likely_values_carry_log_2():
    assert channel_entropy(torch.tensor([[0.0], [1.0]]), bins=2) == pytest.approx([math.log(2)])


def test_one_value_in_four_apart_carries_its_shannon_entropy():
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    column = torch.tensor([[0.0], [0.1], [0.2], [9.0]])
    assert channel_entropy(column, bins=10) == pytest.approx([expected])


def test_constant_channel_carries_nothing():
    assert channel_entropy(torch.full((8, 1), 3.0)).tolist() == [0.0]


def test_a_channel_too_narrow_for_float32_bins_carries_nothing():
    assert channel_entropy(torch.tensor([[0.0], [1e-40], [3e-39]])).tolist() == [0.0]


def test_uniform_values_reach_log_bins():
    column = torch.arange(1000.0)[:, None]
    assert channel_entropy(column, bins=100) == pytest.approx([math.log(100)], abs=1e-3)


@pytest.mark.parametrize("bins", [2, 10, 100])
def test_channel_range_matches_numpy(activations, bins):
    expected = [numpy_entropy(c, bins, None) for c in activations.T.numpy()]
    assert channel_entropy(activations, bins=bins).tolist() == pytest.approx(expected, abs=2e-3)


def test_layer_range_matches_numpy(activations):
    span = (float(activations.min()), float(activations.max()))
    expected = [numpy_entropy(c, 100, span) for c in activations.T.numpy()]
    found = channel_entropy(activations, bin_range="layer")
    assert found.tolist() == pytest.approx(expected, abs=2e-3)


def test_percentile_range_matches_numpy_on_clipped_values():
    column = torch.randn(4001, generator=torch.Generator().manual_seed(3))
    column[7] = 1e4
    low = float(np.quantile(column.numpy(), 0.001, method="lower"))
    high = float(np.quantile(column.numpy(), 0.999, method="higher"))
    expected = numpy_entropy(np.clip(column.numpy(), low, high), 100, (low, high))
    found = channel_entropy(column[:, None], bin_range="percentile")
    assert float(found) == pytest.approx(expected, abs=2e-3)
    assert float(channel_entropy(column[:, None])) < 0.1  # the outlier empties the other bins


def test_reordering_channels_reorders_entropy(activations):
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    assert torch.equal(channel_entropy(activations[:, order]), channel_entropy(activations)[order])


def test_order_and_chunking_of_tokens_do_not_matter(activations):
    whole = channel_entropy(activations)
    shuffled = activations[torch.randperm(512, generator=torch.Generator().manual_seed(4))]
    chunks = binned_entropy(shuffled.split([100, 1, 411]), Histogram())
    assert torch.equal(chunks.entropy, whole)
    assert torch.equal(chunks.low, activations.amin(0))
    assert torch.equal(chunks.high, activations.amax(0))


def test_splitting_the_count_over_memory_does_not_matter(activations, monkeypatch):
    whole = channel_entropy(activations)
    monkeypatch.setattr("esparse_lab.entropy.VALUES_AT_ONCE", 50)
    assert torch.equal(channel_entropy(activations), whole)


@pytest.mark.parametrize(("bin_range", "ignores_scale"), [("channel", True), ("layer", False)])
def test_only_channel_range_ignores_scale(activations, bin_range, ignores_scale):
    louder = activations * torch.tensor([8.0, 1, 1, 1, 1, 1])  # a power of 2 rounds nothing
    before = channel_entropy(activations, bin_range=bin_range)
    after = channel_entropy(louder, bin_range=bin_range)
    assert torch.equal(before, after) is ignores_scale


def test_half_precision_is_counted_in_float32(activations):
    half = activations.half()
    assert torch.equal(channel_entropy(half), channel_entropy(half.float()))


@pytest.mark.parametrize("bin_range", ["channel", "percentile"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_channel_is_counted(bin_range, value):
    with pytest.raises(InputError, match="1 of 2 channels hold NaN"):
        channel_entropy(torch.tensor([[1.0, value], [2.0, 0.0]]), bin_range=bin_range)


@pytest.mark.parametrize(
    ("activations", "settings", "message"),
    [
        (torch.ones(4, 2), {"bins": 1}, "bins must be at least 2, got 1"),
        (torch.ones(4, 2), {"bin_range": "chanel"}, "Did you mean 'channel'"),
        (torch.ones(0, 2), {}, "at least one activation"),
    ],
)
def test_bad_input_says_why(activations, settings, message):
    with pytest.raises(InputError, match=message):
        channel_entropy(activations, **settings)
