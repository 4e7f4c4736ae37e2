"""Laws that every method's score obeys, and hand-worked values; a new method is covered by name."""

import math

import pytest
import torch

from esparse_lab import METHODS, ESparse, Histogram, InputError, LayerStats, Wanda
from esparse_lab.methods import make_method


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]()


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def activations() -> torch.Tensor:
    return torch.randn(2, 128, 8, generator=torch.Generator().manual_seed(2))


def stats_with(norm: list[float], entropy: list[float] | None) -> LayerStats:
    entropy = None if entropy is None else torch.tensor(entropy)
    return LayerStats(torch.tensor(norm), entropy, None, None, n_tokens=8, n_sequences=2.0)


def test_scores_are_finite_and_not_negative(method, weight, activations):
    scores = method.score(weight, LayerStats.of(activations))
    assert scores.shape == weight.shape
    assert scores.dtype == torch.float32
    assert bool((scores.isfinite() & (scores >= 0)).all())


def test_zero_weight_scores_zero(method, weight, activations):
    weight[1, 2] = 0
    assert method.score(weight, LayerStats.of(activations))[1, 2] == 0


def test_sign_does_not_matter(method, weight, activations):
    stats = LayerStats.of(activations)
    assert torch.equal(method.score(-weight, stats), method.score(weight, stats))


def test_reordering_channels_reorders_scores(method, weight, activations):
    order = torch.tensor([7, 6, 0, 1, 5, 4, 2, 3])
    reordered = method.score(weight[:, order], LayerStats.of(activations[..., order]))
    torch.testing.assert_close(
        reordered, method.score(weight, LayerStats.of(activations))[:, order]
    )


@pytest.mark.parametrize("what", ["dead channels", "fewer tokens than channels", "one row"])
def test_unusual_layers_are_scored(method, weight, activations, what):
    if what == "dead channels":
        activations[..., [0, 5]] = 0
    elif what == "one row":
        weight = weight[:1]
    else:
        activations = activations[:1, :3]
    scores = method.score(weight, LayerStats.of(activations))
    assert scores.shape == weight.shape
    assert bool((scores.isfinite() & (scores >= 0)).all())


APART = {name: kind for name, kind in METHODS.items() if kind.rows_are_apart}


@pytest.mark.parametrize("kind", APART.values(), ids=APART)
def test_a_row_scores_alike_in_every_company(kind, weight, activations):
    stats = LayerStats.of(activations)
    together = kind().score(weight, stats)
    assert torch.equal(torch.cat([kind().score(row[None], stats) for row in weight]), together)


def test_half_weights_are_scored_in_float32(method, weight, activations):
    stats = LayerStats.of(activations)
    assert torch.equal(
        method.score(weight.half(), stats), method.score(weight.half().float(), stats)
    )


def test_wanda_by_hand():
    scores = Wanda().score(torch.tensor([[-2.0, 3.0]]), stats_with([5.0, 0.5], None))
    assert scores.tolist() == [[10.0, 1.5]]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # |w| = 2 and 3, entropy 1 and 4, norm 5 and 0.5, 2 sequences of 4 tokens
        ({"alpha": 0.5}, [2 * (1 + 2.5), 3 * (4 + 0.25)]),
        ({"alpha": 0.0}, [2.0, 12.0]),
        ({"alpha": 1.0, "norm_scale": "rms"}, [2 * (1 + 2.5), 3 * (4 + 0.25)]),
        (
            {"alpha": 1.0, "norm_scale": "l2"},
            [2 * (1 + 5 * math.sqrt(2)), 3 * (4 + 0.5 * math.sqrt(2))],
        ),
        (
            {"alpha": 1.0, "norm_scale": "relative"},
            [2 * (1 / 2.5 + 5 / 2.75), 3 * (4 / 2.5 + 0.5 / 2.75)],
        ),
        ({"form": "product"}, [2 * 5, 3 * 2]),
    ],
)
def test_esparse_by_hand(settings, expected):
    stats = stats_with([5.0, 0.5], [1.0, 4.0])
    scores = ESparse(**settings).score(torch.tensor([[-2.0, 3.0]]), stats)
    assert scores[0].tolist() == pytest.approx(expected)


def test_esparse_tends_to_wanda_as_alpha_grows(weight, activations):
    stats = LayerStats.of(activations)
    torch.testing.assert_close(
        ESparse(alpha=1e6).score(weight, stats) / 1e6,
        Wanda().score(weight, stats),
        rtol=1e-4,
        atol=1e-4,
    )


def test_esparse_without_entropies_says_so(weight, activations):
    with pytest.raises(InputError, match="needs entropies"):
        ESparse().score(weight, LayerStats.of(activations, None))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "at least 0, got -1.0"),
        ({"alpha": math.nan}, "at least 0, got nan"),
        ({"norm_scale": "rsm"}, "Did you mean 'rms'"),
        ({"form": "sums"}, "Did you mean 'sum'"),
    ],
)
def test_bad_settings_say_why(settings, message):
    with pytest.raises(InputError, match=message):
        ESparse(**settings)


def test_methods_are_made_by_name_with_kind_errors():
    assert make_method("esparse", alpha=2.0) == ESparse(alpha=2.0)
    with pytest.raises(InputError, match="Did you mean 'wanda'"):
        make_method("wonda")
    with pytest.raises(InputError, match="Did you mean 'alpha'"):
        make_method("esparse", alpah=1)
    with pytest.raises(InputError, match="has no settings"):
        make_method("wanda", alpha=1)


def test_settings_make_the_label():
    assert "alpha=0.5" in repr(ESparse(alpha=0.5, histogram=Histogram(bins=50)))
