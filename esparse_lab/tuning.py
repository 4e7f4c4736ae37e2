"""Kept weights tuned to a block's output: the error that no layer's own least squares can see.

The masks stay. Adam moves what is left of a block's weights so that the pruned block, reading what
the pruned blocks before it made, returns what the dense model has in its place.

Source: the idea of Guo et al. 2024, "EBFT: Effective and Block-Wise Fine-Tuning for Sparse LLMs",
arXiv 2402.12419; the error relative to each token and the step relative to the weights are ours.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import functional_call

from esparse_lab.capture import BlockWalk
from esparse_lab.errors import EsparseError, InputError
from esparse_lab.twin import relative_error


@dataclass(frozen=True)
class BlockTuning:
    """Adam on the kept weights of a block, which it holds in float32.

    The loss is `twin.relative_error` against what the dense block returns; with `ahead`, the mean
    of that and of the same behind each of the next blocks, which are dense.

    Attributes:
        epochs: passes over the calibration text.
        rate: first step, as a share of the root mean square of a matrix's kept weights; it falls to
            0 along a cosine.
        tokens: of the text that a step reads; at least one sequence.
        ahead: how many of the next blocks count.
    """

    epochs: int = 10
    rate: float = 0.01
    tokens: int = 2048
    ahead: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.tokens < 1 or self.ahead < 0 or not self.rate > 0:
            raise InputError(
                f"epochs={self.epochs}, rate={self.rate}, tokens={self.tokens}, ahead={self.ahead}"
                ": expected epochs and tokens of at least 1, a rate above 0, ahead from 0 on."
            )

    def tune(self, walk: BlockWalk, index: int, aims: list[Tensor]) -> tuple[float, float]:
        """Move the kept weights of block `index`, in place; dropped ones stay zero.

        Args:
            walk: stands before the block; a step takes one of its batches. The blocks behind it
                that count are dense.
            index: of the block, which is pruned.
            aims: what the dense model's block returned, one [sequence, position, channel] a batch.

        Returns:
            The loss before and after; where tuning did not lower it the weights are as they were.

        Raises:
            EsparseError: if the loss is not finite.
        """
        block = walk.blocks[index]
        of_layers = {layer.weight.untyped_storage().data_ptr() for layer in block.layers.values()}
        given = dict(block.module.named_parameters())
        values = {name: p.detach().float() for name, p in given.items()}
        tuned = {
            name: values[name].clone().requires_grad_()
            for name, p in given.items()
            if p.untyped_storage().data_ptr() in of_layers and p.dim() > 1
        }
        kept = {name: values[name] != 0 for name in tuned}
        groups = [
            {"params": [w], "lr": self.rate * float(_root_mean_square(w.detach(), kept[name]))}
            for name, w in tuned.items()
        ]
        optimizer = torch.optim.Adam(groups, fused=walk.device.type == "cuda")
        n_steps = self.epochs * len(aims)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)

        behind = list(_behind(walk, index, self.ahead, aims))

        def loss(number: int) -> Tensor:
            weights = values | {name: w * kept[name] for name, w in tuned.items()}
            out = walk.hidden[number].to(walk.device).float()
            total = out.new_zeros(())
            for further, (of_block, targets) in enumerate([(weights, aims), *behind], start=index):
                module = walk.blocks[further].module
                positional, keywords = _in_float32(walk.arguments[number][further])
                out = functional_call(module, of_block, (out, *positional), keywords)
                out = out[0] if isinstance(out, tuple) else out
                total = total + relative_error(out, targets[number].to(walk.device))
            return total / (1 + len(behind))

        def mean_loss() -> float:
            with torch.no_grad(), _tensor_cores(walk.device):
                return sum(float(loss(number)) for number in range(len(aims))) / len(aims)

        before = mean_loss()
        shuffled = torch.Generator().manual_seed(0)
        with torch.enable_grad():
            for _ in range(self.epochs):
                for number in torch.randperm(len(aims), generator=shuffled).tolist():
                    optimizer.zero_grad()
                    with _tensor_cores(walk.device):
                        lost = loss(number)
                    lost.backward()
                    optimizer.step()
                    schedule.step()
        after = mean_loss()
        if not after < float("inf"):
            raise EsparseError(
                f"Block {index}: tuning ended at a loss of {after}, from {before:.3g}. Take a "
                f"smaller rate than {self.rate}."
            )
        if after >= before:
            return before, before
        with torch.no_grad():
            for name, weight in tuned.items():
                given[name].copy_(weight)
        return before, after


def _behind(
    walk: BlockWalk, index: int, count: int, aims: list[Tensor]
) -> Iterator[tuple[dict[str, Tensor], list[Tensor]]]:
    """Of each of the next `count` blocks: its weights, and what it makes of the dense model."""
    dense = replace(walk, hidden=aims)
    for further in range(index + 1, min(index + 1 + count, len(walk.blocks))):
        dense = replace(dense, hidden=[walk.keep(out) for out in dense.run(further)])
        parameters = walk.blocks[further].module.named_parameters()
        yield {name: p.detach().float() for name, p in parameters}, dense.hidden


def _tensor_cores(device: torch.device) -> torch.autocast:
    """On a GPU products round their inputs to bfloat16: a step's own noise is far larger."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _root_mean_square(weight: Tensor, kept: Tensor) -> Tensor:
    return weight[kept].square().mean().sqrt() if kept.any() else weight.new_zeros(())


def _in_float32(arguments: object) -> object:
    """The same, with floating tensors in float32: tuples, lists and dicts of them."""
    if isinstance(arguments, Tensor):
        return arguments.float() if arguments.is_floating_point() else arguments
    if isinstance(arguments, dict):
        return {key: _in_float32(value) for key, value in arguments.items()}
    if isinstance(arguments, list | tuple):
        return type(arguments)(map(_in_float32, arguments))
    return arguments
