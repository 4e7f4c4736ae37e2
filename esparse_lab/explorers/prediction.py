"""The share of the score that a recipe will keep in each layer, from a sample, at once.

Scores are those of the dense model. Where rows do not depend on each other a few rows of every
layer are scored. An order, or a method whose rows are not apart, needs whole matrices: those of a
few blocks, and what they show of each kind of layer is taken for all.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor

from esparse_lab.channel_stats import LayerStats
from esparse_lab.entropy import Histogram
from esparse_lab.explorers.reading import Reading
from esparse_lab.masks import Sparsity
from esparse_lab.methods import ByScore, Choice, PruningMethod
from esparse_lab.permutation import OrderSearch, ordered_mask, search_order
from esparse_lab.pruning import kept_share

SAMPLED_WEIGHTS = 1 << 21  # of the whole model
SAMPLED_BLOCKS = 2


@dataclass(frozen=True)
class Prediction:
    """What a recipe is expected to keep.

    Attributes:
        layers: columns layer, block, role, retained_share (0 to 1).
        sample: what it was taken from, in words.
    """

    layers: pd.DataFrame
    sample: str


class Predictor:
    """Predicts for one model and text, and keeps what it has read and searched."""

    def __init__(self, reading: Reading):
        self._reading = reading
        self._places = reading.places()
        self._rows: dict[str, Tensor] = {}  # copies: at hand while a run changes the weights
        self._gains: dict[tuple, dict[str, float]] = {}
        n_channels = sum(m.weight.shape[1] for b in reading.blocks for m in b.layers.values())
        self.n_rows = max(4, SAMPLED_WEIGHTS // n_channels)

    def predict(
        self,
        method: PruningMethod,
        sparsity: Sparsity,
        search: OrderSearch | None,
        said: Callable[[str], None],
    ) -> Prediction | None:
        """The prediction; None for a method whose mask is not its score's."""
        if not isinstance(method, ByScore):
            return None
        stats = self._stats(method, said)
        sample = f"{self.n_rows} rows of every layer"
        if method.rows_are_apart:
            shares = {n: self._from_rows(n, method, s, sparsity) for n, s in stats.items()}
        else:
            whole = self._by_role("share", stats, method, sparsity, None, said)
            shares = {name: whole[self._places[name][1]] for name in stats}
            sample = f"whole matrices of {self._blocks_named()}"
        if search is not None:
            gains = self._by_role("gain", stats, method, sparsity, search, said)
            shares = {n: share + gains[self._places[n][1]] for n, share in shares.items()}
            sample += f", and orders searched in {self._blocks_named()}"
        frame = pd.DataFrame(
            {"layer": name, "block": block, "role": role, "retained_share": shares.get(name)}
            for name, (block, role) in self._places.items()
        )
        return Prediction(frame.astype({"retained_share": float}), sample)

    def _stats(self, method: PruningMethod, said: Callable[[str], None]) -> dict[str, LayerStats]:
        """Statistics by layer, without those that no token was sent to."""
        blocks = range(len(self._reading.blocks))
        if method.needs is None:
            return dict.fromkeys(self._places)
        # With entropies even where the method needs none: one reading serves most methods.
        needs = replace(method.needs, histogram=method.needs.histogram or Histogram())

        def told() -> Iterator[int]:
            for block in blocks:
                said(f"statistics: block {block + 1} of {len(blocks)}")
                yield block

        found = self._reading.all_stats(needs, told())
        return {name: stats for name, stats in found.items() if stats.n_tokens}

    def _from_rows(
        self, name: str, method: PruningMethod, stats: LayerStats | None, sparsity: Sparsity
    ) -> float:
        if name not in self._rows:
            self._rows[name] = _evenly(self._reading.weight(*self._places[name]), self.n_rows)
        return kept_share(method.choose(self._rows[name], stats, sparsity))

    def _by_role(
        self,
        what: str,
        stats: dict[str, LayerStats],
        method: PruningMethod,
        sparsity: Sparsity,
        search: OrderSearch | None,
        said: Callable[[str], None],
    ) -> dict[str, float]:
        """Mean over the sampled blocks: the "share" kept, or the "gain" of a searched order."""
        key = (what, method, sparsity, search)
        if key in self._gains:
            return self._gains[key]
        found: dict[str, list[float]] = {}
        for block in self._blocks():
            said(f"whole matrices of block {block}")
            for group in self._reading.blocks[block].groups:
                self._reading.weight(block, self._places[group.name][1])  # refuses changed weights
                if group.name not in stats:
                    continue
                of_group = stats[group.name]
                scores = {n: method.score(m.weight, of_group) for n, m in group.layers.items()}
                if method.group_axis(of_group) == "out":
                    scores = {name: score.T for name, score in scores.items()}
                order = None
                if search is not None:
                    order = search_order(torch.cat([*scores.values()]), sparsity, search)
                for name, score in scores.items():
                    some = _evenly(score, 4 * self.n_rows)
                    share = kept_share(Choice(sparsity.mask(some), scores=some))
                    if order is not None:
                        mask = ordered_mask(some, sparsity, order)
                        share = kept_share(Choice(mask, scores=some)) - share
                    found.setdefault(self._places[name][1], []).append(share)
        means = {role: sum(values) / len(values) for role, values in found.items()}
        # A kind of layer that the sampled blocks lack is taken to be as the others are.
        other = sum(means.values()) / len(means)
        self._gains[key] = {role: means.get(role, other) for role in self._reading.roles}
        return self._gains[key]

    def _blocks(self) -> list[int]:
        n_blocks = len(self._reading.blocks)
        parts = min(SAMPLED_BLOCKS, n_blocks)
        return [(2 * i + 1) * n_blocks // (2 * parts) for i in range(parts)]

    def _blocks_named(self) -> str:
        blocks = self._blocks()
        return f"block{'s' * (len(blocks) > 1)} {' and '.join(map(str, blocks))}"


def _evenly(rows: Tensor, most: int) -> Tensor:
    """At most `most` rows, evenly spaced: each from the middle of its share; a copy."""
    most = min(most, len(rows))
    middles = (torch.arange(most, device=rows.device) + 0.5) * len(rows) / most
    return rows[middles.long()]
