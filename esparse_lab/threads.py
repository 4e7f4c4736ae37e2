"""Shares of a loop on as many threads as PyTorch uses, for compiled code that holds no lock."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch


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
