"""Run a model block by block and read what its linear layers receive.

Hooks come off whatever happens. Only one block's activations are held at a time, beside the hidden
states that travel from block to block.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from tqdm.std import tqdm
from transformers import PreTrainedModel

from esparse_lab.architectures import transformer_blocks
from esparse_lab.blocks import Block, InputGroup
from esparse_lab.channel_stats import LayerStats, Needs, StatsAccumulator
from esparse_lab.entropy import Histogram
from esparse_lab.errors import InputError, unknown

# Tokens that run together: enough to fill the device, few enough to bound the activations in use.
TOKENS_AT_ONCE = {"cpu": 1024, "cuda": 16384}


# What a block is called with besides its hidden states: by position and by keyword.
Arguments = tuple[tuple, dict]


class _LastBlockReached(Exception):
    """Leaves a model's forward once every block's arguments are known."""


@dataclass
class BlockWalk:
    """Calibration sequences on their way through a model's blocks.

    Attributes:
        blocks: the model's blocks, in order.
        hidden: what the next block reads, one [sequence, position, channel] tensor a batch; on any
            device, or in a mapped file.
        arguments: the other arguments of each block (masks, positions), one list a batch. Batches
            whose arguments are equal share them, so they take the memory of one.
        length: positions of a sequence.
        device: where blocks run.
        keep: copies a batch of hidden states to where it lives between blocks.
    """

    blocks: list[Block]
    hidden: list[Tensor]
    arguments: list[list[Arguments]]
    length: int
    device: torch.device
    keep: Callable[[Tensor], Tensor]

    @classmethod
    @torch.no_grad()
    def start(
        cls,
        model: PreTrainedModel,
        tokens: Tensor,
        keep: Callable[[Tensor], Tensor] = torch.clone,
        at_once: int | None = None,
    ) -> "BlockWalk":
        """Embed `tokens` and learn how the model calls its blocks.

        Args:
            model: a supported decoder.
            tokens: int64 [sequence, position].
            keep: copies a batch of hidden states to where it lives between blocks.
            at_once: tokens of a batch, at least one sequence; None for what suits the device.
        """
        check_tokens(model, tokens)
        blocks = transformer_blocks(model)
        hidden, arguments = [], []
        if at_once is None:
            count = sequences_at_once(model, tokens)
        else:
            count = max(1, at_once // tokens.shape[1])
        for batch in tokens.split(count):
            first, own = _block_calls(model, blocks, batch.to(model.device))
            hidden.append(keep(first))
            arguments.append(next((other for other in arguments if _equal(other, own)), own))
        return cls(blocks, hidden, arguments, tokens.shape[1], model.device, keep)

    @torch.no_grad()
    def run_batch(self, index: int, number: int) -> Tensor:
        """What block `index` returns for batch `number` of `hidden`."""
        positional, keywords = self.arguments[number][index]
        block = self.blocks[index].module
        out = block(self.hidden[number].to(self.device), *positional, **keywords)
        return out[0] if isinstance(out, tuple) else out

    def run(self, index: int) -> Iterator[Tensor]:
        """Run block `index` on each batch of `hidden`; yields what it returns, batch by batch."""
        for number in range(len(self.hidden)):
            yield self.run_batch(index, number)

    def advance(self, index: int) -> None:
        """Move on from block `index` as it is now: what it returns is what the next one reads."""
        for number, out in enumerate(self.run(index)):
            self.hidden[number].copy_(out)


def sequences_at_once(model: PreTrainedModel, tokens: Tensor) -> int:
    """How many sequences of `tokens` run through `model` together."""
    return max(1, TOKENS_AT_ONCE.get(model.device.type, 1024) // tokens.shape[1])


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
    # OPT's table of learned positions begins two rows later. Others compute any position.
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tables = {m.num_embeddings for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    tables.discard(vocabulary)
    if tables & {longest, (longest or 0) + 2} and tokens.shape[1] > longest:
        raise InputError(
            f"Sequences of {tokens.shape[1]} tokens are too long: the model has learned "
            f"{longest} positions. Take a shorter length."
        )


def _equal(one: object, other: object) -> bool:
    """Whether two arguments hold the same: tensors by value, in tuples, lists and dicts of them."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one == other


def _block_calls(
    model: PreTrainedModel, blocks: list[Block], batch: Tensor
) -> tuple[Tensor, list[Arguments]]:
    """The first block's hidden states, and every block's other arguments.

    Every block but the last hands its hidden states on unchanged, so no block computes anything.
    """
    hidden: list[Tensor] = []
    arguments: list[Arguments] = []
    # A module may bring a forward of its own, as a model spread over devices by accelerate does.
    own = [block.module.__dict__.get("forward") for block in blocks]

    def record(hidden_states: Tensor, *positional, **keywords) -> Tensor | tuple:
        returns = blocks[len(arguments)].returns
        hidden.append(hidden_states)
        arguments.append((positional, keywords))
        if len(arguments) == len(blocks):
            raise _LastBlockReached
        return (hidden_states, *[None] * (returns - 1)) if returns else hidden_states

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
    return hidden[0], arguments


@contextmanager
def on_input(group: InputGroup, length: int, receive) -> Iterator[None]:
    """While open, call `receive(x)` with each tensor that the layers of `group` read.

    Args:
        group: the layers.
        length: positions of a sequence.
        receive: is given [sequence, position, in], or [token, in] for an expert.
    """
    handle = group.module.register_forward_pre_hook(
        lambda _module, args: receive(group.read(args, length))
    )
    try:
        yield
    finally:
        handle.remove()


def block_stats(
    walk: BlockWalk,
    index: int,
    needs: Needs,
    returned: list[Tensor] | None = None,
    numbers: Sequence[int] | None = None,
) -> dict[str, LayerStats]:
    """Statistics of the layers of block `index`.

    Layers that read the same activation share one `LayerStats`.

    Args:
        walk: where the calibration sequences are.
        index: of the block.
        needs: what to measure.
        returned: takes what the block returned for each batch, if given.
        numbers: of the groups that are wanted; None for all.
    """
    gathered = accumulators(walk, index, needs, numbers)
    _read_inputs(walk, index, {n: gathered[n].add for n in gathered}, returned)
    return finished_stats(walk, index, needs, gathered)


class _InputsRead(Exception):
    """Leaves a block's forward once every wanted input was seen."""


def _read_inputs(
    walk: BlockWalk,
    index: int,
    receivers: dict[int, Callable[[Tensor], None]],
    returned: list[Tensor] | None = None,
) -> None:
    """Hand to each receiver what the group of its number in block `index` reads, batch by batch.

    Each batch's forward ends with the last of these inputs, unless its output is `returned`.
    """
    waiting: set[int] = set()

    def receive(number: int, x: Tensor) -> None:
        receivers[number](x)
        waiting.discard(number)
        if not waiting and returned is None:
            raise _InputsRead

    with ExitStack() as hooks:
        for number in receivers:
            group = walk.blocks[index].groups[number]
            hooks.enter_context(on_input(group, walk.length, partial(receive, number)))
        for batch in range(len(walk.hidden)):
            waiting.update(receivers)
            with suppress(_InputsRead):
                out = walk.run_batch(index, batch)
                if returned is not None:
                    returned.append(out)


def accumulators(
    walk: BlockWalk, index: int, needs: Needs, numbers: Sequence[int] | None = None
) -> dict[int, StatsAccumulator]:
    """What gathers the statistics of the groups of a block, by their number; None for all."""
    groups = walk.blocks[index].groups
    wanted = set(range(len(groups)) if numbers is None else numbers)
    if needs.output_norm:
        wanted |= {groups[n].feeds for n in wanted if groups[n].feeds is not None}
    return {n: StatsAccumulator(groups[n].name, needs, walk.length) for n in sorted(wanted)}


def finished_stats(
    walk: BlockWalk, index: int, needs: Needs, gathered: dict[int, StatsAccumulator]
) -> dict[str, LayerStats]:
    """The statistics of what was gathered, by layer; runs the block again where one wants it."""
    groups = walk.blocks[index].groups
    again = {n: gathered[n].add_again for n in gathered if gathered[n].wants_again}
    if again:
        _read_inputs(walk, index, again)
    of_group = {
        n: accumulator.finish(groups[n].layers[groups[n].name].weight.shape[1])
        for n, accumulator in gathered.items()
    }
    if needs.output_norm:
        of_group = {n: _with_output_norm(groups[n], s, of_group) for n, s in of_group.items()}
    return {name: stats for n, stats in of_group.items() for name in groups[n].layers}


def _with_output_norm(
    group: InputGroup, own: LayerStats, of_block: dict[int, LayerStats]
) -> LayerStats:
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
    layers: Collection[str] | None = None,
    progress: bool = True,
) -> dict[str, LayerStats]:
    """Input statistics of every prunable layer of the model as it is (nothing is pruned).

    Args:
        model: a supported decoder.
        tokens: calibration tokens, int64 [sequence, position].
        histogram: how entropies are binned; None for norms alone, which is cheaper.
        needs: everything to measure, in place of `histogram`.
        layers: names of those to measure, so that blocks behind the last are not run; None: all.
        progress: show a bar, one step a block.

    Returns:
        Layer name, such as "model.layers.3.mlp.down_proj", to its statistics.

    Raises:
        EsparseError: if an activation is not finite (names the layer) or the architecture is
            not known; InputError if the tokens do not fit the model, or it has no such layer.
    """
    walk = BlockWalk.start(model, tokens)
    needs = needs or Needs(histogram)
    block_of = {name: index for index, block in enumerate(walk.blocks) for name in block.layers}
    wanted = set(block_of if layers is None else layers)
    for name in wanted - block_of.keys():
        raise unknown("layer", name, block_of)
    last = max((block_of[name] for name in wanted), default=-1)
    stats: dict[str, LayerStats] = {}
    for index in tqdm(range(last + 1), "statistics", unit="block", disable=not progress):
        if wanted.isdisjoint(walk.blocks[index].layers):
            walk.hidden = list(walk.run(index))
            continue
        returned: list[Tensor] = []
        of_block = block_stats(walk, index, needs, returned)
        stats |= {name: found for name, found in of_block.items() if name in wanted}
        walk.hidden = returned
    return stats


def layer_inputs(model: PreTrainedModel, tokens: Tensor, layer: str) -> Tensor:
    """What one layer reads, [sequence, position, in], or [token, in] for an expert.

    In the model's dtype.

    Raises:
        InputError: if the model has no prunable layer of that name.
    """
    walk = BlockWalk.start(model, tokens)
    names = {name: i for i, block in enumerate(walk.blocks) for name in block.layers}
    if layer not in names:
        raise unknown("layer", layer, names)
    for index in range(names[layer]):
        walk.hidden = list(walk.run(index))
    groups = walk.blocks[names[layer]].groups
    number = next(n for n, group in enumerate(groups) if layer in group.layers)
    return group_inputs(walk, names[layer], number)


def group_inputs(walk: BlockWalk, index: int, number: int) -> Tensor:
    """What group `number` of block `index` reads, all batches; shapes as `layer_inputs`."""
    read: list[Tensor] = []
    _read_inputs(walk, index, {number: read.append})
    return torch.cat(read)
