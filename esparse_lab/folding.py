"""Store a model's weights in the channel orders under which they are N:M, for good.

The folded model computes what it computed before: whatever makes an activation makes it in the new
order (see `planner`), and a norm that cannot gathers its output.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from esparse_lab.architectures import transformer_blocks
from esparse_lab.blocks import LINEAR
from esparse_lab.errors import InputError, unknown
from esparse_lab.gathered_norm import GatheredNorm
from esparse_lab.permutation import ChannelOrder
from esparse_lab.planner import OrderPlan, order_plans
from esparse_lab.pruning import PrunedLayer
from esparse_lab.residual_stream import stream_readers


def gathered_norms(model: nn.Module) -> dict[str, GatheredNorm]:
    """The norms of a folded model that gather, by path."""
    return {path: m for path, m in model.named_modules() if isinstance(m, GatheredNorm)}


def gather_after(model: nn.Module, path: str, index: Tensor) -> None:
    """Let the norm at `path` hand its output over in the order `index`."""
    norm = model.get_submodule(path)
    if isinstance(norm, GatheredNorm):
        norm.index = norm.index[index]
    else:
        model.set_submodule(path, GatheredNorm(norm, index.clone()))


def fold(model: PreTrainedModel, layers: Iterable[PrunedLayer]) -> list[PrunedLayer]:
    """Store a pruned model's weights in the orders that its masks were found under, in place.

    Its logits stay the same but for rounding, and the stored matrices are N:M as they lie in
    memory. Prune with `Recipe(orders="legal")` or `"free"`, whose orders can all be folded.

    Args:
        model: what `prune_model` pruned.
        layers: what it returned.

    Returns:
        The same records, marked as folded.

    Raises:
        InputError: as `fold_orders`; also if a record is folded already.
    """
    layers = list(layers)
    if done := [layer.name for layer in layers if layer.folded]:
        raise InputError(f"{done[0]} is folded already: its weights are stored in its order.")
    fold_orders(model, {p.name: p.order for p in layers if p.order is not None})
    return [replace(layer, folded=True) for layer in layers]


@torch.no_grad()
def fold_orders(model: PreTrainedModel, orders: Mapping[str, ChannelOrder]) -> None:
    """Store layers' input channels in `orders`, and make what they read to match, in place.

    Where all layers that read the residual stream have one order, embeddings, norms, head and all
    that writes to it take it, and nothing is gathered.

    Args:
        model: of a family that `architectures.py` describes.
        orders: by layer; layers that read one activation must all have the same one.

    Raises:
        InputError: an order that does not fit its layer or that the model's plan does not allow,
            layers of one activation with different orders, a layer that is not there, or a
            parameter that is shared with another module. Nothing has been changed then.
    """
    plans = order_plans(model)
    if strange := set(orders) - {n for p in plans.values() for g in p.groups for n in g.layers}:
        known = [name for plan in plans.values() for g in plan.groups for name in g.layers]
        raise unknown("layer", min(strange), known)
    moves = _Moves(model)
    ordered = {
        id(plan): (plan, order)
        for plan in plans.values()
        if (order := _order_of(plan, orders)) is not None
    }
    if stream := _one_order([ordered.get(id(plan)) for plan in stream_readers(model, plans)]):
        _stream_moves(moves, model, plans, stream)
    for plan, order in ordered.values():
        if plan.writers or stream is None:
            _plan_moves(moves, model, plan, order)
    moves.refuse_shared()
    moves.make()


def _one_order(found: list[tuple[OrderPlan, ChannelOrder] | None]) -> ChannelOrder | None:
    """The order that all plans have, if they have one."""
    if not found or None in found:
        return None
    orders = [order for _, order in found]
    same = all(torch.equal(order.index, orders[0].index) for order in orders)
    return orders[0] if same else None


def _stream_moves(
    moves: "_Moves", model: PreTrainedModel, plans: Mapping[str, OrderPlan], order: ChannelOrder
) -> None:
    """Everything that makes, reads or writes the residual stream, in one order."""
    index, hidden = order.index, len(order.index)
    blocks = transformer_blocks(model)
    inside = {id(p) for block in blocks for p in block.module.parameters()}
    if gathered := list(gathered_norms(model)):
        raise InputError(f"{gathered[0]} gathers already: order the residual stream before that.")
    for plan in {id(plan): plan for plan in plans.values()}.values():
        for name, matrix in ((n, m) for g in plan.groups for n, m in g.layers.items()):
            axis = 0 if plan.writers else 1  # what attention and MLPs end with writes to the stream
            moves.rewrites.append((matrix.weight, matrix.stored, name, axis, index))
            if plan.writers and matrix.bias is not None:
                moves.rewrites.append((matrix.bias.data, matrix.bias, f"{name}.bias", 0, index))
        for path in plan.also_read:
            weight = model.get_submodule(path).weight
            moves.rewrites.append((weight.data, weight, path, 1, index))
    for block in blocks:
        for name, norm in block.module.named_children():
            own = () if isinstance(norm, LINEAR) else norm.parameters(recurse=False)
            for p in own:
                moves.rewrites.append((p.data, p, f"{block.name}.{name}", 0, index))
    # Another model inside (of images) has a stream of its own.
    others = [m for m in model.modules() if isinstance(m, PreTrainedModel) and m is not model]
    others = [m for m in others if not inside & {id(p) for p in m.parameters()}]
    inside |= {id(p) for other in others for p in other.parameters()}
    for p in model.parameters():  # tied ones once: they are permuted alike
        if id(p) not in inside and hidden in p.shape:
            moves.outside.append((p.data, p.dim() - 1 if p.shape[-1] == hidden else 0, index))


@dataclass
class _Moves:
    """What is to be rewritten, collected before anything is.

    Attributes:
        model: whose weights.
        rewrites: a view [.., axis, ..] of a parameter, its name, the axis and the order along it.
        gathers: norms to gather, by path.
        outside: embeddings, norms and head around the blocks: views, axes and orders.
    """

    model: nn.Module
    rewrites: list[tuple[Tensor, nn.Parameter, str, int, Tensor]] = field(default_factory=list)
    gathers: dict[str, Tensor] = field(default_factory=dict)
    outside: list[tuple[Tensor, int, Tensor]] = field(default_factory=list)

    def refuse_shared(self) -> None:
        """Raise `InputError` if something to be changed is used in more than one place."""
        places: dict[int, list[str]] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            places.setdefault(parameter.untyped_storage().data_ptr(), []).append(name)
        for _, parameter, what, _, _ in self.rewrites:
            names = places[parameter.untyped_storage().data_ptr()]
            if len(names) > 1:
                raise InputError(
                    f"{what} cannot be folded: its weights are shared by {' and '.join(names)}, "
                    "and an order of one would reorder the other. Untie them, or prune with "
                    "orders='mask'."
                )
        uses = Counter(id(m) for _, m in self.model.named_modules(remove_duplicate=False))
        for path in self.gathers:
            if uses[id(self.model.get_submodule(path))] > 1:
                raise InputError(
                    f"{path} cannot gather its output: the same module is used elsewhere too."
                )

    def make(self) -> None:
        """Rewrite everything."""
        inside = [(view, axis, index) for view, _, _, axis, index in self.rewrites]
        for view, axis, index in inside + self.outside:
            view.copy_(view.index_select(axis, index.to(view.device)))
        for path, index in self.gathers.items():
            gather_after(self.model, path, index)


def _order_of(plan: OrderPlan, orders: Mapping[str, ChannelOrder]) -> ChannelOrder | None:
    """The one order of an activation, or None for the channels' own."""
    names = [name for group in plan.groups for name in group.layers]
    given = {name: orders[name] for name in names if name in orders}
    if not given:
        return None
    first, order = next(iter(given.items()))
    layers = {name: layer for group in plan.groups for name, layer in group.layers.items()}
    for name in names:
        channels = layers[name].weight.shape[1]
        if name in given and len(given[name].index) != channels:
            raise InputError(
                f"{name} reads {channels} channels, its order holds {len(given[name].index)}."
            )
        if name not in given or not torch.equal(given[name].index.cpu(), order.index.cpu()):
            has = "has another order" if name in given else "has none"
            raise InputError(
                f"{first} and {name} read one activation, which comes in one order, but {name} "
                f"{has}. Prune with orders='legal'."
            )
    index = order.index.cpu()
    return None if torch.equal(index, torch.arange(len(index))) else ChannelOrder(index)


def _plan_moves(
    moves: _Moves, model: PreTrainedModel, plan: OrderPlan, order: ChannelOrder
) -> None:
    name = plan.groups[0].name
    if plan.constraint is None:
        raise InputError(f"{name} cannot have an order of its own: {plan.why}.")
    try:
        sources = plan.constraint.source_order(order)
    except InputError as error:
        raise InputError(f"{name}: {error} Prune with orders='legal'.") from error
    for group in plan.groups:
        for layer, matrix in group.layers.items():
            moves.rewrites.append((matrix.weight, matrix.stored, layer, 1, order.index))
    for path in plan.also_read:
        weight = model.get_submodule(path).weight
        moves.rewrites.append((weight.data, weight, path, 1, order.index))
    if plan.norm is not None:
        device = plan.groups[0].layers[name].weight.device
        moves.gathers[plan.norm] = order.index.to(device)
    for writer in plan.writers:
        rows = writer.rows(len(sources), plan.constraint.head)
        index = torch.arange(len(writer.matrix.weight))
        index[rows] = rows[sources]
        weight, bias = writer.matrix.weight, writer.matrix.bias
        moves.rewrites.append((weight, writer.matrix.stored, writer.name, 0, index))
        if bias is not None:
            moves.rewrites.append((bias.data, bias, f"{writer.name}.bias", 0, index))
