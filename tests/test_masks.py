"""N:M masks against brute force and by their laws."""

import itertools
import math

import pytest
import torch

from esparse_lab import InputError, Pattern, Unstructured, nm_mask, parse_sparsity

PATTERNS = [Pattern(2, 4), Pattern(4, 8), Pattern(1, 4), Pattern(3, 4), Pattern(5, 16)]


def best_subset_sum(group: list[float], n: int) -> float:
    return max(sum(c) for c in itertools.combinations(group, min(n, len(group))))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("n_in", [16, 22, 3])
def test_keeps_the_best_of_every_group(pattern, n_in):
    scores = torch.rand(5, n_in, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = nm_mask(scores, pattern)
    for row, kept in zip(scores.tolist(), mask.tolist(), strict=True):
        for start in range(0, n_in, pattern.m):
            group, chosen = row[start : start + pattern.m], kept[start : start + pattern.m]
            assert sum(chosen) == min(pattern.n, len(group))
            value = sum(s for s, k in zip(group, chosen, strict=True) if k)
            assert value == pytest.approx(best_subset_sum(group, pattern.n), abs=1e-12)


@pytest.mark.parametrize("pattern", [*PATTERNS, Pattern(8, 32), Pattern(280, 300)], ids=str)
def test_ties_keep_the_lower_channel(pattern):
    mask = nm_mask(torch.ones(2, 2 * pattern.m), pattern)
    expected = ([True] * pattern.n + [False] * (pattern.m - pattern.n)) * 2
    assert mask.tolist() == [expected, expected]


def test_small_and_large_groups_settle_ties_alike():
    scores = torch.randint(3, (40, 32), generator=torch.Generator().manual_seed(5)).float()
    for m in (8, 16):
        ranked = nm_mask(scores, Pattern(3, m))
        order = torch.sort(scores.view(40, -1, m), dim=-1, descending=True, stable=True).indices
        expected = torch.zeros(40, 32 // m, m, dtype=torch.bool)
        expected.scatter_(-1, order[..., :3], True)
        assert torch.equal(ranked, expected.view(40, 32))


def test_masking_twice_changes_nothing(scores):
    mask = nm_mask(scores, Pattern(2, 4))
    assert torch.equal(nm_mask(scores * mask, Pattern(2, 4)), mask)


def test_zero_scores_are_kept_where_nothing_better_is():
    assert nm_mask(torch.tensor([[0.0, 0.0, 0.0, 5.0]]), Pattern(2, 4)).tolist() == [
        [True, False, False, True]
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_cpu_and_gpu_agree_bit_for_bit(pattern):
    scores = torch.randint(9, (512, 1024), generator=torch.Generator().manual_seed(6)).half()
    assert torch.equal(nm_mask(scores, pattern), nm_mask(scores.cuda(), pattern).cpu())


@pytest.mark.parametrize("text", ["4:2", "0:4", "4:4", "2-4", "2:4:8", "", "a:b", "-1:4"])
def test_impossible_patterns_say_why(text):
    with pytest.raises(InputError, match="such as 2:4"):
        Pattern.parse(text)


def test_pattern_reads_and_writes_itself():
    assert str(Pattern.parse(" 4:8 ")) == "4:8"


def test_nan_scores_are_refused():
    with pytest.raises(InputError, match="1 of 4 scores are NaN"):
        nm_mask(torch.tensor([[1.0, float("nan"), 2.0, 3.0]]), Pattern(2, 4))


@pytest.mark.parametrize("density", [0.5, 0.3, 0.9, 0.05, 0.999])
@pytest.mark.parametrize("within", ["row", "layer"])
def test_unstructured_keeps_the_best_of_what_competes(density, within):
    scores = torch.rand(7, 31, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = Unstructured(density, within).mask(scores)
    sets = scores if within == "row" else scores.view(1, -1)
    for values, kept in zip(sets, mask.view(sets.shape), strict=True):
        assert int(kept.sum()) == math.ceil(density * len(values))
        if not kept.all():
            assert values[kept].min() > values[~kept].max()


@pytest.mark.parametrize(
    ("density", "n_weights", "kept"),
    [(0.5, 4096, 2048), (0.4, 4096, 1639), (0.5, 5, 3), (0.7, 10, 7), (0.9, 10, 9), (0.1, 1, 1)],
)
def test_what_goes_is_rounded_down_as_wandas_code_does(density, n_weights, kept):
    assert Unstructured(density).kept(n_weights) == kept


@pytest.mark.parametrize("within", ["row", "layer"])
def test_unstructured_ties_keep_what_comes_first(within):
    mask = Unstructured(0.5, within).mask(torch.ones(2, 4))
    half = [[True, True, False, False]] * 2
    assert mask.tolist() == (half if within == "row" else [[True] * 4, [False] * 4])


def test_unstructured_refuses_nan():
    with pytest.raises(InputError, match="1 of 2 scores are NaN"):
        Unstructured(0.5).mask(torch.tensor([[1.0, math.nan]]))


@pytest.mark.parametrize("density", [0, 1, -0.5, 1.5, math.nan, math.inf])
def test_impossible_shares_say_why(density):
    with pytest.raises(InputError, match="must be above 0 and below 1"):
        Unstructured(density)


def test_unknown_comparison_suggests():
    with pytest.raises(InputError, match=r"Unknown comparison 'rows'\. Did you mean 'row'"):
        Unstructured(0.5, "rows")


SPARSITIES = {
    "2:4": Pattern(2, 4),
    " 4:8 ": Pattern(4, 8),
    "50%": Unstructured(0.5),
    "37.5 %": Unstructured(0.375),
    "5% per layer": Unstructured(0.05, "layer"),
}


@pytest.mark.parametrize("text", SPARSITIES)
def test_sparsity_reads_and_writes_itself(text):
    sparsity = parse_sparsity(text)
    assert sparsity == SPARSITIES[text]
    assert parse_sparsity(str(sparsity)) == sparsity


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("150%", "'150%': expected such as 50%"),
        ("100%", "'100%': expected such as 50%"),
        ("-5%", "'-5%': expected such as 50%"),
        ("2:4%", "'2:4%': expected such as 50%"),
        ("%", "'%': expected such as 50%"),
        ("50% per row", "'50% per row': expected such as 50%"),
        ("0%", "above 0 and below 1"),
        ("50", "'50': expected N:M"),
        ("0.5", "'0.5': expected N:M"),
        ("", "'': expected N:M"),
        ("4:2", "0 < N < M"),
    ],
)
def test_impossible_sparsities_say_why(text, message):
    with pytest.raises(InputError, match=message):
        parse_sparsity(text)


@pytest.mark.gpu
@pytest.mark.parametrize("within", ["row", "layer"])
def test_unstructured_is_the_same_on_cpu_and_gpu(within):
    scores = torch.randint(9, (64, 100), generator=torch.Generator().manual_seed(6)).half()
    sparsity = Unstructured(0.3, within)
    assert torch.equal(sparsity.mask(scores), sparsity.mask(scores.cuda()).cpu())
