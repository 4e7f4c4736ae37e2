"""SparseGPT and ISC against their algorithm written column by column with explicit inverses."""

import math

import numpy as np
import pytest
import torch
from oracles import damped_hessian, layer_case

from esparse_lab import InputError, LayerStats, Pattern
from esparse_lab.errors import EsparseError
from esparse_lab.masks import Unstructured
from esparse_lab.methods import ISC, SparseGPT

SURGEONS = {"sparsegpt": SparseGPT, "isc": ISC}


def by_column(weight, hessian, sparsity, block: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Algorithm 1 of SparseGPT: every column inverts what is left of the Hessian anew."""
    w = weight.double().numpy().copy()
    n_rows, n_channels = w.shape
    inverses = [np.linalg.inv(hessian[j:, j:]) for j in range(n_channels)]
    saliency = np.array([1 / inverse[0, 0] for inverse in inverses])
    if name == "isc":
        saliency += np.diag(hessian)
    mask = np.ones(w.shape, dtype=bool)
    size = sparsity.m if isinstance(sparsity, Pattern) else block
    for j in range(n_channels):
        if j % size == 0:  # choose among these columns from the weights as they are by now
            competing = (w**2 * saliency)[:, j : j + size]
            width = competing.shape[1]
            if isinstance(sparsity, Pattern):
                n_kept, sets = min(sparsity.n, width), [competing[r] for r in range(n_rows)]
            else:
                alone = sparsity.within == "row"
                sets = [competing[r] for r in range(n_rows)] if alone else [competing.ravel()]
                share = sparsity.density * (1 if alone else n_rows)
                n_kept = math.ceil(share * (j + width) - 1e-9) - math.ceil(share * j - 1e-9)
            chosen = np.zeros((len(sets), len(sets[0])), dtype=bool)
            for place, values in enumerate(sets):
                chosen[place, np.argsort(-values)[:n_kept]] = True
            mask[:, j : j + size] = chosen.reshape(n_rows, width)
        for r in np.flatnonzero(~mask[:, j]):
            w[r, j:] -= w[r, j] / inverses[j][0, 0] * inverses[j][0]
            w[r, j] = 0
    return mask, w


def assert_equals_oracle(name, sparsity, block, weight, activations, damping=0.01):
    choice = SURGEONS[name](damping=damping, block=block).choose(
        weight, LayerStats.of(activations, None), sparsity
    )
    h = damped_hessian(activations, damping)
    dead = (activations == 0).all(dim=0)
    mask, updated = by_column(weight.masked_fill(dead, 0), h, sparsity, block, name)
    assert np.array_equal(choice.mask.numpy(), mask)
    np.testing.assert_allclose(choice.weight.numpy(), updated, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SURGEONS)
@pytest.mark.parametrize(
    ("sparsity", "block"),
    [
        (Pattern(2, 4), 128),
        (Pattern(2, 4), 8),
        (Pattern(4, 8), 16),
        (Pattern(1, 4), 4),
        (Pattern(8, 16), 16),
        (Pattern(3, 5), 20),
        (Pattern(3, 7), 7),
        (Unstructured(0.5), 8),
        (Unstructured(0.5), 128),
        (Unstructured(0.3, "layer"), 8),
        (Unstructured(0.5, "layer"), 11),
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [24, 39])
def test_equals_the_sweep_column_by_column(name, sparsity, block, channels):
    weight, activations = layer_case(seed=3, channels=channels)
    assert_equals_oracle(name, sparsity, block, weight, activations)


@pytest.mark.parametrize("name", SURGEONS)
@pytest.mark.parametrize("sparsity", [Pattern(2, 4), Unstructured(0.5, "layer")], ids=str)
def test_equals_the_sweep_beyond_one_block(name, sparsity):
    weight, activations = layer_case(seed=4, rows=3, channels=150, tokens=400)
    assert_equals_oracle(name, sparsity, 128, weight, activations)


@pytest.mark.parametrize("name", SURGEONS)
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_equals_the_sweep_with_dead_channels(name, damping):
    weight, activations = layer_case(seed=5)
    activations[:, [0, 6, 7]] = 0
    assert_equals_oracle(name, Pattern(2, 4), 8, weight, activations, damping)
    choice = SURGEONS[name](damping).choose(weight, LayerStats.of(activations), Pattern(2, 4))
    assert not choice.weight[:, [0, 6, 7]].any()


# Two channels with X^T X = [[1, .5], [.5, 1]], so H = [[2, 1], [1, 2]], whose inverse has 2/3 on
# its diagonal. With nothing frozen 1 / [H^-1]_jj is 1.5; for channel 1, once channel 0 is, it is 2.
GRAM = LayerStats(
    torch.ones(2), None, None, None, 4, 1.0, gram=torch.tensor([[1.0, 0.5], [0.5, 1.0]])
)


@pytest.mark.parametrize(
    ("weight", "after"),
    [
        # 1.5 * 1^2 < 2 * 1^2: channel 0 goes and channel 1 takes over half of it.
        ([1.0, 1.0], [0.0, 1.5]),
        # 1.5 * 2^2 > 2 * 1^2: channel 1 goes; channel 0, left of it, stays as it is.
        ([2.0, 1.0], [2.0, 0.0]),
    ],
)
def test_sparsegpt_by_hand(weight, after):
    weight = torch.tensor([weight])
    choice = SparseGPT(damping=0.0).choose(weight, GRAM, Pattern(1, 2))
    torch.testing.assert_close(choice.weight, torch.tensor([after]))
    torch.testing.assert_close(SparseGPT(damping=0.0).score(weight, GRAM), 1.5 * weight.square())


def test_isc_by_hand():
    # Squares 5 and 4: OBS ranks 1.5 * 5 < 2 * 4, OBS and OBD together (1.5 + 2) * 5 > (2 + 2) * 4.
    weight = torch.tensor([[5.0**0.5, 2.0]])
    isc, obs = (
        kind(damping=0.0).choose(weight, GRAM, Pattern(1, 2)).mask.tolist()
        for kind in (ISC, SparseGPT)
    )
    assert isc == [[True, False]]
    assert obs == [[False, True]]
    torch.testing.assert_close(ISC(damping=0.0).score(weight, GRAM), torch.tensor([[17.5, 14.0]]))


@pytest.mark.parametrize("name", SURGEONS)
def test_scores_equal_their_formula(name):
    weight, activations = layer_case(seed=6)
    h = damped_hessian(activations, 0.01)
    expected = 1 / np.diag(np.linalg.inv(h)) + (np.diag(h) if name == "isc" else 0)
    scores = SURGEONS[name]().score(weight, LayerStats.of(activations, None))
    np.testing.assert_allclose(scores.numpy(), weight.numpy() ** 2 * expected, rtol=1e-4)


def test_isc_lies_between_wandas_square_and_twice_that():
    weight, activations = layer_case(seed=7)
    stats = LayerStats.of(activations, None)
    wanda = 2 * (weight * stats.norm).square()
    share = ISC(damping=0.0).score(weight, stats) / wanda
    assert 1 < float(share.min()) < float(share.max()) < 2


@pytest.mark.parametrize("name", SURGEONS)
def test_the_block_only_decides_when_columns_are_updated(name):
    weight, activations = layer_case(seed=8)
    stats = LayerStats.of(activations, None)
    one, many = (
        SURGEONS[name](block=block).choose(weight, stats, Pattern(2, 4)) for block in (24, 4)
    )
    assert torch.equal(one.mask, many.mask)
    torch.testing.assert_close(one.weight, many.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SURGEONS)
def test_bad_settings_say_why(name):
    weight, activations = layer_case()
    stats = LayerStats.of(activations)
    for damping in (-0.1, math.nan):
        with pytest.raises(InputError, match=f"damping must be .* got {damping}"):
            SURGEONS[name](damping)
    with pytest.raises(InputError, match=r"hold whole groups of 4; .* block=12"):
        SURGEONS[name](block=10).choose(weight, stats, Pattern(2, 4))
    for sparsity in (Pattern(2, 4), Unstructured(0.5)):
        with pytest.raises(InputError, match="at least 1 column, got 0"):
            SURGEONS[name](block=0).choose(weight, stats, sparsity)
    activations[:, 3] = activations[:, 1]
    with pytest.raises(EsparseError, match="Raise the damping"):
        SURGEONS[name](damping=0.0).choose(weight, LayerStats.of(activations), Pattern(2, 4))


@pytest.mark.parametrize("name", SURGEONS)
@pytest.mark.parametrize("within", ["row", "layer"])
def test_the_share_is_kept_whatever_the_block(name, within):
    """13 of 39 columns in blocks of 8: rounding each block up by itself would keep 15."""
    generator = torch.Generator().manual_seed(5)
    stats = LayerStats.of(torch.randn(80, 39, generator=generator), None)
    weight = torch.randn(6, 39, generator=generator)
    choice = SURGEONS[name](block=8).choose(weight, stats, Unstructured(1 / 3, within))
    assert int(choice.mask.sum()) == 6 * 13
