"""Plans say what can be had, searches keep to it, and tables tell what that costs."""

import itertools

import pytest
import torch
from tiny_models import TINY_CONFIGS, random_model
from whole_forward import matrix

from esparse_lab import (
    BlockShuffle,
    ChannelOrder,
    DaSS,
    GlobalShuffle,
    InputError,
    Magnitude,
    Pattern,
    Recipe,
    Wanda,
    collect_layer_stats,
    fold,
    fold_orders,
    legal_order,
    legality_table,
    nm_mask,
    order_plans,
    plan_table,
    prunable_layers,
    prune_model,
    residual_stream,
    retained_share,
)
from esparse_lab.planner import Constraint

PATTERN = Pattern(2, 4)
SWAPS = BlockShuffle(block=12, start=None)


def test_the_plan_of_a_llama_block():
    table = plan_table(random_model("llama")).query("block == 1").set_index("layers")
    found = table[["how", "constraint", "where"]].to_dict("index")
    assert found == {
        "self_attn.q_proj, self_attn.k_proj, self_attn.v_proj": {
            "how": "gather",
            "constraint": "any order",
            "where": "input_layernorm",
        },
        "self_attn.o_proj": {
            "how": "free",
            "constraint": "within heads of 8, alike in 3 query heads",
            "where": "self_attn.v_proj",
        },
        "mlp.gate_proj, mlp.up_proj": {
            "how": "gather",
            "constraint": "any order",
            "where": "post_attention_layernorm",
        },
        "mlp.down_proj": {
            "how": "free",
            "constraint": "any order",
            "where": "mlp.gate_proj, mlp.up_proj",
        },
    }


@pytest.mark.parametrize("model_type", TINY_CONFIGS)
def test_every_layer_has_a_plan_and_a_reason(model_type):
    model = random_model(model_type)
    planned = [n for p in order_plans(model).values() for g in p.groups for n in g.layers]
    assert set(planned) == set(prunable_layers(model))
    table = plan_table(model)
    assert table.group.is_unique
    assert (table.why.str.len() > 20).all()
    assert set(table.how) == {"free", "gather"}


def test_what_cannot_be_had_says_why():
    behind = plan_table(random_model("opt", do_layer_norm_before=False))
    fixed = behind[behind.how == "impossible"]
    assert len(fixed) == 2 * 3
    assert fixed.why.str.contains("do_layer_norm_before=False: .* residual stream").all()
    model = random_model("llama")
    model.config.model_type = "of nobody"
    table = plan_table(model)
    assert set(table.how) == {"impossible"}
    assert table.why.str.contains("no entry in architectures.py").all()


def test_experts_and_their_router_share_one_gather():
    model = random_model("qwen2_moe")
    plan = order_plans(model)["model.layers.1.mlp.experts.2.gate_up_proj"]
    assert [g.name.split("mlp.")[1] for g in plan.groups] == [
        "shared_expert.gate_proj",
        *[f"experts.{e}.gate_up_proj" for e in range(4)],
    ]
    assert [path.split("mlp.")[1] for path in plan.also_read] == ["gate", "shared_expert_gate"]


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "falcon"])
@pytest.mark.parametrize("calibration", ["sequential", "layerwise"])
def test_layers_behind_one_gather_get_one_order(model_type, calibration, tokens):
    model = random_model(model_type)
    recipe = Recipe(Wanda(), PATTERN, SWAPS, calibration, orders="legal")
    orders = {p.name: p.order for p in prune_model(model, tokens, recipe, progress=False)}
    for plan in order_plans(model).values():
        of_plan = {id(orders[n]): orders[n] for g in plan.groups for n in g.layers}
        [order] = of_plan.values()
        plan.constraint.source_order(order)  # raises unless it is legal


def test_tied_layers_are_ordered_for_the_sum_of_their_scores():
    model = random_model("falcon")
    block = "transformer.h.1"
    names = [f"{block}.self_attention.query_key_value", f"{block}.mlp.dense_h_to_4h"]
    stacked = torch.cat([matrix(model, name).abs() for name in names])
    recipe = Recipe(Magnitude(), PATTERN, GlobalShuffle(), orders="legal")
    pruned = {p.name: p for p in prune_model(model, None, recipe, progress=False)}
    best_first = stacked.double().mean(dim=0).argsort(descending=True, stable=True)
    dealt = [int(best_first[slot * 6 + group]) for group in range(6) for slot in range(4)]
    assert all(pruned[name].order.index.tolist() == dealt for name in names)


def groupings_of_8() -> list[list[int]]:
    """One order for each way to part 8 channels into two groups of 4."""
    halves = [half for half in itertools.combinations(range(8), 4) if 0 in half]
    return [[*half, *(c for c in range(8) if c not in half)] for half in halves]


@pytest.mark.parametrize("repeats", [1, 2])
def test_the_search_within_heads_sees_the_whole_objective(repeats):
    """Against the optimum, found by trying all 35 orders of every key-value head."""
    scores = torch.rand(5, 32, generator=torch.Generator().manual_seed(5)) ** 3
    # Key-value heads do not touch each other: the best of each makes the best of all.
    best = sum(
        max(
            sum(float((x[:, i] * nm_mask(x[:, i], PATTERN)).sum()) for x in group.split(8, dim=1))
            for i in groupings_of_8()
        )
        for group in scores.split(8 * repeats, dim=1)
    )
    constraint = Constraint(8, repeats)
    order = legal_order(scores, PATTERN, BlockShuffle(block=8), constraint)
    constraint.source_order(order)
    found = retained_share(scores, PATTERN, order) * float(scores.sum())
    assert 0.995 * best < found < 1.00001 * best
    assert found > retained_share(scores, PATTERN) * float(scores.sum())


def test_heads_that_hold_no_whole_groups_never_lose():
    generator = torch.Generator().manual_seed(6)
    for _ in range(20):
        scores = torch.rand(4, 36, generator=generator) ** 3
        for constraint in (Constraint(6), Constraint(6, 2)):
            order = legal_order(scores, PATTERN, BlockShuffle(block=12), constraint)
            constraint.source_order(order)
            assert retained_share(scores, PATTERN, order) >= retained_share(scores, PATTERN)


def test_the_order_of_the_sources_by_hand():
    # Two kv heads of 2 channels, each read by two query heads.
    order = ChannelOrder(torch.tensor([1, 0, 3, 2, 4, 5, 6, 7]))
    assert Constraint(2, 2).source_order(order).tolist() == [1, 0, 2, 3]
    assert Constraint(2).source_order(order).tolist() == order.index.tolist()
    assert Constraint().source_order(order).tolist() == order.index.tolist()
    for broken in ([1, 0, 2, 3, 4, 5, 6, 7], [2, 1, 0, 3, 4, 5, 6, 7]):
        with pytest.raises(InputError, match="not within heads of 2, alike in 2 query heads"):
            Constraint(2, 2).source_order(ChannelOrder(torch.tensor(broken)))


def test_without_a_choice_channels_stay():
    scores = torch.rand(3, 8, generator=torch.Generator().manual_seed(1))
    assert legal_order(scores, PATTERN, SWAPS, None).index.tolist() == list(range(8))


def test_what_legality_costs(tiny_llama, tokens):
    stats = collect_layer_stats(tiny_llama, tokens, histogram=None, progress=False)
    table = legality_table(tiny_llama, stats, Wanda(), PATTERN, SWAPS).set_index("group")
    gather, free = table[table.how == "gather"], table[table.how == "free"]
    assert (table.unconstrained >= table.own).all()
    assert (gather.legal == gather.unconstrained).all()
    assert (gather.free == gather.own).all()
    assert (free.free == free.legal).all()
    heads = table[table.constraint.str.contains("heads")]
    assert len(heads) == 3
    assert ((heads.own <= heads.legal) & (heads.legal < heads.unconstrained)).all()
    name = "model.layers.0.mlp.gate_proj"
    rows = [matrix(tiny_llama, n) for n in (name, name.replace("gate", "up"))]
    scores = torch.cat(rows).abs() * stats[name].norm
    kept = float((scores * nm_mask(scores, PATTERN)).sum() / scores.sum())
    assert table.own[name] == pytest.approx(kept, rel=1e-5)


def test_the_stream_counts_every_layer_alike(tiny_llama):
    layers = tiny_llama.model.layers
    layers[1].mlp.up_proj.weight.data *= 1000  # must not outvote the others
    names = [f"model.layers.{i}.{n}" for i in range(3) for n in (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"
    )]  # fmt: skip
    shares = [matrix(tiny_llama, n).abs() / matrix(tiny_llama, n).abs().sum() for n in names]
    best_first = torch.cat(shares).double().mean(dim=0).argsort(descending=True, stable=True)
    dealt = [int(best_first[slot * 6 + group]) for group in range(6) for slot in range(4)]
    recipe = Recipe(Magnitude(), PATTERN, GlobalShuffle(), orders="stream")
    pruned = {p.name: p for p in prune_model(tiny_llama, None, recipe, progress=False)}
    assert all(pruned[name].order.index.tolist() == dealt for name in names)


def test_families_that_are_only_traced_keep_their_orders(tiny_llama):
    tiny_llama.config.model_type = "of nobody"
    recipe = Recipe(Magnitude(), PATTERN, GlobalShuffle(), orders="stream")
    with pytest.raises(InputError, match="'of nobody' are not described"):
        prune_model(tiny_llama, None, recipe, progress=False)
    recipe = Recipe(Magnitude(), PATTERN, GlobalShuffle(), orders="legal")
    layers = prune_model(tiny_llama, None, recipe, progress=False)
    assert all(layer.order is None for layer in layers)
    fold(tiny_llama, layers)
    same = ChannelOrder(torch.arange(23, -1, -1))
    square = {n: same for n, m in prunable_layers(tiny_llama).items() if m.weight.shape[1] == 24}
    with pytest.raises(InputError, match="cannot have an order of its own: the family has no"):
        fold_orders(tiny_llama, square)


def test_large_models_are_searched_by_every_kth_row(tiny_llama, monkeypatch):
    monkeypatch.setattr(residual_stream, "MOST_ROWS", 100)  # of 360: every 4th
    found = residual_stream.stream_order(tiny_llama, {}, Magnitude(), PATTERN, GlobalShuffle())
    names = [n for p in residual_stream.stream_readers(tiny_llama, order_plans(tiny_llama))
             for g in p.groups for n in g.layers]  # fmt: skip
    thinned = [matrix(tiny_llama, n).abs()[::4] for n in names]
    thinned = torch.cat([rows / rows.sum() for rows in thinned])
    assert thinned.shape[0] == 90
    best = int(thinned.double().mean(dim=0).argmax())
    assert {order.index[0].item() for order in found.values()} == {best}


def test_dass_has_no_order_to_fold():
    with pytest.raises(InputError, match="groups of M along the output"):
        Recipe(DaSS(), PATTERN, SWAPS, orders="legal")
    with pytest.raises(InputError, match="Did you mean 'legal'"):
        Recipe(Wanda(), PATTERN, SWAPS, orders="leagl")
