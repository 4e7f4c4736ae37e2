"""The dense model's own run over the calibration text, beside the run of the one being pruned.

A pruned layer reads what pruned layers before it made. Matched to the dense model, it aims not at
what its dense weights would make of that, but at what the dense model has in its place; the layers
that write into the residual stream also take back what it has drifted.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from esparse_lab.blocks import Block
from esparse_lab.capture import (
    BlockWalk,
    accumulators,
    block_stats,
    finished_stats,
    on_input,
)
from esparse_lab.channel_stats import LayerStats, Needs, inner_products
from esparse_lab.experts import ProductGroup, RoutedGroup


@dataclass
class DenseTwin:
    """The dense model's hidden states, and the dense weights of the block that is being pruned.

    Attributes:
        walk: shares its blocks with the walk of the model being pruned.
        weights: of the block's parameters, by name.
    """

    walk: BlockWalk
    weights: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, walk: BlockWalk) -> "DenseTwin":
        """The twin of a walk that stands before its first block."""
        hidden = [walk.keep(batch) for batch in walk.hidden]
        return cls(replace(walk, hidden=hidden))

    def enter(self, index: int) -> None:
        """Remember the weights of block `index`, which is about to be pruned."""
        parameters = self.walk.blocks[index].module.named_parameters()
        self.weights = {name: p.detach().clone() for name, p in parameters}

    @contextmanager
    def dense(self, block: Block) -> Iterator[None]:
        """While open, the block has its dense weights."""
        parameters = dict(block.module.named_parameters())
        pruned = {name: p.data for name, p in parameters.items()}
        for name, parameter in parameters.items():
            parameter.data = self.weights[name]
        try:
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = pruned[name]

    def advance(self, index: int, outputs: list[Tensor] | None = None) -> None:
        """Move on from block `index` as it was before it was pruned.

        Args:
            index: of the block.
            outputs: what `outputs` gave for it, where that was asked: the block is not run again.
        """
        if outputs is not None:
            self.walk.hidden = outputs
        else:
            with self.dense(self.walk.blocks[index]):
                self.walk.advance(index)
        self.weights = {}  # a second copy of the block: gone before the next one comes

    def outputs(self, index: int) -> list[Tensor]:
        """What block `index` returned before it was pruned, a batch an entry."""
        with self.dense(self.walk.blocks[index]):
            return [self.walk.keep(out) for out in self.walk.run(index)]

    def restore(self, block: Block) -> None:
        """Give the block the weights that it had when it was entered."""
        for name, parameter in block.module.named_parameters():
            parameter.data.copy_(self.weights[name])


def relative_error(out: Tensor, aim: Tensor) -> Tensor:
    """|out - aim|^2 / |aim|^2 of a token, averaged over tokens, float32 [].

    Norms between blocks divide by a token's size, so the few tokens with huge activations must not
    decide alone.
    """
    off = (out.float() - aim.float()).square().sum(-1)
    return (off / aim.float().square().sum(-1).clamp_min(1e-12)).mean()


@torch.no_grad()
def block_error(walk: BlockWalk, index: int, aims: list[Tensor]) -> float:
    """`relative_error` of block `index` as it is, against one aim a batch, averaged over them."""
    errors = [
        float(relative_error(out, aim.to(out.device)))
        for out, aim in zip(walk.run(index), aims, strict=True)
    ]
    return sum(errors) / len(errors)


@torch.no_grad()
def matched_stats(
    walk: BlockWalk, twin: DenseTwin, index: int, number: int, needs: Needs
) -> dict[str, LayerStats]:
    """Statistics of group `number` of block `index`, matched to the dense model.

    The group's own weights must still be dense; those of groups before it may be pruned. Experts
    are not matched: the two models send them different tokens.
    """
    block = walk.blocks[index]
    group = block.groups[number]
    if isinstance(group, RoutedGroup | ProductGroup):
        return block_stats(walk, index, needs, numbers=[number])
    gathered = accumulators(walk, index, needs, [number])
    cross: Tensor | float = 0.0
    drift: Tensor | float = 0.0
    for batch in range(len(walk.hidden)):
        dense_in: list[Tensor] = []
        with twin.dense(block), on_input(group, walk.length, dense_in.append):
            dense_out = twin.walk.run_batch(index, batch)
        own_in: list[Tensor] = []
        with ExitStack() as hooks:
            for n, accumulator in gathered.items():
                hooks.enter_context(on_input(block.groups[n], walk.length, accumulator.add))
            hooks.enter_context(on_input(group, walk.length, own_in.append))
            out = walk.run_batch(index, batch)
        z, x = dense_in[0], own_in[0]
        if number == block.mlp_out:
            # What the block returns shows the stream's drift and W (Z - X) in one.
            cross += inner_products(x, x)
            drift += inner_products(dense_out - out, x)
        else:
            cross += inner_products(z, x)
        if number == block.attention_out:
            behind = twin.walk.hidden[batch].to(x.device) - walk.hidden[batch].to(x.device)
            drift += inner_products(behind, x)
    stats = finished_stats(walk, index, needs, gathered)
    writes = number in (block.attention_out, block.mlp_out)
    return {
        name: replace(
            stats[name],
            cross=cross / stats[name].n_sequences,
            drift=drift / stats[name].n_sequences if writes else None,
        )
        for name in group.layers
    }
