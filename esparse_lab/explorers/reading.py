"""What the layers of a model read on one text, for explorers that go from layer to layer."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from esparse_lab.architectures import find_layer
from esparse_lab.blocks import Block
from esparse_lab.capture import BlockWalk, block_stats, group_inputs
from esparse_lab.channel_stats import LayerStats, Needs, StatsAccumulator
from esparse_lab.errors import EsparseError, InputError
from esparse_lab.explorers.kept_stats import kept_stats
from esparse_lab.explorers.trial import refuse_if_busy
from esparse_lab.models import LoadedModel

# Bytes of hidden states kept, so that a layer seen once needs only its own block again; and of one
# layer's inputs, beyond which an explorer refuses the text.
HELD_AT_MOST = 1 << 30


def _nobody(_text: str) -> None:
    """Hears of progress where nobody looks."""


class Reading:
    """Runs a model as far as a layer and keeps what that layer reads; several explorers may share.

    The hidden states before each block are kept too, while they are small. The model is not
    changed, and must not be: that is noticed and refused.

    Attributes:
        loaded: the model.
        tokens: what it reads, int64 [sequence, position].
        text: how much it reads, in words.
        blocks: its blocks.
        roles: what the layers of its blocks are called: by the last part of the name where that
            tells them apart ("down_proj"), else from the block on ("mlp.c_proj").
    """

    def __init__(self, loaded: LoadedModel, tokens: Tensor):
        """Embeds `tokens`, int64 [sequence, position].

        Raises:
            InputError: tokens that the model cannot read, or too many of them.
        """
        self.loaded = loaded
        self.tokens = tokens
        self.text = f"{tokens.shape[0]} × {tokens.shape[1]} tokens"
        self._walk = BlockWalk.start(loaded.model, tokens)
        self.blocks: list[Block] = self._walk.blocks
        self.roles = role_names(self.blocks)
        self._hidden = {0: self._walk.hidden}
        self._names: dict[tuple[int, str], str] = {}
        self._marks: dict[int, float] = {}
        self._inputs: dict[tuple[int, int], Tensor] = {}  # by block and group, the latest last
        self._stats: dict[tuple[str, Needs], LayerStats] = {}
        widest = max(m.weight.shape[1] for block in self.blocks for m in block.layers.values())
        size = tokens.numel() * widest * self._hidden[0][0].element_size()
        if size > HELD_AT_MOST:
            fits = max(1, HELD_AT_MOST * len(tokens) // size)
            raise InputError(
                f"{tokens.shape[0]} × {tokens.shape[1]} tokens are too many to explore: inputs of "
                f"{widest} channels would take {size / 2**30:.1f} GiB, at most "
                f"{HELD_AT_MOST / 2**30:.1f} are held. Take fewer, such as tokens[:{fits}]."
            )

    @classmethod
    def of(cls, loaded: "LoadedModel | Reading", tokens: Tensor | None) -> "Reading":
        """The `Reading` given, or one of a model and tokens."""
        if isinstance(loaded, Reading):
            return loaded
        if tokens is None:
            raise InputError("An explorer needs calibration tokens: el.token_windows makes them.")
        return cls(loaded, tokens)

    def places(self) -> dict[str, tuple[int, str]]:
        """Block number and role of every layer, by its full name."""
        return {
            name: (number, next(r for r in self.roles if name.endswith(f".{r}")))
            for number, block in enumerate(self.blocks)
            for name in block.layers
        }

    def layer(self, block: int, role: str) -> str:
        """Full name of a layer; raises `InputError` with the roles that the block has."""
        if (block, role) not in self._names:  # finding one goes through the whole model
            self._names[block, role] = find_layer(self.loaded.model, block, role)
        return self._names[block, role]

    def weight(self, block: int, role: str) -> Tensor:
        """The layer's weights, [out, in]."""
        self._check(block)
        return self.blocks[block].layers[self.layer(block, role)].weight

    def inputs(self, block: int, role: str, said: Callable[[str], None] = _nobody) -> Tensor:
        """What the layer reads, as `layer_inputs` gives it; `said` hears of progress.

        Raises:
            InputError: if the layer was sent no token (an expert), or the model has changed.
        """
        layer = self.layer(block, role)
        number = next(n for n, g in enumerate(self.blocks[block].groups) if layer in g.layers)
        x = self._inputs.pop((block, number), None)
        if x is None:
            self._enter(block, said)
            while sum(kept.nbytes for kept in self._inputs.values()) > HELD_AT_MOST // 8:
                self._inputs.pop(next(iter(self._inputs)))  # the oldest, before the next one comes
            x = group_inputs(self._before(block), block, number)
        else:
            self._check(block)
        if not x.numel():
            raise InputError(
                f"{layer} has no statistics: none of these tokens was sent to it. Choose another "
                "layer, or take more tokens."
            )
        self._inputs[block, number] = x
        return x

    def stats(
        self, block: int, role: str, needs: Needs, said: Callable[[str], None] = _nobody
    ) -> LayerStats:
        """Statistics of what the layer reads, as `collect_layer_stats` gives them."""
        layer = self.layer(block, role)
        if (layer, needs) not in self._stats:
            x = self.inputs(block, role, said)
            accumulator = StatsAccumulator(layer, needs, self._walk.length)
            accumulator.add(x)
            if accumulator.wants_again:
                accumulator.add_again(x)
            stats = accumulator.finish(x.shape[-1])
            if needs.gram:  # large: only the two latest are kept
                old = [key for key, kept in self._stats.items() if kept.gram is not None]
                for key in old[: len(old) - (stats.gram.nbytes <= HELD_AT_MOST // 8)]:
                    del self._stats[key]
            self._stats[layer, needs] = stats
        return self._stats[layer, needs]

    def look_ahead(self, block: int, role: str, needs: Needs) -> None:
        """Read a layer that may be asked for next; if it cannot be read, that is said then."""
        if 0 <= block < len(self.blocks):
            with suppress(EsparseError):
                self.stats(block, role, needs)

    def block_stats(
        self, block: int, needs: Needs, said: Callable[[str], None] = _nobody
    ) -> dict[str, LayerStats]:
        """Statistics of every layer of a block, by its full name, in one forward, or kept ones."""
        names = self.blocks[block].layers
        if all((name, needs) in self._stats for name in names):
            return {name: self._stats[name, needs] for name in names}
        self._enter(block, said)
        returned: list[Tensor] = []
        stats = block_stats(self._before(block), block, needs, returned)
        self._keep(block + 1, returned)
        if not needs.gram:
            self._stats |= {(name, needs): s for name, s in stats.items() if s.n_tokens}
        return stats

    def all_stats(self, needs: Needs, blocks: Iterable[int]) -> dict[str, LayerStats]:
        """Statistics of every layer, by its full name; kept on disk unless they are large.

        Args:
            needs: what to measure.
            blocks: all block numbers in order; gone through only where they must be read.
        """

        def measure() -> dict[str, LayerStats]:
            return {n: s for index in blocks for n, s in self.block_stats(index, needs).items()}

        if needs.gram or needs.output_norm:
            return measure()
        names = self.places()
        if not all((name, needs) in self._stats for name in names):
            for index in range(len(self.blocks)):
                self._check(index)
            found = kept_stats(self.loaded, self.tokens, needs, measure)
            self._stats |= {(name, needs): s for name, s in found.items() if s.n_tokens}
        return {name: self._stats[name, needs] for name in names if (name, needs) in self._stats}

    def _before(self, block: int) -> BlockWalk:
        return replace(self._walk, hidden=self._hidden[block])

    def _enter(self, block: int, said: Callable[[str], None]) -> None:
        """Have the hidden states before `block`."""
        refuse_if_busy(self.loaded.model)
        start = max(index for index in self._hidden if index <= block)
        for index in range(start, block):
            said(f"reading block {index + 1} of {len(self.blocks)}")
            self._keep(index + 1, list(self._before(index).run(index)))
        for index in range(max(start - 1, 0), block + 1):
            self._check(index)

    def _keep(self, index: int, hidden: list[Tensor]) -> None:
        """Keep the hidden states before block `index`; where many are large, not the last ones."""
        size = sum(batch.nbytes for batch in hidden)
        if index > 1 and size * (len(self._hidden) + 1) > HELD_AT_MOST:
            self._hidden.pop(index - 1, None)
        self._hidden[index] = hidden

    def _check(self, index: int) -> None:
        """Raise `InputError` if a block's weights are not those that were there before."""
        refuse_if_busy(self.loaded.model)
        block = self.blocks[index]
        mark = float(sum(m.weight.sum(dtype=torch.float64) for m in block.layers.values()))
        if self._marks.setdefault(index, mark) != mark:
            raise InputError(
                f"The weights of {block.name} have changed since this explorer was made. Make a "
                "new one to see the model as it is now."
            )


def role_names(blocks: list[Block]) -> tuple[str, ...]:
    """What the layers of the blocks are called, in order; see `Reading.roles`."""
    inside = [[name.removeprefix(f"{block.name}.") for name in block.layers] for block in blocks]
    short = [[name.rpartition(".")[2] for name in names] for names in inside]
    plain = all(len(set(names)) == len(names) for names in short)
    return tuple(dict.fromkeys(name for names in (short if plain else inside) for name in names))
