"""Run a model block by block and read what its linear layers receive.

Hooks come off whatever happens. Only one block's activations are held at a time, beside the hidden
states that travel from block to block.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm.std import tqdm
from transformers import PreTrainedModel

from esparse_lab.architectures import Block, InputGroup, transformer_blocks
from esparse_lab.channel_stats import LayerStats, Needs, StatsAccumulator, merge_names
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
        length: positions of a sequence.
    """

    blocks: list[Block]
    hidden: list[Tensor]
    keywords: dict[int, list[dict]]
    length: int

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
        return cls(blocks, hidden, keywords, tokens.shape[1])

    @torch.no_grad()
    def run(self, index: int) -> Iterator[Tensor]:
        """Run block `index` on each batch of `hidden`; yields what it returns, batch by batch."""
        block = self.blocks[index].module
        for batch in self.hidden:
            out = block(batch, **self.keywords[len(batch)][index])
            yield out[0] if isinstance(out, tuple) else out

    def advance(self, index: int) -> None:
        """Move on from block `index` as it is now: what it returns is what the next one reads."""
        for number, out in enumerate(self.run(index)):
            self.hidden[number] = out


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
def on_input(group: InputGroup, receive) -> Iterator[None]:
    """While open, call `receive(x)` with each tensor that the layers of `group` read."""
    handle = group.module.register_forward_pre_hook(lambda _module, args: receive(group.read(args)))
    try:
        yield
    finally:
        handle.remove()


def block_stats(
    walk: BlockWalk, index: int, needs: Needs, returned: list[Tensor] | None = None
) -> dict[str, LayerStats]:
    """Statistics of every layer of block `index`.

    Layers that read the same activation share one `LayerStats`.

    Args:
        walk: where the calibration sequences are.
        index: of the block.
        needs: what to measure.
        returned: takes what the block returned for each batch, if given.
    """
    groups = walk.blocks[index].groups
    gathered = [StatsAccumulator(group.name, needs, walk.length) for group in groups]
    with ExitStack() as hooks:
        for group, accumulator in zip(groups, gathered, strict=True):
            hooks.enter_context(on_input(group, accumulator.add))
        for out in walk.run(index):
            if returned is not None:
                returned.append(out)
    again = [(g, a.add_again) for g, a in zip(groups, gathered, strict=True) if a.wants_again]
    if again:
        with ExitStack() as hooks:
            for group, receive in again:
                hooks.enter_context(on_input(group, receive))
            for _ in walk.run(index):
                pass
    finished = [
        accumulator.finish(group.layers[group.name].weight.shape[1])
        for group, accumulator in zip(groups, gathered, strict=True)
    ]
    return merge_names(
        (group.layers, _with_output_norm(group, own, finished) if needs.output_norm else own)
        for group, own in zip(groups, finished, strict=True)
    )


def _with_output_norm(group: InputGroup, own: LayerStats, of_block: list[LayerStats]) -> LayerStats:
    """`own`, with the norms that the group's outputs have after the activation function."""
    if group.feeds is None:
        return own
    norm = of_block[group.feeds].norm
    # Gate and up projection in one matrix: both make the same product.
    fused = group.layers[group.name].weight.shape[0] // len(norm)
    return replace(own, output_norm=norm.repeat(fused))


def collect_layer_stats(
    model: PreTrainedModel,
    tokens: Tensor,
    *,
    histogram: Histogram | None = Histogram(),
    needs: Needs | None = None,
    progress: bool = True,
) -> dict[str, LayerStats]:
    """Input statistics of every prunable layer of the model as it is (nothing is pruned).

    Args:
        model: a supported decoder.
        tokens: calibration tokens, int64 [sequence, position].
        histogram: how entropies are binned; None for norms alone, which is cheaper.
        needs: everything to measure, in place of `histogram`.
        progress: show a bar, one step a block.

    Returns:
        Layer name, such as "model.layers.3.mlp.down_proj", to its statistics.

    Raises:
        EsparseError: if an activation is not finite (names the layer) or the architecture is
            not known; InputError if the tokens do not fit the model.
    """
    walk = BlockWalk.start(model, tokens)
    needs = needs or Needs(histogram)
    stats: dict[str, LayerStats] = {}
    for index in tqdm(range(len(walk.blocks)), "statistics", unit="block", disable=not progress):
        returned: list[Tensor] = []
        stats |= block_stats(walk, index, needs, returned)
        walk.hidden = returned
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
    group = next(g for g in walk.blocks[names[layer]].groups if layer in g.layers)
    with on_input(group, read.append):
        for _ in walk.run(names[layer]):
            pass
    return torch.cat(read)
