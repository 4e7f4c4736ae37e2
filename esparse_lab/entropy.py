"""Information entropy of activation channels (E-Sparse, Eq. 1).

Activations are laid out [token, channel]. Entropies are in nats.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from esparse_lab.errors import InputError, unknown

BinRange = Literal["channel", "layer", "percentile"]

# Bin numbers of this many values are held at once (8 bytes each).
VALUES_AT_ONCE = 1 << 23


@dataclass(frozen=True)
class Histogram:
    """How a channel's values are sorted into bins before the entropy is taken.

    Attributes:
        bins: number of equal-width bins, K in the paper, which uses 100.
        bin_range: what the bins span. "channel" takes each channel's own smallest and largest
            value, so the entropy ignores scale; "layer" takes one range for all channels of the
            layer, so a quiet channel beside a loud one fills few bins; "percentile" takes each
            channel's 0.1 and 99.9 percent quantiles, with values beyond them counted in the end
            bins, so a few outliers do not empty the rest. The paper does not say which.
        skip_first: leave out position 0 of every sequence, where models place attention sinks.
    """

    bins: int = 100
    bin_range: BinRange = "channel"
    skip_first: bool = False

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise InputError(f"bins must be at least 2, got {self.bins}.")
        if self.bin_range not in get_args(BinRange):
            raise unknown("bin range", self.bin_range, get_args(BinRange))


@dataclass(frozen=True)
class BinnedEntropy:
    """Entropy of each channel, and the range that its bins spanned (each of shape [channel])."""

    entropy: Tensor
    low: Tensor
    high: Tensor


def channel_entropy(
    activations: Tensor, *, bins: int = 100, bin_range: BinRange = "channel"
) -> Tensor:
    """Shannon entropy of the histogram of each channel's values.

    Args:
        activations: what one linear layer reads, [token, channel]; any float dtype, finite.
        bins: number of equal-width bins, at least 2.
        bin_range: what the bins span; see `Histogram`.

    Returns:
        Entropy in nats, float32 [channel], from 0 (a constant channel) to log(bins).

    Raises:
        InputError: if `bins` is under 2, there is no token, or a value is not finite.

    Source: Li et al. 2023, arXiv 2310.15929, section 3.2, Eq. 1.

    >>> channel_entropy(torch.tensor([[0.0, 5.0], [1.0, 5.0]]), bins=2)
    tensor([0.6931, 0.0000])
    """
    return binned_entropy([activations], Histogram(bins, bin_range)).entropy


def binned_entropy(chunks: Sequence[Tensor], histogram: Histogram) -> BinnedEntropy:
    """Entropy of each channel over tokens that arrive in several chunks, each [token, channel].

    The result is exact: the range is taken over all chunks before any value is counted.
    """
    if sum(len(chunk) for chunk in chunks) == 0:
        raise InputError("No tokens: the entropy of a channel needs at least one activation.")
    counter = EntropyCounter(histogram)
    if histogram.bin_range == "percentile":
        # Quantiles are no sums over chunks: they need every value at once.
        counter.low, counter.high = _percentiles(torch.cat([chunk.float() for chunk in chunks]))
    else:
        for chunk in chunks:
            counter.widen(chunk)
    for chunk in chunks:
        counter.count(chunk)
    return counter.finish()


class EntropyCounter:
    """The entropy of values that pass by twice: `widen` with all of them, then `count`, `finish`.

    Attributes:
        low: lower end of each channel's range so far, float32 [channel].
        high: upper end, likewise.
    """

    def __init__(self, histogram: Histogram):
        self.histogram = histogram
        self.low: Tensor | None = None
        self.high: Tensor | None = None
        self._per_bin: Tensor | None = None
        self._counts: Tensor | None = None
        self._n_tokens = 0

    def widen(self, values: Tensor) -> None:
        """Let the range include `values` [token, channel]."""
        if not len(values):
            return
        # Both hand NaN on, so a broken channel is seen in its range. On a CPU torch.aminmax over
        # dim 0 takes 70 times as long.
        low, high = values.amin(dim=0).float(), values.amax(dim=0).float()
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    def count(self, values: Tensor) -> None:
        """Sort `values` [token, channel] into bins."""
        if not len(values):
            return
        bins = self.histogram.bins
        if self._counts is None:
            self._settle_range()
            self._counts = torch.zeros(
                len(self.low) * bins, dtype=torch.int64, device=values.device
            )
        self._n_tokens += len(values)
        self._counts += _counts(values, self.low, self._per_bin, bins)

    def _settle_range(self) -> None:
        if self.histogram.bin_range == "layer":
            self.low = self.low.amin().expand_as(self.low)
            self.high = self.high.amax().expand_as(self.high)
        bad = ~(self.low.isfinite() & self.high.isfinite())
        if bad.any():
            raise InputError(
                f"{int(bad.sum())} of {len(bad)} channels hold NaN or infinite values."
            )
        # A constant channel has no width, and one so narrow that bins / width overflows is as good
        # as constant: with a width of 1 all values fall into bin 0.
        width = self.high - self.low
        self._per_bin = self.histogram.bins / torch.where(width > 1e-30, width, 1.0)

    def finish(self) -> BinnedEntropy:
        """Entropy of everything counted."""
        probability = self._counts.view(len(self.low), -1).double() / self._n_tokens
        entropy = torch.special.entr(probability).sum(dim=1).float()
        return BinnedEntropy(entropy, self.low, self.high)


def _percentiles(values: Tensor) -> tuple[Tensor, Tensor]:
    """The 0.1 and 99.9 percent quantiles of each column, lower value of the two neighbours."""
    last = len(values) - 1
    n_beyond = math.floor(0.001 * last) + 1  # on either side, the quantile itself among them
    ordered = values.T.contiguous()  # on a CPU ten times as fast as kthvalue over dim 0
    low, high = (ordered.topk(n_beyond, largest=top).values[:, -1] for top in (False, True))
    finite = values.isfinite().all(dim=0)
    return low.where(finite, math.nan), high.where(finite, math.nan)


def _counts(chunk: Tensor, low: Tensor, per_bin: Tensor, bins: int) -> Tensor:
    """How many values of each channel fall into each bin, int64 [channel x bin]."""
    n_channels = chunk.shape[1]
    # Numbering the (channel, bin) pairs lets one bincount serve every channel; a one-hot tensor
    # would take token x channel x bins.
    first_bin = bins * torch.arange(n_channels, device=chunk.device)
    counts = torch.zeros(n_channels * bins, dtype=torch.int64, device=chunk.device)
    for part in chunk.split(max(1, VALUES_AT_ONCE // n_channels)):
        # In place: on a CPU a fresh tensor costs more than the arithmetic.
        bin_index = (part.float() - low).mul_(per_bin).clamp_(0, bins - 1).long().add_(first_bin)
        counts += torch.bincount(bin_index.flatten(), minlength=n_channels * bins)
    return counts
