"""What a pruning method may know about the activation that a linear layer reads."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from esparse_lab.entropy import BinnedEntropy, EntropyCounter, Histogram, binned_entropy
from esparse_lab.errors import EsparseError

# Bytes of one layer's input that may be held until its range is known. What is larger is read in a
# second pass over the block, which costs one more forward and no memory.
HELD_AT_MOST = 1 << 30


@dataclass(frozen=True)
class Needs:
    """What a method wants measured beside the norms.

    Attributes:
        histogram: how entropies are binned; None for no entropies.
        gram: the channels' products with each other; [in, in] numbers a layer.
        output_norm: norms of what the outputs of an MLP's first layers become (DaSS).
    """

    histogram: Histogram | None = None
    gram: bool = False
    output_norm: bool = False


@dataclass(frozen=True)
class LayerStats:
    """Statistics of what one linear layer reads, on its device; float32.

    Attributes:
        norm: the root of the mean over sequences of the channel's squared L2 norm (Wanda's
            convention; sqrt(sequence length) times the root mean square), at least 0, [in].
        entropy: entropy of the channel's values in nats, [in], or None where it was not asked for.
        low: lower end of the range that the entropy's bins span, [in], or None.
        high: upper end of that range, [in], or None.
        n_tokens: tokens seen; 0 for an expert that no token was sent to.
        n_sequences: sequences seen; for an expert, its tokens over the length of a sequence.
        gram: mean over sequences of X^T X, [in, in], or None; `norm` is the root of its diagonal.
            SparseGPT's Hessian is twice this.
        output_norm: for a layer that an MLP's activation function follows, the norm of each
            product that its outputs make, [out], in the convention of `norm`; else None.
        cross: mean over sequences of Z^T X, Z what the layer reads in the dense model, [in, in]; or
            None where nothing is matched to the dense model.
        drift: mean over sequences of D^T X, D what must be added to the output beside W Z to bring
            the residual stream back to the dense model's, [out, in]; or None.
    """

    norm: Tensor
    entropy: Tensor | None
    low: Tensor | None
    high: Tensor | None
    n_tokens: int
    n_sequences: float
    gram: Tensor | None = None
    output_norm: Tensor | None = None
    cross: Tensor | None = None
    drift: Tensor | None = None

    @classmethod
    def of(
        cls, activations: Tensor, histogram: Histogram | None = Histogram(), *, gram: bool = True
    ) -> "LayerStats":
        """Statistics of activations that fit in memory, [sequence, position, in] or [token, in]."""
        if activations.dim() == 2:
            activations = activations[None]
        stats = StatsAccumulator("activations", Needs(histogram, gram), activations.shape[1])
        stats.add(activations)
        if stats.wants_again:
            stats.add_again(activations)
        return stats.finish(activations.shape[-1])

    def ordered(self, index: Tensor) -> "LayerStats":
        """The statistics of the channels in the order `index`, int64 [in]."""
        channels = {
            name: None if value is None else value[index]
            for name in ("norm", "entropy", "low", "high")
            for value in [getattr(self, name)]
        }
        for name in ("gram", "cross"):
            value = getattr(self, name)
            channels[name] = None if value is None else value[index][:, index]
        drift = None if self.drift is None else self.drift[:, index]
        return replace(self, **channels, drift=drift)


class StatsAccumulator:
    """Gathers `LayerStats` from batches as a model runs.

    Norms and the Gram matrix are sums. The entropy needs each channel's range before the first
    value can be counted: batches are held until `finish` while they are small, else `wants_again`
    asks for every batch a second time.
    """

    def __init__(self, layer: str, needs: Needs, length: int):
        """`layer` names it in errors; `length` is the positions of a calibration sequence."""
        self.layer = layer
        self.needs = needs
        self._length = length
        self._squares: Tensor | None = None
        self._gram: Tensor | None = None
        self._counter = None if needs.histogram is None else EntropyCounter(needs.histogram)
        self._held: list[Tensor] | None = [] if self._counter else None
        self._held_bytes = 0
        self._n_tokens = 0

    @property
    def wants_again(self) -> bool:
        """Whether every batch must be handed to `add_again` before `finish`."""
        return self._counter is not None and self._held is None and self._n_tokens > 0

    def add(self, batch: Tensor) -> None:
        """Take in what the layer read, [sequence, position, in], or [token, in] for an expert."""
        batch = batch.detach()
        if not batch.numel():
            return
        # Sequence by sequence, as Wanda does: the sums do not depend on how sequences are batched.
        squares = batch.float().square().sum(dim=-2).double()
        squares = squares if squares.dim() == 1 else squares.sum(dim=0)
        self._squares = squares if self._squares is None else self._squares.add_(squares)
        self._n_tokens += batch.shape[:-1].numel()
        if self.needs.gram:
            product = gram(batch)
            self._gram = product if self._gram is None else self._gram.add_(product)
        if self._counter is not None:
            self._add_range(self._seen(batch))

    def _seen(self, batch: Tensor) -> Tensor:
        """What of a batch the entropy reads, [token, in]."""
        if self.needs.histogram.skip_first and batch.dim() == 3:
            batch = batch[:, 1:]
        return batch.flatten(0, -2)

    def _add_range(self, values: Tensor) -> None:
        quantiles = self.needs.histogram.bin_range == "percentile"  # need every value at once
        if not quantiles:
            self._counter.widen(values)
        if self._held is not None:
            self._held.append(values)
            self._held_bytes += values.nbytes
            too_much = self._held_bytes > HELD_AT_MOST
            if too_much and not quantiles:
                self._held = None

    def add_again(self, batch: Tensor) -> None:
        """Take in, for the second time, what `add` was given."""
        if batch.numel():
            self._counter.count(self._seen(batch))

    def finish(self, n_channels: int) -> LayerStats:
        """The statistics of everything added, for a layer that reads `n_channels`.

        Raises:
            EsparseError: if a channel held NaN or infinity; names the layer.
        """
        if not self._n_tokens:
            nothing = torch.zeros(n_channels)
            return LayerStats(nothing, None, None, None, 0, 0.0)
        bad = (~self._squares.isfinite()).nonzero().flatten().tolist()
        if bad:
            raise EsparseError(
                f"{self.layer}: {len(bad)} of {len(self._squares)} input channels hold NaN or "
                f"infinity (first: channel {bad[0]}). Expected finite activations: check the "
                "model's weights, or load it as float32 or bfloat16 if it overflows float16."
            )
        n_sequences = self._n_tokens / self._length
        norm = (self._squares / n_sequences).sqrt().float()
        binned = self._binned()
        return LayerStats(
            norm,
            binned.entropy,
            binned.low,
            binned.high,
            self._n_tokens,
            n_sequences,
            None if self._gram is None else self._gram.div_(n_sequences),
        )

    def _binned(self) -> BinnedEntropy:
        if self._counter is None:
            return BinnedEntropy(None, None, None)
        if self._held is None:
            return self._counter.finish()
        held, self._held = self._held, []
        if self.needs.histogram.bin_range == "percentile":
            return binned_entropy(held, self.needs.histogram)
        for values in held:
            self._counter.count(values)
        return self._counter.finish()


def gram(x: Tensor, strips: int = 4) -> Tensor:
    """X^T X of [.., token, in], float32: what lies below the diagonal is copied, not computed."""
    n = x.shape[-1]
    product = torch.empty(n, n, device=x.device)
    for strip in (slice(n * i // strips, n * (i + 1) // strips) for i in range(strips)):
        product[strip, strip.start :] = inner_products(x[..., strip], x[..., strip.start :])
        product[strip.stop :, strip] = product[strip, strip.stop :].T
    return product


def inner_products(a: Tensor, b: Tensor) -> Tensor:
    """A^T B of [.., token, a] and [.., token, b], summed in float32 or better, [a, b]."""
    a, b = a.flatten(0, -2), b.flatten(0, -2)
    if a.is_cuda and a.dtype == b.dtype and a.dtype in (torch.float16, torch.bfloat16):
        # Tensor cores multiply halves exactly and sum in float32: nothing is lost by not widening.
        return torch.mm(a.T, b, out_dtype=torch.float32)
    return a.float().T @ b.float()
