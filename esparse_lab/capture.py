"""Run a model block by block and read what its linear layers receive.

Hooks come off whatever happens. Only one block's activations are held at a time, beside the hidden
states that travel from block to block.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.std import tqdm
from transformers import PreTrainedModel

from esparse_lab.architectures import Block, transformer_blocks
from esparse_lab.channel_stats import LayerStats, StatsAccumulator, merge_names
from esparse_lab.entropy import Histogram
from esparse_lab.errors import InputError, unknown

# Tokens that run together: enough to fill the device, few enough to bound the activations in use.
TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 16384}


class _LastBlockReached(Exception):
    """Leaves a model's forward once every block's arguments are known."""


@dataclass
class BlockWalk:
    """Calibration sequences on their way through a model's blocks.

    Attributes:
        blocks: the model's blocks, in order.
        hidden: what the next block reads, one [sequence, position, channel] tensor a batch.
        keywords: the other arguments of each block (masks, positions), by batch size.
    """

    blocks: list[Block]
    hidden: list[Tensor]
    keywords: dict[int, list[dict]]

    @classmethod
    @torch.no_grad()
    def start(cls, model: PreTrainedModel, tokens: Tensor) -> "BlockWalk":
        """Embed `tokens`, int64 [sequence, position], and learn how the model calls its blocks."""
        check_tokens(model, tokens)
        blocks = transformer_blocks(model)
        hidden, keywords = [], {}
        for batch in tokens.split(sequences_at_once(model, tokens)):
            calls = _block_calls(model, blocks, batch.to(model.device))
            hidden.append(calls[0][0])
            keywords.setdefault(len(batch), [keyword for _, keyword in calls])
        return cls(blocks, hidden, keywords)

    @torch.no_grad()
    def run(self, index: int) -> Iterator[Tensor]:
        """Run block `index` on each batch of `hidden`; yields what it returns, batch by batch."""
        block = self.blocks[index].module
        for batch in self.hidden:
            out = block(batch, **self.keywords[len(batch)][index])
            yield out[0] if isinstance(out, tuple) else out


def sequences_at_once(model: PreTrainedModel, tokens: Tensor) -> int:
    """How many sequences of `tokens` run through `model` together."""
    return max(1, TOKENS_AT_ONCE.get(model.device.type, 2048) // tokens.shape[1])


def check_tokens(model: PreTrainedModel, tokens: Tensor) -> None:
    """Raise `InputError` unless `tokens` is a filled int64 [sequence, position] of known ids.

    A model in training mode is refused too: its dropout would make every figure random.
    """
    if model.training:
        raise InputError("The model is in training mode, where dropout is on: call model.eval().")
    if tokens.dim() != 2 or tokens.dtype != torch.int64 or tokens.numel() == 0:
        raise InputError(
            f"Expected int64 tokens of shape [sequence, position], got {tokens.dtype} of shape "
            f"{list(tokens.shape)}. `token_windows` makes them."
        )
    vocabulary = model.get_input_embeddings().num_embeddings
    if not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
        raise InputError(
            f"Token ids run from {int(tokens.min())} to {int(tokens.max())}, the model knows 0 to "
            f"{vocabulary - 1}. Were they made with another model's tokenizer?"
        )


def _block_calls(
    model: PreTrainedModel, blocks: list[Block], batch: Tensor
) -> list[tuple[Tensor, dict]]:
    """Hidden states and keyword arguments that each block is called with.

    Every block but the last hands its hidden states on unchanged, so no block computes anything:
    only the first block's hidden states mean something.
    """
    calls: list[tuple[Tensor, dict]] = []
    # A module may bring a forward of its own, as a model spread over devices by accelerate does.
    own = [block.module.__dict__.get("forward") for block in blocks]

    def record(hidden_states: Tensor, **keywords) -> Tensor:
        calls.append((hidden_states, keywords))
        if len(calls) == len(blocks):
            raise _LastBlockReached
        return hidden_states

    try:
        for block in blocks:
            block.module.forward = record
        model(batch, use_cache=False)
    except _LastBlockReached:
        pass
    finally:
        for block, forward in zip(blocks, own, strict=True):
            block.module.__dict__.pop("forward", None)  # uncovers the class's own forward
            if forward is not None:
                block.module.forward = forward
    return calls


@contextmanager
def on_input(layer: nn.Linear, receive) -> Iterator[None]:
    """While open, call `receive(x)` with each tensor that `layer` reads."""
    handle = layer.register_forward_pre_hook(lambda _module, args: receive(args[0]))
    try:
        yield
    finally:
        handle.remove()


def block_stats(
    walk: BlockWalk, index: int, histogram: Histogram | None
) -> tuple[dict[str, LayerStats], list[Tensor]]:
    """Statistics of every layer of block `index`, and what the block returned for each batch.

    Layers that read the same activation share one `LayerStats`.
    """
    groups = walk.blocks[index].groups
    accumulators = [StatsAccumulator(next(iter(group)), histogram) for group in groups]
    with ExitStack() as hooks:
        for group, accumulator in zip(groups, accumulators, strict=True):
            hooks.enter_context(on_input(next(iter(group.values())), accumulator.add))
        returned = list(walk.run(index))
    stats = merge_names(zip(groups, (a.finish() for a in accumulators), strict=True))
    return stats, returned


def collect_layer_stats(
    model: PreTrainedModel,
    tokens: Tensor,
    *,
    histogram: Histogram | None = Histogram(),
    progress: bool = True,
) -> dict[str, LayerStats]:
    """Input statistics of every prunable layer of the model as it is (nothing is pruned).

    Args:
        model: a supported decoder.
        tokens: calibration tokens, int64 [sequence, position].
        histogram: how entropies are binned; None for norms alone, which is cheaper.
        progress: show a bar, one step a block.

    Returns:
        Layer name, such as "model.layers.3.mlp.down_proj", to its statistics.

    Raises:
        EsparseError: if an activation is not finite (names the layer) or the architecture is
            not known; InputError if the tokens do not fit the model.
    """
    walk = BlockWalk.start(model, tokens)
    stats: dict[str, LayerStats] = {}
    for index in tqdm(range(len(walk.blocks)), "statistics", unit="block", disable=not progress):
        of_block, walk.hidden = block_stats(walk, index, histogram)
        stats |= of_block
    return stats


def layer_inputs(model: PreTrainedModel, tokens: Tensor, layer: str) -> Tensor:
    """What one layer reads, [sequence, position, in], in the model's dtype.

    Raises:
        InputError: if the model has no prunable layer of that name.
    """
    walk = BlockWalk.start(model, tokens)
    names = {name: i for i, block in enumerate(walk.blocks) for name in block.layers}
    if layer not in names:
        raise unknown("layer", layer, names)
    read: list[Tensor] = []
    for index in range(names[layer]):
        walk.hidden = list(walk.run(index))
    block = walk.blocks[names[layer]]
    with on_input(block.layers[layer], read.append):
        for _ in walk.run(names[layer]):
            pass
    return torch.cat(read)
