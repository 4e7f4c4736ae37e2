"""E-Sparse: magnitude times the entropy and the norm of the input channel.

Li et al. 2023, arXiv 2310.15929, Eq. 3.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from esparse_lab.channel_stats import LayerStats, Needs
from esparse_lab.entropy import Histogram
from esparse_lab.errors import InputError, unknown
from esparse_lab.methods.method import ByScore

NormScale = Literal["wanda", "rms", "l2", "relative"]
Form = Literal["sum", "product"]


@dataclass(frozen=True)
class ESparse(ByScore):
    """Score |w| * (entropy + alpha * norm), the last two per input channel.

    Attributes:
        alpha: weight of the norm against the entropy, at least 0. The paper states no value; 3 was
            best at 2:4 on validation text of the embedded corpus, with 128 sequences of 2048
            tokens (benchmarks/choose_alpha.py, reports/reference/choose_alpha.sweep.csv). The norm
            grows with the sequence length and the entropy does not, so an alpha means something
            only together with `norm_scale` and the length of the sequences.
        norm_scale: what the norm is counted in. "wanda": the root of the mean over sequences of the
            squared L2 norm; "rms": per token (Wanda's over sqrt(length)); "l2": over all
            tokens (Wanda's times sqrt(sequences)); "relative": norm and entropy each divided by
            their mean over the layer's channels.
        form: "sum" is Eq. 3; "product" is |w| * entropy * norm, which ignores alpha.
        histogram: how the entropy is binned.
    """

    alpha: float = 3.0
    norm_scale: NormScale = "wanda"
    form: Form = "sum"
    histogram: Histogram = Histogram()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise InputError(f"alpha must be a number of at least 0, got {self.alpha}.")
        if self.norm_scale not in get_args(NormScale):
            raise unknown("norm scale", self.norm_scale, get_args(NormScale))
        if self.form not in get_args(Form):
            raise unknown("form", self.form, get_args(Form))

    @property
    def needs(self) -> Needs:
        """Entropies, binned as `histogram` says."""
        return Needs(self.histogram)

    def score(self, weight: Tensor, stats: LayerStats) -> Tensor:
        """Importance of each weight, float32 [out, in].

        Raises:
            InputError: if the statistics hold no entropy.
        """
        return weight.abs().float() * self.channel_importance(stats)

    def channel_importance(self, stats: LayerStats) -> Tensor:
        """What multiplies |w|: the importance of each input channel, float32 [in]."""
        if stats.entropy is None:
            raise InputError("E-Sparse needs entropies: collect statistics with a histogram.")
        entropy, norm = stats.entropy, stats.norm
        if self.norm_scale == "rms":
            norm = norm * math.sqrt(stats.n_sequences / stats.n_tokens)
        elif self.norm_scale == "l2":
            norm = norm * math.sqrt(stats.n_sequences)
        elif self.norm_scale == "relative":
            entropy, norm = _over_mean(entropy), _over_mean(norm)
        if self.form == "product":
            return entropy * norm
        return entropy + self.alpha * norm


def _over_mean(values: Tensor) -> Tensor:
    """`values` divided by their mean; all zero stays all zero."""
    return values / values.mean().clamp_min(1e-30)
