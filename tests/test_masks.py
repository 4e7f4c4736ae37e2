"""N:M masks against brute force and by their laws."""

import itertools

import pytest
import torch

from esparse_lab import InputError, Pattern, check_nm, nm_mask

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


def test_check_nm_names_the_first_offending_group():
    weight = torch.tensor([[1.0, 0, 0, 2, 0, 0, 0, 0], [0, 0, 0, 0, 1, 2, 3, 0]])
    check_nm(weight, Pattern(3, 4))
    with pytest.raises(InputError, match=r"Not 2:4: row 1, channels 4 to 7 hold 3 .*1 such"):
        check_nm(weight, Pattern(2, 4))
