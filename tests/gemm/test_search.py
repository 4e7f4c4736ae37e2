"""The search as a law: whatever the times, it returns the best of what it timed at length."""

import random

import pytest

from esparse_lab.gemm.cusparselt import Algorithm
from esparse_lab.gemm.search import FINALISTS, SPLIT_TRIED, fastest


def drawn(seed: int):
    """Times of 12 kernels and 2 split versions of each; some work shortly, at length, or never."""
    rng = random.Random(seed)
    kernels = [Algorithm(config) for config in range(12)]
    versions = {a: [Algorithm(a.config, parts, "ONE") for parts in (2, 4)] for a in kernels}
    every = [*kernels, *(v for some in versions.values() for v in some)]
    broken = rng.choice([0.0, 0.3, 0.9])
    quick = {a: None if rng.random() < broken else rng.choice([1, 2, 3, 4.5]) for a in every}
    length = {a: None if rng.random() < broken else rng.choice([1, 2, 3, 4.5]) for a in every}
    return kernels, versions, quick, length


@pytest.mark.parametrize("seed", range(200))
def test_it_returns_the_best_of_what_it_timed_at_length(seed):
    kernels, versions, quick, length = drawn(seed)
    calls = []

    def time_it(algorithm, at_length):
        calls.append((algorithm, at_length))
        return (length if at_length else quick)[algorithm]

    found = fastest(kernels, versions.__getitem__, time_it)
    short = [a for a, at_length in calls if not at_length]
    finalists = [a for a, at_length in calls if at_length]
    # Every kernel once, then the versions of those that were fastest, and of no others.
    assert short[: len(kernels)] == kernels
    assert len(set(short)) == len(short)
    working = [a for a in kernels if quick[a] is not None]
    parents = {kernels[a.config] for a in short[len(kernels) :]}
    assert len(parents) == min(SPLIT_TRIED, len(working))
    assert all(quick[p] <= quick[a] for p in parents for a in set(working) - parents)
    assert {a for p in parents for a in versions[p]} == set(short[len(kernels) :])
    # The finalists worked, and nothing that was tried is faster than they.
    tried = {a: quick[a] for a in short if quick[a] is not None}
    # At length, one by one from the fastest, until enough of them have worked.
    lasted = [length[a] is not None for a in finalists]
    assert sum(lasted) == FINALISTS or len(finalists) == len(tried)
    assert sum(lasted) < FINALISTS or lasted[-1]
    assert sum(lasted) <= FINALISTS
    assert all(
        tried[f] <= time for f in finalists for a, time in tried.items() if a not in finalists
    )
    lasting = {a: length[a] for a in finalists if length[a] is not None}
    if not lasting:
        assert found is None
        return
    best, ms, n_tried = found
    assert ms == lasting[best] == min(lasting.values())
    assert n_tried == len(tried)


def test_nothing_to_try_is_no_answer():
    assert fastest([], lambda _: [], lambda *_: 1.0) is None
