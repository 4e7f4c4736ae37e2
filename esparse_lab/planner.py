"""Which channel orders a model can really have: for free, by a gather after a norm, or not at all.

A mask found under an order is N:M in memory only if the weights are stored in that order, and then
whatever makes the activation must hand it over reordered. A matrix that makes it does so for free
when its rows are permuted; a norm over the residual stream needs a gather of its output.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from esparse_lab.architectures import Architecture, find_architecture, transformer_blocks
from esparse_lab.blocks import Block, InputGroup, WeightMatrix
from esparse_lab.channel_stats import LayerStats
from esparse_lab.errors import EsparseError, InputError
from esparse_lab.masks import Pattern
from esparse_lab.methods import Magnitude, PruningMethod
from esparse_lab.permutation import (
    ChannelOrder,
    OrderSearch,
    retained_share,
    search_order,
    search_orders,
)

How = Literal["free", "gather", "impossible"]


@dataclass(frozen=True)
class Constraint:
    """Which orders of an activation's channels can be had.

    Attributes:
        head: channels of an attention head, which an order must not leave; None where any goes.
        repeats: heads in a row that must be ordered alike: the query heads of one key-value head.
    """

    head: int | None = None
    repeats: int = 1

    def __str__(self) -> str:
        if self.head is None:
            return "any order"
        alike = f", alike in {self.repeats} query heads" if self.repeats > 1 else ""
        return f"within heads of {self.head}{alike}"

    def source_order(self, order: ChannelOrder) -> Tensor:
        """The order of what the channels are copies of: the outputs of the value projection.

        Raises:
            InputError: if the order breaks the constraint.
        """
        index, head = order.index, self.head
        if head is None:
            return index
        heads = index.view(-1, self.repeats, head) % head
        stays = index // head == torch.arange(len(index), device=index.device) // head
        if not stays.all() or not (heads == heads[:, :1]).all():
            raise InputError(f"The order is not {self}: no order of the value rows gives it.")
        starts = head * torch.arange(len(heads), device=index.device)
        return (heads[:, 0] + starts[:, None]).flatten()


@dataclass(frozen=True)
class Writer:
    """A matrix whose rows make an activation.

    Attributes:
        name: of the layer.
        matrix: its weights.
        first: the row that makes the activation's first source; the others follow, `stride` apart
            from head to head.
        stride: rows from one head's first to the next one's; None where rows simply follow.
    """

    name: str
    matrix: WeightMatrix
    first: int = 0
    stride: int | None = None

    def rows(self, n_sources: int, head: int | None) -> Tensor:
        """The row that makes each source, int64 [source]."""
        source = torch.arange(n_sources)
        if self.stride is None:
            return self.first + source
        return self.first + source // head * self.stride + source % head


@dataclass(frozen=True)
class OrderPlan:
    """What can be done about the order of one activation's channels.

    Attributes:
        block: name of the block.
        numbers: numbers, inside the block, of the groups that read it and so share one order.
        groups: those groups.
        how: "free", "gather" or "impossible".
        constraint: what orders must respect; None where there is none to choose.
        writers: whose rows take the order, where it is free.
        norm: path of the norm whose output is gathered, where that is needed.
        also_read: paths of layers that are not pruned and read it too.
        why: the reason, in a sentence.
    """

    block: str
    numbers: tuple[int, ...]
    groups: tuple[InputGroup, ...]
    how: How
    constraint: Constraint | None
    writers: tuple[Writer, ...] = ()
    norm: str | None = None
    also_read: tuple[str, ...] = ()
    why: str = ""


def order_plans(model: PreTrainedModel) -> dict[str, OrderPlan]:
    """The plan of every group of layers that read one activation, by the group's name.

    Groups that share an order share a plan.
    """
    architecture = find_architecture(model)
    plans = {}
    for block in transformer_blocks(model):
        of_block = {}
        for plan in _block_plans(model, architecture, block):
            of_block |= {group.name: plan for group in plan.groups}
        plans |= {group.name: of_block[group.name] for group in block.groups}
    return plans


def _block_plans(
    model: PreTrainedModel, architecture: Architecture | None, block: Block
) -> Iterator[OrderPlan]:
    fed = {group.feeds: group for group in block.groups if group.feeds is not None}
    of_norm: dict[str, list[int]] = {}
    for number, group in enumerate(block.groups):
        if number in fed:
            writers = tuple(_halves(fed[number], group))
            why = "what stands between is elementwise: rows may be permuted"
            yield OrderPlan(block.name, (number,), (group,), "free", Constraint(), writers, why=why)
        elif architecture is None:
            why = "the family has no entry in architectures.py: what makes it is not known"
            yield OrderPlan(block.name, (number,), (group,), "impossible", None, why=why)
        elif number == len(architecture.attention) - 1:
            heads = model.config.get_text_config().num_attention_heads
            constraint, writer = _values(architecture, block, group, heads)
            why = "attention mixes positions, not the channels of a head: value rows may move in it"
            yield OrderPlan(block.name, (number,), (group,), "free", constraint, (writer,), why=why)
        else:
            norm = _norm_of(architecture, block, reads_mlp=number > 0)
            of_norm.setdefault(norm, []).append(number)
    for norm, numbers in of_norm.items():
        yield _gather_plan(model, architecture, block, norm, numbers)


def _halves(before: InputGroup, after: InputGroup) -> Iterator[Writer]:
    [reader] = after.layers.values()
    channels = reader.weight.shape[1]
    for name, matrix in before.layers.items():
        for first in range(0, matrix.weight.shape[0], channels):
            yield Writer(name, matrix, first)


def _values(
    architecture: Architecture, block: Block, reader: InputGroup, heads: int
) -> tuple[Constraint, Writer]:
    """What attention's last layer reads, and where the rows are that it comes from."""
    channels = reader.layers[reader.name].weight.shape[1]
    head = channels // heads
    name, matrix = list(block.groups[0].layers.items())[-1]
    rows = matrix.weight.shape[0]
    if architecture.values == "last":
        groups = rows // head
        writer = Writer(name, matrix)
    else:
        groups = (rows // head - heads) // 2  # queries, and a key and a value for each group
        if architecture.values == "stacked":
            writer = Writer(name, matrix, rows - groups * head)
        else:
            of_group = rows // groups
            writer = Writer(name, matrix, of_group - head, of_group)
    return Constraint(head, heads // groups), writer


def _norm_of(architecture: Architecture, block: Block, *, reads_mlp: bool) -> str:
    inside = dict(block.module.named_children())
    for name in architecture.norms[reads_mlp]:
        if name in inside:
            return f"{block.name}.{name}"
    raise EsparseError(
        f"{block.name} has none of {', '.join(architecture.norms[reads_mlp])}, the norms that "
        f"models of type {architecture.model_types[0]!r} should have. Correct the entry in "
        "esparse_lab/architectures.py."
    )


def _gather_plan(
    model: PreTrainedModel, architecture: Architecture, block: Block, norm: str, numbers: list[int]
) -> OrderPlan:
    groups = tuple(block.groups[n] for n in numbers)
    field, value = architecture.norm_is_residual or ("", None)
    if architecture.norm_is_residual and getattr(model.config, field) is value:
        why = f"{field}={value}: a norm's output is also the residual stream, whose order is fixed"
        return OrderPlan(block.name, tuple(numbers), groups, "impossible", None, why=why)
    inside = dict(block.module.named_modules())
    also = architecture.also_read if any(numbers) else ()
    also = tuple(f"{block.name}.{path}" for path in also if path in inside)
    why = "the residual stream keeps its order: the norm's output is gathered"
    if len(groups) > 1:
        names = "the experts and their router" if also else "attention and MLP"
        why += f", once for all that read it ({names})"
    return OrderPlan(
        block.name, tuple(numbers), groups, "gather", Constraint(), (), norm, also, why
    )


def legal_order(
    scores: Tensor, pattern: Pattern, search: OrderSearch | None, constraint: Constraint | None
) -> ChannelOrder:
    """The order that `search` finds among those that `constraint` allows.

    Args:
        scores: as of `search_order`, [row, in].
        pattern: the N:M pattern whose kept score is to grow.
        search: how to look.
        constraint: what an order must respect; None leaves the channels as they are.
    """
    n_rows, channels = scores.shape
    if constraint is None:
        return ChannelOrder.identity(channels, scores.device)
    if constraint.head is None:
        return search_order(scores, pattern, search)
    head, repeats = constraint.head, constraint.repeats
    # Heads that are ordered alike compete as rows: their kept scores add up.
    by_source = scores.view(n_rows, -1, repeats, head).permute(1, 2, 0, 3).flatten(1, 2)
    inside = torch.stack([o.index for o in search_orders(by_source.unbind(), pattern, search)])
    starts = head * torch.arange(channels // head, device=scores.device)
    order = ChannelOrder((inside.repeat_interleave(repeats, 0) + starts[:, None]).flatten())
    if head % pattern.m and retained_share(scores, pattern, order) < retained_share(
        scores, pattern
    ):
        # Groups that reach over the end of a head are not those that were searched.
        return ChannelOrder.identity(channels, scores.device)
    return order


def plan_table(model: PreTrainedModel) -> pd.DataFrame:
    """One row a group of layers that read one activation.

    Columns: block (its number), group (the first layer's name), layers (roles), how, constraint,
    where (the layers whose rows take the order, or the norm that gathers), shares_order_with (first
    layers of other groups), why.
    """
    rows = []
    plans = order_plans(model)
    numbers = {name: n for n, name in enumerate(dict.fromkeys(p.block for p in plans.values()))}
    for name, plan in plans.items():
        [group] = [g for g in plan.groups if g.name == name]
        where = {w.name: None for w in plan.writers} if plan.writers else [plan.norm or ""]
        rows.append(
            {
                "block": numbers[plan.block],
                "group": name,
                "layers": _short(plan, group.layers),
                "how": plan.how,
                "constraint": str(plan.constraint or "none"),
                "where": _short(plan, where),
                "shares_order_with": _short(plan, [g.name for g in plan.groups if g.name != name]),
                "why": plan.why,
            }
        )
    return pd.DataFrame(rows)


def _short(plan: OrderPlan, names: Mapping[str, object] | list[str]) -> str:
    return ", ".join(name.removeprefix(f"{plan.block}.") for name in names)


@torch.no_grad()
def legality_table(
    model: PreTrainedModel,
    stats: Mapping[str, LayerStats],
    method: PruningMethod,
    pattern: Pattern,
    search: OrderSearch,
    *,
    blocks: Sequence[int] | None = None,
) -> pd.DataFrame:
    """What it costs to keep to orders that can be had: retained shares of the score, 0 to 1.

    Args:
        model: a supported decoder, not pruned yet.
        stats: of every layer, as `collect_layer_stats` gives them; {} for magnitude.
        method: whose scores are to be kept.
        pattern: the N:M pattern.
        search: how orders are looked for.
        blocks: numbers of the blocks to look at; None for all.

    Columns: block (its number), group, layers, how, constraint, own (the channels as they are),
    unconstrained (the group's best order that the search found), legal (the best that can be had,
    gathers among them), free (the best that costs nothing at run time).
    """

    def scores(group: InputGroup) -> Tensor:
        seen = stats.get(group.name)
        by = method if seen is None or seen.n_tokens else Magnitude()
        return torch.cat([by.score(layer.weight, seen) for layer in group.layers.values()])

    plans = order_plans(model)
    table = plan_table(model)
    if blocks is not None:
        table = table[table["block"].isin(blocks)]
    legal: dict[int, ChannelOrder] = {}
    found = []
    for name in table["group"]:
        plan = plans[name]
        [group] = [g for g in plan.groups if g.name == name]
        own = scores(group)
        if id(plan) not in legal:
            stacked = own if len(plan.groups) == 1 else torch.cat([scores(g) for g in plan.groups])
            legal[id(plan)] = legal_order(stacked, pattern, search, plan.constraint)
        best = legal[id(plan)]
        if plan.constraint == Constraint() and len(plan.groups) == 1:
            free_of_all = best
        else:
            free_of_all = search_order(own, pattern, search)
        shares = {
            "own": retained_share(own, pattern),
            "unconstrained": retained_share(own, pattern, free_of_all),
            "legal": retained_share(own, pattern, best),
        }
        shares["free"] = shares["legal" if plan.how == "free" else "own"]
        found.append({"group": name, **shares})
    columns = ["block", "group", "layers", "how", "constraint"]
    return table[columns].merge(pd.DataFrame(found), on="group", validate="1:1")
