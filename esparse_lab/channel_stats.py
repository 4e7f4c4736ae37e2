"""What a pruning method may know about the activation that a linear layer reads."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from esparse_lab.entropy import Histogram, binned_entropy
from esparse_lab.errors import EsparseError


@dataclass(frozen=True)
class LayerStats:
    """Statistics of the input channels of one linear layer, each of shape [in], on its device.

    Attributes:
        norm: the root of the mean over sequences of the channel's squared L2 norm (Wanda's
            convention; sqrt(sequence length) times the root mean square), float32, at least 0.
        entropy: entropy of the channel's values in nats, or None where it was not asked for.
        low: lower end of the range that the entropy's bins span, or None.
        high: upper end of that range, or None.
        n_tokens: tokens seen.
        n_sequences: sequences seen.
    """

    norm: Tensor
    entropy: Tensor | None
    low: Tensor | None
    high: Tensor | None
    n_tokens: int
    n_sequences: int

    @classmethod
    def of(cls, activations: Tensor, histogram: Histogram | None = Histogram()) -> "LayerStats":
        """Statistics of activations that fit in memory, [sequence, position, in] or [token, in]."""
        stats = StatsAccumulator("activations", histogram)
        stats.add(activations if activations.dim() == 3 else activations[None])
        return stats.finish()


class StatsAccumulator:
    """Gathers `LayerStats` from batches as a model runs.

    The norm needs one number a channel. The entropy needs each channel's range before the first
    value can be counted, so the batches are held until `finish`: never more than the activations
    of one block, because `capture` finishes a block before it runs the next.
    """

    def __init__(self, layer: str, histogram: Histogram | None):
        self.layer = layer
        self.histogram = histogram
        self._squares: Tensor | float = 0.0
        self._held: list[Tensor] = []
        self._n_tokens = 0
        self._n_sequences = 0

    def add(self, batch: Tensor) -> None:
        """Take in what the layer read, [sequence, position, in]."""
        batch = batch.detach()
        # Sequence by sequence, as Wanda does: the sums do not depend on how sequences are batched.
        self._squares = self._squares + batch.float().square().sum(dim=1).double().sum(dim=0)
        self._n_sequences += batch.shape[0]
        self._n_tokens += batch.shape[0] * batch.shape[1]
        if self.histogram is not None:
            self._held.append(batch[:, 1:] if self.histogram.skip_first else batch)

    def finish(self) -> LayerStats:
        """The statistics of everything added.

        Raises:
            EsparseError: if a channel held NaN or infinity; names the layer.
        """
        if not self._n_tokens:
            raise EsparseError(f"{self.layer} saw no token.")
        bad = (~self._squares.isfinite()).nonzero().flatten().tolist()
        if bad:
            raise EsparseError(
                f"{self.layer}: {len(bad)} of {len(self._squares)} input channels hold NaN or "
                f"infinity (first: channel {bad[0]}). Expected finite activations: check the "
                "model's weights, or load it as float32 or bfloat16 if it overflows float16."
            )
        norm = (self._squares / self._n_sequences).sqrt().float()
        if self.histogram is None:
            return LayerStats(norm, None, None, None, self._n_tokens, self._n_sequences)
        binned = binned_entropy([x.flatten(0, 1) for x in self._held], self.histogram)
        self._held.clear()
        return LayerStats(
            norm, binned.entropy, binned.low, binned.high, self._n_tokens, self._n_sequences
        )


def merge_names(stats: Iterable[tuple[Iterable[str], LayerStats]]) -> dict[str, LayerStats]:
    """One entry a layer, from one entry a group of layers that read the same activation."""
    return {name: group_stats for names, group_stats in stats for name in names}
