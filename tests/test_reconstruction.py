"""Reconstruction against numpy's solver on each row's support, and by its laws."""

import math

import numpy as np
import pytest
import torch
from oracles import damped_hessian, layer_case, row_errors

from esparse_lab import METHODS, InputError, LayerStats, Pattern
from esparse_lab.masks import Unstructured
from esparse_lab.reconstruction import Reconstruction

PRECISE = {"tolerance": 1e-6, "steps": 2000}


def solved_by_numpy(weight, mask, h) -> np.ndarray:
    """min over w' on the mask of (w - w') H (w - w')^T: row by row, H_SS w'_S = (w H)_S."""
    after = np.zeros(weight.shape)
    for row, kept in enumerate(mask.numpy()):
        right = weight[row].double().numpy() @ h[:, kept]
        after[row, kept] = np.linalg.solve(h[np.ix_(kept, kept)], right)
    return after


@pytest.fixture(params=[Pattern(2, 4), Unstructured(0.4, "layer")], ids=str)
def problem(request):
    """Weight, mask and activations; under the second sparsity rows keep different numbers."""
    weight, activations = layer_case(seed=1, rows=6)
    if request.param != Pattern(2, 4):
        weight[0] *= 50
        weight[1] /= 100
    return weight, request.param.mask(weight.abs()), activations


@pytest.mark.parametrize("damping", [0.01, 0.3])
def test_equals_the_solution_on_each_rows_support(problem, damping):
    weight, mask, activations = problem
    h = damped_hessian(activations, damping)
    solved = Reconstruction(damping, **PRECISE).solve(weight, mask, LayerStats.of(activations))
    assert solved.dtype == torch.float32
    assert not solved[~mask].any()
    expected = solved_by_numpy(weight, mask, h)
    np.testing.assert_allclose(solved.numpy(), expected, atol=2e-3 * weight.abs().max())
    np.testing.assert_allclose(
        row_errors(weight, solved, h), row_errors(weight, expected, h), rtol=1e-3, atol=1e-6
    )


def test_undamped_it_is_least_squares_on_the_activations():
    weight, activations = layer_case(seed=2, rows=3, channels=8)
    mask = Pattern(2, 4).mask(weight.abs())
    stats = LayerStats.of(activations)
    solved = Reconstruction(damping=0.0, **PRECISE).solve(weight, mask, stats)
    x = activations.double().numpy()
    for row, kept in enumerate(mask.numpy()):
        target = x @ weight[row].double().numpy()
        expected = np.linalg.lstsq(x[:, kept], target, rcond=None)[0]
        np.testing.assert_allclose(solved[row, kept].numpy(), expected, rtol=1e-3)


def test_by_hand_the_kept_channel_takes_over_its_twin():
    activations = torch.tensor([[1.0, 1.0], [2.0, 2.0]])
    solved = Reconstruction(damping=0.0).solve(
        torch.tensor([[3.0, 5.0]]), torch.tensor([[True, False]]), LayerStats.of(activations)
    )
    assert solved.tolist() == [[8.0, 0.0]]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("sparsity", [Pattern(2, 4), Unstructured(0.5, "layer")], ids=str)
def test_the_error_does_not_rise_for_any_method(method, sparsity):
    weight, activations = layer_case(seed=3, channels=30)
    stats = LayerStats.of(activations)
    h = damped_hessian(activations, 0.01)
    choice = method().choose(weight, stats, sparsity)
    solved = Reconstruction().solve(weight, choice.mask, stats)
    assert not solved[~choice.mask].any()
    before = row_errors(weight, weight * choice.mask if choice.weight is None else choice.weight, h)
    after = row_errors(weight, solved, h)
    assert (after <= before * (1 + 1e-3)).all()
    assert after.sum() < before.sum()


def test_no_step_raises_the_error(problem):
    weight, mask, activations = problem
    h = damped_hessian(activations, 0.01)
    last = row_errors(weight, weight * mask, h)
    for steps in (1, 2, 4, 8, 16):
        solve = Reconstruction(steps=steps, tolerance=0.0).solve
        error = row_errors(weight, solve(weight, mask, LayerStats.of(activations)), h)
        assert (error <= last * (1 + 1e-5) + 1e-9).all()
        last = error


def test_it_arrives_in_as_many_steps_as_a_row_has_kept_weights():
    # What sets conjugate gradients apart from steepest descent.
    weight, activations = layer_case(seed=7, rows=8)
    mask = Pattern(2, 4).mask(weight.abs())
    h = damped_hessian(activations, 0.0)
    solve = Reconstruction(damping=0.0, steps=12, tolerance=0.0).solve
    found = row_errors(weight, solve(weight, mask, LayerStats.of(activations)), h)
    least = row_errors(weight, solved_by_numpy(weight, mask, h), h)
    assert (found <= least * (1 + 1e-5)).all()


def test_a_full_mask_leaves_the_weights():
    weight, activations = layer_case(seed=4)
    full = torch.ones_like(weight, dtype=torch.bool)
    assert torch.equal(Reconstruction().solve(weight, full, LayerStats.of(activations)), weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_solved_in_float32(dtype):
    weight, activations = layer_case(seed=5)
    half, stats = weight.to(dtype), LayerStats.of(activations)
    mask = Pattern(2, 4).mask(half.abs().float())
    solved = Reconstruction().solve(half, mask, stats)
    assert torch.equal(solved, Reconstruction().solve(half.float(), mask, stats))


@pytest.mark.parametrize("rows", [1, 5])
def test_what_has_nothing_to_solve_stays_finite(rows):
    weight, activations = layer_case(seed=6, rows=rows, tokens=6)
    activations[:, [0, 4, 5, 6, 7]] = 0
    weight[0] = 0
    mask = Pattern(2, 4).mask(weight.abs())
    mask[-1] = False
    solved = Reconstruction().solve(weight, mask, LayerStats.of(activations))
    assert solved.isfinite().all()
    assert not solved[0].any()
    assert not solved[-1].any()
    # A kept weight of a dead channel is nobody's to change.
    dead = mask & (activations == 0).all(dim=0)
    assert torch.equal(solved[dead], weight[dead])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"damping": -0.1}, "damping must be a share of at least 0"),
        ({"damping": math.nan}, "damping must be a share of at least 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
    ],
)
def test_bad_settings_say_why(settings, message):
    with pytest.raises(InputError, match=message):
        Reconstruction(**settings)


def test_without_a_gram_matrix_it_says_what_to_collect():
    weight, activations = layer_case()
    mask = Pattern(2, 4).mask(weight.abs())
    with pytest.raises(InputError, match=r"Needs\(gram=True\)"):
        Reconstruction().solve(weight, mask, LayerStats.of(activations, gram=False))


@pytest.mark.parametrize("tolerance", [0.1, 1e-3])
def test_it_ends_when_every_rows_gradient_has_shrunk_to_the_tolerance(problem, tolerance):
    weight, mask, activations = problem
    h = torch.from_numpy(damped_hessian(activations, 0.01))

    def slope(after):
        gradient = ((weight - after).double() @ h) * mask
        return (gradient.square() / h.diagonal()).sum(dim=1).sqrt()

    stats = LayerStats.of(activations)
    solved = Reconstruction(tolerance=tolerance).solve(weight, mask, stats)
    assert bool((slope(solved) <= 1.05 * tolerance * slope(weight * mask)).all())
