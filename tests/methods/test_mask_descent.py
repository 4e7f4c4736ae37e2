"""Mask descent: never worse than where it starts, and nothing that it may change does better."""

import itertools
import math

import numpy as np
import pytest
import torch
from oracles import damped_hessian, layer_case, row_errors

from esparse_lab import EsparseError, InputError, LayerStats, Pattern
from esparse_lab.masks import Unstructured
from esparse_lab.methods import MaskDescent, Wanda

PATTERNS = [Pattern(2, 4), Pattern(4, 8), Pattern(1, 4), Pattern(3, 4), Pattern(3, 5)]
LAYERS = [Unstructured(0.5), Unstructured(0.5, "layer"), Unstructured(0.7, "layer")]


def descend(weight, activations, sparsity, **settings) -> np.ndarray:
    settings = {"damping": 0.0, "sweeps": 200} | settings
    stats = LayerStats.of(activations, None)
    choice = MaskDescent(**settings).choose(weight, stats, sparsity)
    assert choice.weight is None
    return choice.mask.numpy()


def errors(weight, mask, h) -> np.ndarray:
    return row_errors(weight, weight.numpy() * mask, h)


@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("sparsity", PATTERNS + LAYERS, ids=str)
def test_no_row_is_worse_than_under_wandas_mask(sparsity, damping):
    weight, activations = layer_case(seed=1, rows=20)
    h = damped_hessian(activations, damping)
    ours = errors(weight, descend(weight, activations, sparsity, damping=damping, sweeps=3), h)
    start = Wanda().choose(weight, LayerStats.of(activations, None), sparsity).mask.numpy()
    theirs = errors(weight, start, h)
    assert (ours <= theirs * (1 + 1e-5)).all()
    if sparsity.density == 0.5 and not damping:
        assert ours.sum() < 0.8 * theirs.sum()


@pytest.mark.parametrize("sparsity", PATTERNS, ids=str)
@pytest.mark.parametrize("channels", [20, 23])
def test_no_other_mask_of_a_single_group_does_better(sparsity, channels):
    weight, activations = layer_case(seed=2, rows=4, channels=channels)
    h = damped_hessian(activations, 0.0)
    mask = descend(weight, activations, sparsity)
    best = errors(weight, mask, h)
    for left in range(0, channels, sparsity.m):
        size = min(sparsity.m, channels - left)
        for kept in itertools.combinations(range(size), min(sparsity.n, size)):
            other = mask.copy()
            other[:, left : left + size] = np.isin(np.arange(size), kept)
            assert (errors(weight, other, h) >= best * (1 - 1e-5)).all()


def best_of_all(weight, h, pattern: Pattern) -> np.ndarray:
    """The least error of each row over every N:M mask there is."""
    n_groups = weight.shape[1] // pattern.m
    ways = list(itertools.combinations(range(pattern.m), pattern.n))
    least = np.full(len(weight), np.inf)
    for choice in itertools.product(ways, repeat=n_groups):
        kept = [group * pattern.m + i for group, way in enumerate(choice) for i in way]
        mask = np.isin(np.arange(weight.shape[1]), kept)
        least = np.minimum(least, errors(weight, mask, h))
    return least


def test_one_group_ends_at_the_best_mask_of_all():
    weight, activations = layer_case(seed=3, rows=30, channels=8)
    h = damped_hessian(activations, 0.0)
    found = errors(weight, descend(weight, activations, Pattern(4, 8), sweeps=1), h)
    np.testing.assert_allclose(found, best_of_all(weight, h, Pattern(4, 8)), rtol=1e-5)


def test_groups_that_do_not_touch_each_other_end_at_the_best_mask_of_all():
    weight, activations = layer_case(seed=4, rows=30, channels=12)
    blocks = activations.view(-1, 3, 4)
    apart = torch.cat([torch.block_diag(*step) for step in blocks])  # one group at a time speaks
    h = damped_hessian(apart, 0.0)
    found = errors(weight, descend(weight, apart, Pattern(2, 4), sweeps=1), h)
    np.testing.assert_allclose(found, best_of_all(weight, h, Pattern(2, 4)), rtol=1e-5)


def test_by_hand_a_pair_that_cancels_goes_together():
    # Channels 0 and 1 say the same thing with opposite weights: without both nothing is lost.
    activations = torch.tensor([[3.0, 3.0, 1.0, 0.0], [3.0, 3.0, 0.0, 1.0]])
    weight = torch.tensor([[1.0, -1.0, 1.0, 1.0]])
    assert Wanda().choose(weight, LayerStats.of(activations), Pattern(2, 4)).mask.tolist() == [
        [True, True, False, False]
    ]
    assert descend(weight, activations, Pattern(2, 4)).tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("sparsity", LAYERS, ids=str)
def test_no_best_swap_of_a_row_does_better(sparsity):
    weight, activations = layer_case(seed=5, rows=12)
    h = damped_hessian(activations, 0.0)
    mask = descend(weight, activations, sparsity)
    assert not mask.all(axis=1).any()
    for row, kept in zip(weight, mask, strict=True):
        row = row[None]
        swapped = kept.copy()
        for comes_back in (True, False):  # the best one comes back, then the best one goes
            tried = {}
            for channel in np.flatnonzero(swapped != comes_back):
                other = swapped.copy()
                other[channel] = comes_back
                tried[errors(row, other, h)[0]] = other
            swapped = tried[min(tried)]
        assert errors(row, swapped, h)[0] >= errors(row, kept, h)[0] * (1 - 1e-5)


def test_rows_keep_as_many_as_they_start_with():
    weight, activations = layer_case(seed=6, rows=6)
    weight[0] *= 100  # keeps everything
    weight[1] /= 100  # keeps nothing
    sparsity = Unstructured(0.5, "layer")
    start = Wanda().choose(weight, LayerStats.of(activations), sparsity).mask
    assert start.sum(dim=1).tolist()[:2] == [24, 0]
    found = descend(weight, activations, sparsity)
    assert found.sum(axis=1).tolist() == start.sum(dim=1).tolist()


def test_dead_channels_do_not_win_places():
    weight, activations = layer_case(seed=7, rows=20)
    activations = activations / 100  # far less curvature than the 1 that dead channels get
    activations[:, [0, 5, 6, 7]] = 0
    h = activations.double().numpy()
    h = 2 * h.T @ h
    start = Wanda().choose(weight, LayerStats.of(activations), Pattern(2, 4)).mask.numpy()
    for damping in (0.0, 0.01):
        mask = descend(weight, activations, Pattern(2, 4), damping=damping)
        assert errors(weight, mask, h).sum() < 0.9 * errors(weight, start, h).sum()
        assert (mask.reshape(20, 6, 4).sum(axis=2) == 2).all()


def test_zero_weights_fill_groups_up():
    weight, activations = layer_case(seed=8, rows=6)
    weight[:, :3] = 0
    weight[2] = 0
    mask = descend(weight, activations, Pattern(2, 4))
    assert (mask.reshape(6, 6, 4).sum(axis=2) == 2).all()


def test_needs_no_inverse():
    weight, activations = layer_case(seed=9, tokens=6)
    activations[:, 3] = activations[:, 1]
    mask = descend(weight, activations, Pattern(2, 4))
    assert (mask.reshape(5, 6, 4).sum(axis=2) == 2).all()


def test_bad_settings_say_why():
    for damping in (-1.0, math.nan):
        with pytest.raises(InputError, match="damping must be"):
            MaskDescent(damping=damping)
    with pytest.raises(InputError, match="sweeps must be at least 1, got 0"):
        MaskDescent(sweeps=0)
    weight, activations = layer_case(channels=64)
    with pytest.raises(InputError, match=r"keep 16 of 32 weights, here 601,080,390"):
        descend(weight, activations, Pattern(16, 32))
    with pytest.raises(EsparseError, match="Gram matrix"):
        MaskDescent().choose(weight, LayerStats.of(activations, gram=False), Pattern(2, 4))
