"""Every allocation meets its target over all weights; each follows its paper's rule."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from esparse_lab import (
    ALLOCATIONS,
    Allocation,
    HessianSensitivity,
    InputError,
    Magnitude,
    OutlierShare,
    Pattern,
    Recipe,
    Uniform,
    Unstructured,
    Wanda,
    hessian_traces,
    outlier_shares,
    prunable_layers,
    prune_model,
)

every_allocation = pytest.mark.parametrize("kind", ALLOCATIONS.values(), ids=ALLOCATIONS)
MENUS = {"unstructured": 0.55, "3:8, 4:8, 5:8": 0.5, "1:4,2:4,3:4,dense": 0.4, "dense, 2:4": 0.6}


@dataclass(frozen=True)
class Given(Allocation):
    """Densities as a test wants them: down projections as much above the rest as can be."""

    spread: ClassVar[float] = 0.1

    def scores(self, model, tokens):
        return {n: float(n.endswith("down_proj")) for n in prunable_layers(model)}


@every_allocation
@pytest.mark.parametrize("menu", MENUS)
def test_the_pruned_model_keeps_the_target(kind, menu, tiny_llama, tokens):
    allocation = kind(MENUS[menu], menu)
    layers = prunable_layers(tiny_llama)
    dense = {name: layer.weight.clone() for name, layer in layers.items()}
    recipe = Recipe(Wanda(), Pattern(2, 4), allocation=allocation)
    pruned = prune_model(tiny_llama, tokens, recipe, progress=False)
    kept = sum(int(layer.mask.sum()) for layer in pruned)
    total = allocation.target * sum(w.numel() for w in dense.values())
    # Layers have 8, 24 or 40 rows of 24 or 40 weights; menus step by one weight of 8 or two of 4.
    assert abs(kept - total) < (8 if menu == "unstructured" else 8 * 24 / 2)
    for layer in pruned:
        if layer.sparsity is None:
            assert layer.mask.all()
            assert torch.equal(layers[layer.name].weight, dense[layer.name])
        elif isinstance(layer.sparsity, Pattern):
            assert str(layer.sparsity) in menu
            assert float(layer.mask.float().mean()) == layer.sparsity.density
        else:
            per_row = layer.sparsity.kept(layer.mask.shape[1])
            assert (layer.mask.sum(dim=1) == per_row).all()


@every_allocation
def test_wanted_densities_average_to_the_target_within_the_spread(kind, tiny_llama, tokens):
    allocation = kind(0.6)
    wanted = allocation.wanted(tiny_llama, tokens)
    sizes = {name: layer.weight.numel() for name, layer in prunable_layers(tiny_llama).items()}
    assert list(wanted) == list(sizes)
    mean = sum(wanted[n] * sizes[n] for n in sizes) / sum(sizes.values())
    assert mean == pytest.approx(0.6, abs=1e-12)
    assert max(abs(w - 0.6) for w in wanted.values()) <= allocation.spread + 1e-12
    assert wanted == allocation.wanted(tiny_llama, tokens)


def test_layers_that_want_more_get_more(tiny_llama):
    # Down projections are 960 of 4416 weights a block: cut at 0.6, the rest has what is left.
    rest = (0.5 * 4416 - 0.6 * 960) / (4416 - 960)
    wanted = Given(0.5).wanted(tiny_llama, None)
    for name, density in wanted.items():
        expected = 0.6 if name.endswith("down_proj") else rest
        assert density == pytest.approx(expected, abs=1e-12)
    # 0.5 of 2:4 everywhere, and three dense layers of 960 / 2 more weights.
    target = 0.5 + 480 / 4416
    for name, sparsity in Given(target, "2:4, dense").assign(tiny_llama, None).items():
        assert sparsity == (None if name.endswith("down_proj") else Pattern(2, 4))
    assigned = Given(0.5).assign(tiny_llama, None)
    assert assigned["model.layers.1.mlp.down_proj"] == Unstructured(24 / 40)


def test_shorter_last_groups_are_counted(tiny_llama):
    # At 8:16 a row of 24 keeps 8 + 8 weights, one of 40 keeps 8 + 8 + 8: 64 + 80 rows of 24 and 24
    # rows of 40 a block.
    kept = 16 * (64 + 80) + 24 * 24
    allocation = Uniform(kept / 4416, "8:16")
    recipe = Recipe(Magnitude(), Pattern(2, 4), allocation=allocation)
    pruned = prune_model(tiny_llama, None, recipe, progress=False)
    assert sum(int(layer.mask.sum()) for layer in pruned) == 3 * kept


def test_uniform_gives_all_layers_the_same_where_it_can(tiny_llama):
    assert set(Uniform(0.5).assign(tiny_llama, None).values()) == {Unstructured(0.5)}
    menu = "3:8,4:8,5:8"
    assert set(Uniform(0.5, menu).assign(tiny_llama, None).values()) == {Pattern(4, 8)}
    assert set(Uniform(0.5, "dense,2:4").assign(tiny_llama, None).values()) == {Pattern(2, 4)}


def test_uniform_strews_the_dense_layers_over_the_depth(tiny_llama):
    assigned = Uniform(0.75, "dense,2:4").assign(tiny_llama, None)
    for block in range(3):
        of_block = [s for n, s in assigned.items() if f".{block}." in n]
        assert {None, Pattern(2, 4)} == set(of_block)


@pytest.mark.parametrize("per_weight", [True, False])
def test_hessian_sensitivity_steps_by_rank(per_weight, tiny_llama, tokens):
    allocation = HessianSensitivity(0.55, probes=2, sequences=3, seed=4, per_weight=per_weight)
    traces = hessian_traces(tiny_llama, tokens[:3], probes=2, seed=4)
    sizes = np.array([layer.weight.numel() for layer in prunable_layers(tiny_llama).values()])
    sensitivity = np.array([float(t.mean()) for t in traces.values()])
    rank = rankdata(sensitivity / sizes if per_weight else sensitivity) - 1
    paper = 0.45 + rank * 0.2 / 20  # Alg. 1: L = 0.45, R = 0.65, 21 layers
    wanted = np.array(list(allocation.wanted(tiny_llama, tokens).values()))
    inside = (wanted > 0.45 + 1e-9) & (wanted < 0.65 - 1e-9)
    moved = wanted - paper
    assert inside.sum() >= 15
    assert np.ptp(moved[inside]) < 1e-9
    assert (np.diff(wanted[rank.argsort()]) >= 0).all()


def test_outlier_share_stretches_the_shares_to_the_spread(tiny_llama, tokens):
    allocation = OutlierShare(0.5, factor=3.0)
    shares = np.array(list(outlier_shares(tiny_llama, tokens, factor=3.0).values()))
    wanted = allocation.wanted(tiny_llama, tokens)
    by_block = [{d for n, d in wanted.items() if f".{b}." in n} for b in range(3)]
    assert [len(densities) for densities in by_block] == [1, 1, 1]
    density = np.array([d for densities in by_block for d in densities])
    inside = np.abs(density - 0.5) < 0.08 - 1e-9
    assert len(set(shares)) == 3
    assert inside.sum() >= 2
    slopes = np.diff(density[inside]) / np.diff(shares[inside])
    assert slopes == pytest.approx(0.16 / np.ptp(shares), rel=1e-9)


@every_allocation
@pytest.mark.parametrize("target", [0.0, 1.0, -0.5, 50, float("nan")])
def test_targets_outside_0_and_1_are_refused(kind, target):
    with pytest.raises(InputError, match="must be above 0 and below 1, got"):
        kind(target)


@pytest.mark.parametrize("kind", [HessianSensitivity, OutlierShare])
@pytest.mark.parametrize(
    ("target", "spread"), [(0.5, -0.1), (0.5, float("nan")), (0.05, 0.06), (0.95, 0.06)]
)
def test_spreads_that_leave_0_to_1_are_refused(kind, target, spread):
    with pytest.raises(InputError, match=f"{target} plus or minus {spread}"):
        kind(target, spread=spread)


@pytest.mark.parametrize(
    ("menu", "message"),
    [
        ("", "Expected a menu"),
        ("2:4, 2:4", "Expected a menu of different entries"),
        ("2:4,", "Cannot read the pattern ''"),
        ("2:4, sparse", "Cannot read the pattern 'sparse'"),
        ("50%", "Cannot read the pattern '50%'"),
        ("4:4", "0 < N < M"),
    ],
)
def test_menus_that_cannot_be_read_are_refused(menu, message):
    with pytest.raises(InputError, match=message):
        Uniform(0.5, menu)


def test_targets_out_of_the_menus_reach_name_what_it_reaches(tiny_llama):
    with pytest.raises(InputError, match=r"keep 0\.4 of all weights: it reaches 0\.5 to 1\."):
        Uniform(0.4, "dense, 2:4").assign(tiny_llama, None)
    with pytest.raises(InputError, match=r"reaches 0\.375 to 0\.625, and below the target 0\.625"):
        Uniform(0.7, "3:8, 5:8").assign(tiny_llama, None)


def test_allocations_say_what_tokens_they_lack(tiny_llama, tokens):
    with pytest.raises(InputError, match="needs 1 calibration sequences, got 0"):
        OutlierShare(0.5).assign(tiny_llama, None)
    with pytest.raises(InputError, match="needs 6 calibration sequences, got 5"):
        HessianSensitivity(0.5, sequences=6).assign(tiny_llama, tokens)
    with pytest.raises(InputError, match="must be at least 1"):
        HessianSensitivity(0.5, probes=0)
    with pytest.raises(InputError, match="factor of an outlier must be above 0"):
        OutlierShare(0.5, factor=float("nan"))


def test_repr_tells_allocations_apart():
    told = {repr(HessianSensitivity(0.5, seed=s, probes=p)) for s in (0, 1) for p in (1, 2)}
    told |= {repr(kind(t, m)) for kind in ALLOCATIONS.values() for t, m in [(0.5, "dense,2:4")]}
    assert len(told) == 7
