"""The Hessian and its inverse factor: values by hand, the law of the factor, what is refused."""

import math

import numpy as np
import pytest
import torch
from oracles import damped_hessian, layer_case

from esparse_lab import EsparseError, InputError, LayerStats
from esparse_lab.curvature import check_damping, hessian, inverse_factor


def test_hessian_by_hand():
    x = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]])
    # 2 X^T X = [[20, 4], [4, 8]]; the dead channel gets 1; the mean of the diagonal is 29 / 3.
    expected = np.diag([20.0, 8.0, 1.0]) + 0.3 * 29 / 3 * np.eye(3)
    expected[0, 1] = expected[1, 0] = 4
    found = hessian(LayerStats.of(x, None), 0.3)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_hessian_leaves_the_statistics_alone():
    stats = LayerStats.of(layer_case()[1], None)
    before = stats.gram.clone()
    hessian(stats, 0.1)
    assert torch.equal(stats.gram, before)


@pytest.mark.parametrize("channels", [1, 7, 24])
def test_factor_gives_the_inverse_once_the_channels_before_are_frozen(channels):
    h = damped_hessian(layer_case(channels=channels)[1], 0.01)
    u = inverse_factor(torch.tensor(h)).numpy()
    assert not np.tril(u, -1).any()
    np.testing.assert_allclose(u.T @ u @ h, np.eye(channels), atol=1e-8)
    for j in range(channels):
        np.testing.assert_allclose(u[j, j] ** 2, np.linalg.inv(h[j:, j:])[0, 0], rtol=1e-8)


@pytest.mark.parametrize("tokens", [5, 200])
def test_what_damping_does_for_a_hessian_that_has_no_inverse(tokens):
    x = layer_case(tokens=tokens, channels=16)[1]
    if tokens > 16:
        x[:, 9] = x[:, 2]
    stats = LayerStats.of(x, None)
    with pytest.raises(EsparseError, match=r"not positive definite.*Raise the damping"):
        inverse_factor(hessian(stats, 0.0))
    assert inverse_factor(hessian(stats, 0.01)).isfinite().all()


def test_channels_that_are_dead_need_no_damping():
    x = layer_case(channels=8)[1]
    x[:, [0, 5]] = 0
    u = inverse_factor(hessian(LayerStats.of(x, None), 0.0))
    assert u[0, 0] == u[5, 5] == 1
    assert not u[0, 1:].any()
    assert not u[:5, 5].any()


def test_without_a_gram_matrix_it_says_what_to_collect():
    stats = LayerStats.of(layer_case()[1], None, gram=False)
    with pytest.raises(InputError, match=r"Needs\(gram=True\)"):
        hessian(stats, 0.01)


@pytest.mark.parametrize("damping", [-0.01, math.nan, math.inf])
def test_impossible_damping_says_why(damping):
    with pytest.raises(InputError, match=r"at least 0, such as 0\.01, got"):
        check_damping(damping)
