"""Loops over numbers on CPU cores: compiled by numba, on as many threads as PyTorch has."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

Loop = Callable[..., None]


def compiled(loop: Loop) -> Loop | None:
    """The loop compiled, its sums in any order, free of Python's lock; None without numba."""
    try:
        import numba
    except ImportError:
        return None
    options = {"fastmath": True, "nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(loop, cache=True, **options)
    except RuntimeError:  # no folder for numba's cache can be written
        return numba.njit(loop, **options)


def in_shares(count: int, work: Callable[[slice], None]) -> None:
    """Call `work` with slices that make up range(count), each on a thread of its own."""
    n_threads = torch.get_num_threads()
    share = max(-(-count // n_threads), 1)
    mine, *others = (slice(start, start + share) for start in range(0, max(count, 1), share))
    jobs = [_threads(n_threads).submit(work, some) for some in others]
    work(mine)
    for job in jobs:
        job.result()


@cache
def _threads(n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n, "shares")
