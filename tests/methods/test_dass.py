"""DaSS by hand: which norm scores which layer, and along which axis its groups run."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import layer_case

from esparse_lab import InputError, LayerStats, Needs, Pattern, Wanda, collect_layer_stats
from esparse_lab.masks import Unstructured
from esparse_lab.methods import DaSS


def before_activation(weight, activations) -> LayerStats:
    """Statistics of a gate or up projection."""
    norm = torch.rand(len(weight), generator=torch.Generator().manual_seed(9)) ** 2 * 30
    return replace(LayerStats.of(activations), output_norm=norm)


def test_by_hand():
    weight = torch.tensor([[1.0, -2.0], [3.0, 0.0], [-4.0, 5.0], [1.0, 1.0]])
    stats = LayerStats(torch.tensor([2.0, 7.0]), None, None, None, n_tokens=8, n_sequences=2.0)
    down = DaSS().score(weight[:2], stats)
    assert down.tolist() == [[2.0, 14.0], [6.0, 0.0]]
    assert DaSS().group_axis(stats) == "in"
    gate = replace(stats, output_norm=torch.tensor([16.0, 4.0, 1.0, 100.0]))
    assert DaSS().group_axis(gate) == "out"
    scores = DaSS().score(weight, gate)
    assert scores.tolist() == [[4.0, 8.0], [6.0, 0.0], [4.0, 5.0], [10.0, 10.0]]
    # Of rows 0 and 1 and of rows 2 and 3 one stays, column by column.
    mask = DaSS().choose(weight, gate, Pattern(1, 2)).mask
    assert mask.tolist() == [[False, True], [True, False], [False, False], [True, True]]
    assert DaSS(exponent=1.0).score(weight, gate)[0].tolist() == [16.0, 32.0]


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(4, 8), Pattern(1, 4)], ids=str)
@pytest.mark.parametrize("rows", [16, 19])
def test_before_the_activation_groups_are_rows_of_a_column(pattern, rows):
    weight, activations = layer_case(seed=1, rows=rows, channels=6)
    stats = before_activation(weight, activations)
    size = weight.abs().double().numpy()
    expected = np.zeros(size.shape, dtype=bool)
    for column in range(6):
        for top in range(0, rows, pattern.m):
            value = size[:, column] * np.sqrt(stats.output_norm.double().numpy())
            group = np.argsort(-value[top : top + pattern.m])[: pattern.n] + top
            expected[group, column] = True
    assert np.array_equal(DaSS().choose(weight, stats, pattern).mask.numpy(), expected)


def test_without_groups_a_column_keeps_its_share():
    weight, activations = layer_case(seed=2, rows=10, channels=6)
    mask = DaSS().choose(weight, before_activation(weight, activations), Unstructured(0.3)).mask
    assert mask.sum(dim=0).tolist() == [3] * 6


@pytest.mark.parametrize("sparsity", [Pattern(2, 4), Unstructured(0.5)], ids=str)
def test_elsewhere_it_is_wanda(sparsity):
    weight, activations = layer_case(seed=3)
    stats = LayerStats.of(activations)
    ours, wanda = (kind.choose(weight, stats, sparsity).mask for kind in (DaSS(), Wanda()))
    assert torch.equal(ours, wanda)


def test_the_norm_is_that_of_the_down_projections_input(tiny_llama, tokens):
    stats = collect_layer_stats(tiny_llama, tokens, needs=Needs(output_norm=True), progress=False)
    for block in range(3):
        mlp = f"model.layers.{block}.mlp"
        for role in ("gate_proj", "up_proj"):
            found = stats[f"{mlp}.{role}"].output_norm
            assert torch.equal(found, stats[f"{mlp}.down_proj"].norm)
        assert stats[f"{mlp}.down_proj"].output_norm is None
        assert stats[f"model.layers.{block}.self_attn.q_proj"].output_norm is None


@pytest.mark.parametrize("exponent", [-0.5, math.nan, math.inf])
def test_impossible_exponents_say_why(exponent):
    with pytest.raises(InputError, match="exponent must be a number of at least 0, got"):
        DaSS(exponent=exponent)
