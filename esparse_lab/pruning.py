"""Prune a model block by block: statistics, scores, channel order, masks, weights.

The only module that writes to a model's weights.
"""

import time
import warnings
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor
from tqdm.std import tqdm
from transformers import PreTrainedModel

from esparse_lab.allocation import Allocation
from esparse_lab.architectures import Block, InputGroup, transformer_blocks
from esparse_lab.capture import BlockWalk, block_stats, collect_layer_stats
from esparse_lab.channel_stats import LayerStats, Needs, gram
from esparse_lab.errors import EsparseError, InputError, unknown
from esparse_lab.likelihood import Told
from esparse_lab.masks import Pattern, Sparsity, Unstructured
from esparse_lab.methods import Choice, Magnitude, PruningMethod
from esparse_lab.permutation import ChannelOrder, OrderSearch
from esparse_lab.planner import Constraint, OrderPlan, legal_order, order_plans
from esparse_lab.reconstruction import Reconstruction
from esparse_lab.residual_stream import stream_order
from esparse_lab.rivals import BestOf
from esparse_lab.tuning import BlockTuning
from esparse_lab.twin import DenseTwin, block_error, matched_stats

Calibration = Literal["sequential", "dense", "layerwise", "matched"]
Orders = Literal["mask", "legal", "free", "stream"]
Objective = Literal["score", "output"]


def can_be_ordered(sparsity: Sparsity, allocation: Allocation | None) -> bool:
    """Whether a channel order means something: all layers that are pruned have groups of one M."""
    if not isinstance(sparsity, Pattern):
        return False
    return allocation is None or {p.m for p in allocation.patterns} == {sparsity.m}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a pruned model, besides the model and the calibration tokens.

    Attributes:
        method: chooses the weights to keep.
        pattern: which share of them stays: N:M or unstructured.
        search: orders the channels first; None keeps their order. For N:M alone, with one M in all
            layers: without groups an order changes nothing.
        calibration: "sequential" takes a block's statistics from inputs that the pruned blocks
            before it produced, as Wanda and SparseGPT do; "dense" from the unpruned model;
            "layerwise" also from the pruned layers before it in its own block (SparseGPT's
            --true_sequential); "matched" as layerwise, and `reconstruct` aims at what the dense
            model has in the layer's place (without it, the same as layerwise).
        reconstruct: solves for the kept weights of the mask; None leaves them as the method does.
        allocation: gives each layer a sparsity of its own; None gives all of them `pattern`.
        tuning: moves the kept weights of each finished block towards the dense model's output; None
            leaves them. Wants inputs that pruned blocks made: any calibration but "dense".
        objective: by what the searches of a `BestOf` are compared: the score that their orders keep
            in each layer, or the "output" of each block, pruned by every one of them on trial:
            nearest to the dense model's wins (`twin.relative_error`). The latter takes as many
            times as long, and any calibration but "dense".
        orders: which channel orders may be searched. "mask" takes any: the mask is N:M after the
            permutation alone. "legal" takes those that `fold` can store the weights in, with a
            gather after norms; "free" those that need no gather, so other layers keep theirs;
            "stream" gives these one order for the whole residual stream, which needs no gather.
    """

    method: PruningMethod
    pattern: Sparsity
    search: OrderSearch | None = None
    calibration: Calibration = "sequential"
    reconstruct: Reconstruction | None = None
    allocation: Allocation | None = None
    orders: Orders = "mask"
    tuning: BlockTuning | None = None
    objective: Objective = "score"

    def __post_init__(self) -> None:
        if self.calibration not in get_args(Calibration):
            raise unknown("calibration", self.calibration, get_args(Calibration))
        if self.orders not in get_args(Orders):
            raise unknown("orders", self.orders, get_args(Orders))
        if self.objective not in get_args(Objective):
            raise unknown("objective", self.objective, get_args(Objective))
        if self.objective == "output" and not isinstance(self.search, BestOf):
            raise InputError(
                "The output decides between searches, and this recipe has one at most. Take the "
                "search 'best-of', or the objective 'score'."
            )
        if self.follows_dense_model and self.calibration == "dense":
            raise InputError(
                "Tuning and the objective 'output' read what the pruned blocks before a block make "
                "of the text, and calibration='dense' never runs them. Take another calibration."
            )
        # What DaSS takes from outputs is why its groups run along them.
        if (
            self.orders != "mask"
            and self.method.needs is not None
            and self.method.needs.output_norm
        ):
            raise InputError(
                f"{self.method} has groups of M along the output, so no order of input channels "
                f"makes its weights N:M in memory. Take orders='mask', or another method."
            )
        if self.search is not None and not can_be_ordered(self.pattern, self.allocation):
            menu = "" if self.allocation is None else f" with the menu {self.allocation.menu!r}"
            raise InputError(
                f"A channel order needs the groups of one N:M pattern in every layer; "
                f"{self.pattern}{menu} has none such. Take the search 'none', an N:M pattern or a "
                "menu of one M, the pattern's."
            )

    @property
    def needs(self) -> Needs | None:
        """What must be measured on calibration text, or None for nothing."""
        if self.reconstruct is None:
            return self.method.needs or (Needs() if self.follows_dense_model else None)
        return replace(self.method.needs or Needs(), gram=True)

    @property
    def follows_dense_model(self) -> bool:
        """Whether finished blocks are compared with the dense model's output."""
        return self.tuning is not None or self.objective == "output"

    @property
    def tokens_at_once(self) -> int | None:
        """How many calibration tokens run together, or None for what suits the device."""
        return None if self.tuning is None else self.tuning.tokens

    @property
    def reads_tokens(self) -> bool:
        """Whether the calibration tokens decide anything."""
        return self.needs is not None or self.allocation is not None


@dataclass(frozen=True)
class PrunedLayer:
    """What pruning did to one layer.

    Attributes:
        name: such as "model.layers.3.mlp.down_proj".
        mask: True where the weight was kept, bool [out, in], in the channels' own order, in CPU
            memory. It is `sparsity` under `order`.
        order: the channel order in which the mask is N:M, or None for their own; a layer left dense
            has that of the layers that read the same.
        retained_share: share of the layer's total score that was kept, 0 to 1.
        seconds: time spent scoring, ordering, masking and solving; layers that share an order
            share its time equally. Forward passes are not in it.
        sparsity: what the layer was pruned to; None if it was left dense.
        group_axis: along which axis its groups of M run; only "in" can run on sparse tensor cores.
        n_tokens: calibration tokens that it saw; 0 without calibration, or for an expert that none
            was sent to, which is then pruned by magnitude.
        output_error: |(W - W') X|^2 / |W X|^2 on the calibration tokens, or None where the recipe
            measures no Gram matrix.
        folded: the weights were since stored in `order` (see `fold`); the mask was not.
    """

    name: str
    mask: Tensor
    order: ChannelOrder | None
    retained_share: float
    seconds: float
    sparsity: Sparsity | None = None
    group_axis: Literal["in", "out"] = "in"
    n_tokens: int = 0
    output_error: float | None = None
    folded: bool = False

    def record(self) -> dict:
        """What can be written down of it: all but the mask and the order."""
        return {
            "name": self.name,
            "sparsity": "dense" if self.sparsity is None else str(self.sparsity),
            "group_axis": self.group_axis,
            "kept": int(self.mask.sum()),
            "weights": self.mask.numel(),
            "retained_share": self.retained_share,
            "output_error": self.output_error,
            "n_tokens": self.n_tokens,
            "seconds": self.seconds,
        }


@torch.no_grad()
def prune_model(
    model: PreTrainedModel,
    tokens: Tensor | None,
    recipe: Recipe,
    *,
    progress: bool = True,
    told: Told | None = None,
) -> list[PrunedLayer]:
    """Set the weights that `recipe` drops to zero, in place.

    Layers that read the same activation share one channel order, searched on their stacked scores.
    Kept weights stay as they are, unless the method or the recipe updates them.

    Args:
        model: a supported decoder.
        tokens: calibration tokens, int64 [sequence, position]; may be None for a recipe that needs
            no statistics.
        recipe: what to do.
        progress: show a bar, one step a block.
        told: hears of every block before it is pruned.

    Returns:
        One record a layer, in the order of the data.

    Raises:
        EsparseError: if a weight or an activation is not finite; names the layer. Blocks before it
            are pruned already.
    """
    check_tokens_given(tokens, recipe)
    blocks = transformer_blocks(model)
    walk = None
    if recipe.needs is not None:
        walk = BlockWalk.start(model, tokens, at_once=recipe.tokens_at_once)
    twin = twin_of(walk, recipe)
    sparsities = layer_sparsities(model, tokens, recipe)
    plans = recipe_plans(model, recipe)
    given = _stream_orders(model, tokens, recipe)
    pruned: list[PrunedLayer] = []
    for index in tqdm(range(len(blocks)), "pruning", unit="block", disable=not progress):
        if told is not None:
            told("pruning, block", index, len(blocks))
        pruned += prune_block(blocks[index], walk, twin, index, recipe, sparsities, plans, given)
    return pruned


def _stream_orders(
    model: PreTrainedModel, tokens: Tensor | None, recipe: Recipe
) -> dict[str, ChannelOrder]:
    """The order of the residual stream, from the dense model; empty for other `orders`."""
    if recipe.orders != "stream" or recipe.search is None:
        return {}
    needs = recipe.method.needs
    stats = {} if needs is None else collect_layer_stats(model, tokens, needs=needs, progress=False)
    return stream_order(model, stats, recipe.method, recipe.pattern, recipe.search)


def recipe_plans(model: PreTrainedModel, recipe: Recipe) -> dict[str, OrderPlan]:
    """The plan that the order of each group must follow; empty where any order may be taken."""
    if recipe.orders == "mask" or recipe.search is None:
        return {}
    plans = order_plans(model)
    if recipe.orders != "free":
        return plans
    return {
        name: plan if plan.how == "free" else replace(plan, constraint=None)
        for name, plan in plans.items()
    }


def check_tokens_given(tokens: Tensor | None, recipe: Recipe) -> None:
    """Raise `InputError` if `recipe` measures something and there is no text."""
    if tokens is None and recipe.needs is not None:
        raise InputError(f"{recipe} needs calibration tokens, got None.")


def twin_of(walk: BlockWalk | None, recipe: Recipe) -> DenseTwin | None:
    """The dense model's run beside `walk`, where the recipe compares with it."""
    wanted = matches_layers(recipe) or recipe.follows_dense_model
    return DenseTwin.of(walk) if walk is not None and wanted else None


def matches_layers(recipe: Recipe) -> bool:
    """Whether layers aim at what the dense model has in their place."""
    return recipe.calibration == "matched" and recipe.reconstruct is not None


def layer_sparsities(
    model: PreTrainedModel, tokens: Tensor | None, recipe: Recipe
) -> dict[str, Sparsity | None]:
    """What each layer is to be pruned to; None for dense."""
    blocks = transformer_blocks(model)
    if recipe.allocation is None:
        return {name: recipe.pattern for block in blocks for name in block.layers}
    return recipe.allocation.assign(model, tokens)


def prune_block(
    block: Block,
    walk: BlockWalk | None,
    twin: DenseTwin | None,
    index: int,
    recipe: Recipe,
    sparsities: dict[str, Sparsity | None],
    plans: Mapping[str, OrderPlan] = {},
    given: Mapping[str, ChannelOrder] = {},
) -> list[PrunedLayer]:
    """Prune block number `index` in place and move the walks on to the next one."""
    stats: dict[str, LayerStats] = {}
    more = walk is not None and index + 1 < len(walk.blocks)
    if walk is not None and recipe.calibration in ("sequential", "dense"):
        stats = block_stats(walk, index, recipe.needs)
    if more and recipe.calibration == "dense":
        walk.advance(index)
    if twin is not None:
        twin.enter(index)
    tried = [recipe]
    if recipe.objective == "output":
        tried = [
            replace(recipe, search=search, objective="score") for search in recipe.search.searches
        ]
    aims = twin.outputs(index) if recipe.follows_dense_model else None

    def prune(by: Recipe) -> list[PrunedLayer]:
        return _prune_groups(block, walk, twin, index, by, stats, sparsities, plans, given)

    best = tried[0]
    if len(tried) > 1:
        errors = []
        for by in tried:
            prune(by)
            errors.append(block_error(walk, index, aims))
            twin.restore(block)
        best = tried[errors.index(min(errors))]
    pruned = prune(best)
    if recipe.tuning is not None:
        recipe.tuning.tune(walk, index, aims)
    if more and twin is not None:
        twin.advance(index, aims)
    if more and recipe.calibration != "dense":
        walk.advance(index)
    if walk is not None and (unseen := [p.name for p in pruned if not p.n_tokens]):
        some = ", ".join(unseen[:3]) + (f" and {len(unseen) - 3} more" if unseen[3:] else "")
        warnings.warn(
            f"{some}: no calibration token was sent here, so magnitude alone decides. Calibrate on "
            "more tokens.",
            stacklevel=3,
        )
    return pruned


def _prune_groups(
    block: Block,
    walk: BlockWalk | None,
    twin: DenseTwin | None,
    index: int,
    recipe: Recipe,
    stats: dict[str, LayerStats],
    sparsities: dict[str, Sparsity | None],
    plans: Mapping[str, OrderPlan],
    given: Mapping[str, ChannelOrder],
) -> list[PrunedLayer]:
    """Prune block number `index`, group by group; `stats` holds those that no group changes."""
    orders: dict[str, ChannelOrder | None] = dict(given)
    pruned: list[PrunedLayer] = []
    for number, group in enumerate(block.groups):
        numbers = (number,)
        if group.name in plans and group.name not in orders:
            numbers = plans[group.name].numbers
        if twin is not None and matches_layers(recipe):
            of_groups = [matched_stats(walk, twin, index, n, recipe.needs) for n in numbers]
            stats = dict(ChainMap(*of_groups))
        elif walk is not None and recipe.calibration in ("layerwise", "matched"):
            stats = block_stats(walk, index, recipe.needs, numbers=numbers)
        mates = [block.groups[n] for n in numbers]
        pruned += _prune_group(group, mates, stats, recipe, sparsities, plans, orders)
    return pruned


def _prune_group(
    group: InputGroup,
    mates: list[InputGroup],
    stats: dict[str, LayerStats],
    recipe: Recipe,
    sparsities: dict[str, Sparsity | None],
    plans: Mapping[str, OrderPlan],
    orders: dict[str, ChannelOrder | None],
) -> list[PrunedLayer]:
    """Prune the layers that read one activation; `orders` takes the order found for its `mates`."""
    for name, layer in group.layers.items():
        low, high = layer.weight.aminmax()  # one pass: both are NaN if any weight is
        if not (low.isfinite() & high.isfinite()):
            broken = int((~layer.weight.isfinite()).sum())
            raise EsparseError(
                f"{name}: {broken} of {layer.weight.numel()} weights are NaN or infinite. Load "
                "the model from an intact checkpoint."
            )
    started = time.perf_counter()
    try:
        if group.name not in orders:
            constraint = plans[group.name].constraint if plans else Constraint()
            order = _find_order(mates, stats, recipe, sparsities, constraint)
            orders |= {mate.name: order for mate in mates}
        recipe, of_group = _seen(recipe, stats.get(group.name))
        return _prune_named(group, of_group, recipe, sparsities, orders[group.name], started)
    except EsparseError as error:
        raise type(error)(f"{group.name}: {error}") from error


def _seen(recipe: Recipe, stats: LayerStats | None) -> tuple[Recipe, LayerStats | None]:
    """The recipe for a group, and its statistics: magnitude for experts that saw no token."""
    if stats is None or stats.n_tokens:
        return recipe, stats
    return replace(recipe, method=Magnitude(), reconstruct=None), None


def _find_order(
    groups: list[InputGroup],
    stats: dict[str, LayerStats],
    recipe: Recipe,
    sparsities: dict[str, Sparsity | None],
    constraint: Constraint | None,
) -> ChannelOrder | None:
    """The channel order of groups that share one, searched on the scores of all their layers."""
    if recipe.search is None or constraint is None:
        return None
    scores = []
    for group in groups:
        of_recipe, of_group = _seen(recipe, stats.get(group.name))
        if of_group is None and recipe.needs is not None and len(groups) > 1:
            continue  # magnitudes cannot be compared with what the others are scored by
        for name, layer in group.layers.items():
            if sparsities[name] is not None:
                score = of_recipe.method.score(layer.weight, of_group)
                out = of_recipe.method.group_axis(of_group) == "out"
                scores.append(score.T if out else score)
    if not scores:
        return None
    return legal_order(torch.cat(scores), recipe.pattern, recipe.search, constraint)


def _prune_named(
    group: InputGroup,
    stats: LayerStats | None,
    recipe: Recipe,
    sparsities: dict[str, Sparsity | None],
    order: ChannelOrder | None,
    started: float,
) -> list[PrunedLayer]:
    method = recipe.method
    axis = method.group_axis(stats)
    outcomes: dict[str, Choice] = {}
    for names in _stackable(group, method, sparsities):
        rows = [group.layers[name].weight for name in names]
        stacked = torch.cat(rows) if len(rows) > 1 else rows[0]
        outcome = _outcome(stacked, stats, sparsities[names[0]], order, axis, recipe)
        lengths = [len(r) for r in rows]
        parts = [
            [None] * len(rows) if whole is None else whole.split(lengths)
            for whole in (outcome.mask, outcome.weight, outcome.scores)
        ]
        outcomes |= {n: Choice(*of_layer) for n, *of_layer in zip(names, *parts, strict=True)}
    errors = {}
    for name, outcome in outcomes.items():
        layer = group.layers[name]
        errors[name] = output_error(layer.weight, outcome, stats)
        if outcome.weight is not None:
            layer.weight.copy_(outcome.weight)
        layer.weight.masked_fill_(~outcome.mask, 0)
    seconds = (time.perf_counter() - started) / len(group.layers)
    return [
        PrunedLayer(
            name,
            outcomes[name].mask.cpu(),
            order,
            kept_share(outcomes[name]),
            seconds,
            sparsities[name],
            axis,
            0 if stats is None else stats.n_tokens,
            errors[name],
        )
        for name in group.layers
    ]


def _stackable(
    group: InputGroup, method: PruningMethod, sparsities: dict[str, Sparsity | None]
) -> list[list[str]]:
    """The group's layers in lists that can be pruned as one matrix, each to one sparsity."""
    lists: dict[object, list[str]] = {}
    for name in group.layers:
        sparsity = sparsities[name]
        whole = isinstance(sparsity, Unstructured) and sparsity.within == "layer"
        together = method.rows_are_apart and not whole
        lists.setdefault(sparsity if together else name, []).append(name)
    return list(lists.values())


def _outcome(
    weight: Tensor,
    stats: LayerStats | None,
    sparsity: Sparsity | None,
    order: ChannelOrder | None,
    axis: Literal["in", "out"],
    recipe: Recipe,
) -> Choice:
    """What becomes of one matrix, its channels in their own order."""
    if sparsity is None:
        return Choice(torch.ones_like(weight, dtype=torch.bool))
    choose = recipe.method.choose
    if order is None:
        choice = choose(weight, stats, sparsity)
    elif axis == "out":
        back = order.inverse
        of_rows = replace(stats, output_norm=stats.output_norm[order.index])
        choice = choose(weight[order.index], of_rows, sparsity)
        choice = Choice(choice.mask[back], scores=choice.scores[back])
    else:
        back = order.inverse
        permuted = None if stats is None else stats.ordered(order.index)
        choice = choose(weight[:, order.index], permuted, sparsity)
        updated = None if choice.weight is None else choice.weight[:, back]
        choice = Choice(choice.mask[:, back], updated, choice.scores[:, back])
    if recipe.reconstruct is not None:
        solved = recipe.reconstruct.solve(weight, choice.mask, stats)
        choice = replace(choice, weight=solved)
    return choice


def kept_share(outcome: Choice) -> float:
    """Share of the layer's total score that is kept, 0 to 1; 1 of nothing."""
    if outcome.scores is None:
        return 1.0
    # Summed row by row, then in float64: no wide copy of the matrix.
    total = float(outcome.scores.sum(dim=1).double().sum())
    kept = float((outcome.scores * outcome.mask).sum(dim=1).double().sum())
    return kept / total if total else 1.0


def output_error(weight: Tensor, outcome: Choice, stats: LayerStats | None) -> float | None:
    """|(W - W') X|^2 / |W X|^2 from the Gram matrix, before `weight` is overwritten."""
    if stats is None or stats.gram is None:
        return None
    dense = weight.float()
    after = dense * outcome.mask if outcome.weight is None else outcome.weight.float()
    # Summed over rows, e G e^T is the product of G with the rows' own Gram matrix: half the work.
    lost, whole = (float((stats.gram * gram(w)).double().sum()) for w in (dense - after, dense))
    return max(lost, 0.0) / whole if whole else 0.0
