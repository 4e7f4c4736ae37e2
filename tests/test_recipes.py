"""Words of the command line become the recipe that they say, or are refused."""

import pytest

from esparse_lab import (
    BlockShuffle,
    ESparse,
    GlobalShuffle,
    HessianSensitivity,
    Histogram,
    InputError,
    Magnitude,
    Pattern,
    Recipe,
    SparseGPT,
    Uniform,
    Unstructured,
)
from esparse_lab.recipes import method_of, recipe_label, recipe_of
from esparse_lab.reconstruction import Reconstruction


def test_settings_are_read_as_their_own_kind():
    found = method_of("sparsegpt", {"damping": "0.1", "block": "64"})
    assert found == SparseGPT(damping=0.1, block=64)
    assert type(found.block) is int
    assert method_of("esparse", {"norm_scale": "rms"}).norm_scale == "rms"


def test_settings_of_the_histogram_are_read_and_written_by_their_own_names():
    found = method_of("esparse", {"bins": "30", "skip_first": "True", "alpha": "2"})
    assert found == ESparse(alpha=2.0, histogram=Histogram(bins=30, skip_first=True))
    label = recipe_label(Recipe(found, Pattern(2, 4)))
    assert label == "esparse 2:4, alpha=2.0, bins=30, skip_first=True"
    assert recipe_label(Recipe(ESparse(), Pattern(2, 4))) == "esparse 2:4"


@pytest.mark.parametrize(
    ("method", "settings", "says"),
    [
        ("wonda", {}, "Did you mean 'wanda'"),
        ("sparsegpt", {"dampening": "1"}, "Did you mean 'damping'"),
        ("sparsegpt", {"block": "6.5"}, "of type int, for example block=128"),
        ("sparsegpt", {"damping": "much"}, "of type float, for example damping=0.01"),
        ("sparsegpt", {"damping": "nan"}, "damping must be"),
        ("esparse", {"alpha": "nan"}, "alpha must be a number of at least 0, got nan"),
        ("esparse", {"histogram": "100"}, "cannot be given as text"),
        ("esparse", {"skip_first": "1"}, "of type bool, for example skip_first=False"),
        ("esparse", {"bins": "1"}, "bins must be at least 2, got 1"),
        ("esparse", {"bin_range": "row"}, "Unknown bin range 'row'"),
        ("wanda", {"alpha": "1"}, "has no settings, got 'alpha'"),
    ],
)
def test_settings_that_a_method_cannot_take_are_refused(method, settings, says):
    with pytest.raises(InputError, match=says):
        method_of(method, settings)


BEST = BlockShuffle()


@pytest.mark.parametrize(
    ("words", "pattern", "search", "allocation"),
    [
        ({}, Pattern(2, 4), BEST, None),
        ({"pattern": "4:8"}, Pattern(4, 8), BEST, None),
        ({"pattern": "3:7"}, Pattern(3, 7), GlobalShuffle(), None),  # 256 is no multiple of 7
        ({"pattern": "50%"}, Unstructured(0.5), None, None),
        ({"pattern": "2:4", "search": "none"}, Pattern(2, 4), None, None),
        ({"allocation": "uniform"}, Unstructured(0.5), None, Uniform(0.5)),
        (
            {"allocation": "uniform", "pattern": "25%"},
            Unstructured(0.25),
            None,
            Uniform(0.25),
        ),
        (
            {"allocation": "uniform", "target": 0.4, "menu": "2:8, 3:8, 4:8"},
            Pattern(3, 8),
            BEST,
            Uniform(0.4, "2:8, 3:8, 4:8"),
        ),
        (
            {"allocation": "hessian", "pattern": "2:4", "menu": "dense, 2:4"},
            Pattern(2, 4),
            BEST,
            HessianSensitivity(0.5, "dense, 2:4"),
        ),
        (
            {"allocation": "uniform", "pattern": "2:4", "menu": "4:8, dense"},
            Pattern(2, 4),
            None,
            Uniform(0.5, "4:8, dense"),
        ),
    ],
)
def test_what_is_left_out_fits_what_is_said(words, pattern, search, allocation):
    found = recipe_of(Magnitude(), **words)
    assert (found.pattern, found.search, found.allocation) == (pattern, search, allocation)
    assert found.reconstruct is None
    assert recipe_of(Magnitude(), **words, reconstruct=True).reconstruct == Reconstruction()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"pattern": "50%", "search": "gns"}, "50% has none such"),
        ({"pattern": "3:7", "search": "gns+lbs"}, "groups of 7. Take 'gns' or 'none'"),
        ({"pattern": ""}, "the pattern '': expected N:M, such as 2:4, or a share, such as 50%"),
        ({"pattern": "50"}, "or a share, such as 50%"),
        ({"allocation": "uniform", "menu": ""}, "menu of different entries"),
        ({"allocation": "uniform", "menu": "2:4,"}, "In the menu '2:4,': Cannot read the pattern"),
        ({"allocation": "uniform", "menu": "50%, 2:4"}, "N:M patterns and 'dense' with commas"),
        (
            {"allocation": "uniform", "pattern": "2:4", "menu": "4:8, dense", "search": "gns"},
            "2:4 with the menu '4:8, dense' has none such",
        ),
        ({"allocation": "uniform", "search": "gns"}, "menu 'unstructured' has none such"),
        ({"allocation": "hesian"}, "Did you mean 'hessian'"),
        ({"allocation": "uniform", "target": 1.5}, "above 0 and below 1, got 1.5"),
        ({"allocation": "uniform", "target": float("nan")}, "above 0 and below 1, got nan"),
        ({"allocation": "uniform", "menu": "2:4, 2:4"}, "menu of different entries"),
        (
            {"allocation": "outliers", "target": 0.95},
            "0.08: .* or the uniform allocation",
        ),
        ({"target": 0.5}, "belong to an allocation"),
        ({"menu": "2:4"}, "belong to an allocation"),
        ({"pattern": "150%"}, "share of kept weights '150%'"),
        ({"calibration": "layervise"}, "Did you mean 'layerwise'"),
        ({"search": "lsb"}, "Unknown search 'lsb'"),
    ],
)
def test_words_that_do_not_go_together_are_refused(words, says):
    with pytest.raises(InputError, match=says):
        recipe_of(Magnitude(), **words)


@pytest.mark.parametrize("search", ["gns+lbs", "lbs", "gns+lbs+assignment", "best-of"])
def test_blocks_that_hold_no_whole_groups_are_refused_before_anything_runs(search):
    with pytest.raises(InputError, match="blocks of 256 channels, which hold no whole groups of 3"):
        recipe_of(ESparse(), pattern="2:3", search=search)
    assert recipe_of(ESparse(), pattern="2:3", search="assignment").search is not None
