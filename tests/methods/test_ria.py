"""RIA by hand and against its formula."""

import math

import numpy as np
import pytest
import torch
from oracles import layer_case

from esparse_lab import InputError, LayerStats, Pattern
from esparse_lab.methods import RIA


def stats_of(norm: list[float]) -> LayerStats:
    return LayerStats(torch.tensor(norm), None, None, None, n_tokens=8, n_sequences=2.0)


@pytest.mark.parametrize(("exponent", "factors"), [(0.5, [2, 3]), (1.0, [4, 9]), (0.0, [1, 1])])
def test_by_hand(exponent, factors):
    # Columns sum to 3 and 3, rows to 4 and 2.
    weight = torch.tensor([[1.0, -3.0], [-2.0, 0.0]])
    expected = [
        [(1 / 3 + 1 / 4) * factors[0], (3 / 3 + 3 / 4) * factors[1]],
        [(2 / 3 + 2 / 2) * factors[0], 0.0],
    ]
    scores = RIA(exponent=exponent).score(weight, stats_of([4.0, 9.0]))
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-6)


def test_equals_its_formula():
    weight, activations = layer_case(seed=1)
    size = np.abs(weight.double().numpy())
    norm = np.linalg.norm(activations.double().numpy(), axis=0)
    expected = np.empty(size.shape)
    for i, j in np.ndindex(*size.shape):
        share = size[i, j] / size[:, j].sum() + size[i, j] / size[i].sum()
        expected[i, j] = share * math.sqrt(norm[j])
    scores = RIA().score(weight, LayerStats.of(activations))
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-5)


def test_shares_make_a_quiet_row_as_important_as_a_loud_one():
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).repeat(2, 1)
    weight[1] *= 1e-3
    mask = RIA().choose(weight, stats_of([1.0] * 4), Pattern(2, 4)).mask
    assert mask.tolist() == [[False, False, True, True]] * 2


def test_empty_rows_and_columns_score_zero():
    weight = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    assert RIA().score(weight, stats_of([1.0, 1.0])).tolist() == [[0.0, 0.0], [0.0, 2.0]]


@pytest.mark.parametrize("exponent", [-0.5, math.nan, math.inf])
def test_impossible_exponents_say_why(exponent):
    with pytest.raises(InputError, match="exponent must be a number of at least 0, got"):
        RIA(exponent=exponent)
