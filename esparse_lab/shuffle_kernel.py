"""Block shuffles of many matrices in one launch; `block_shuffle.cu` is the kernel.

It does what `BlockShuffle` in `permutation.py` does in PyTorch, which is its oracle.
"""

import heapq
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from esparse_lab import device_code
from esparse_lab.masks import Pattern

_SOURCE = Path(__file__).with_name("block_shuffle.cu")
_WIDTHS = (256, 512)
_SIZES = (2, 4, 8, 16)
_MOST_CHUNKS = 32
_LINE = 32
_ROUND_IN_ROWS = 40
"""Barriers of a round take about as long as a pass over so many rows."""
MOST_BYTES = 1 << 33
"""Of matrices in one launch, and a sixteenth of it for what its teams share."""


def shuffles(scores: Tensor, pattern: Pattern, block: int) -> bool:
    """Whether the kernel can search this matrix, [row, channel], in blocks of so many channels."""
    if scores.device.type != "cuda" or not device_code.runs_on(scores.device):
        return False
    channels = scores.shape[1]
    width = min(block, channels)
    return (
        pattern.m in _SIZES
        and block % pattern.m == 0
        and scores.numel() > 0
        # 256 groups of 2 would not fit into shared memory.
        and width <= _WIDTHS[pattern.m > 2]
        # Blocks must start where 16 bytes can be read.
        and (block % 4 == 0 or channels <= block)
    )


def block_shuffles(
    scores: Sequence[Tensor],
    starts: Sequence[Tensor],
    pattern: Pattern,
    *,
    block: int,
    at_once: int | None,
    least_gain: float,
) -> list[Tensor]:
    """Orders in which no swap inside a block adds kept score, int64 [channel] each.

    The same matrix gives the same order bit for bit, whatever else is in the list.

    Args:
        scores: matrices that `shuffles`, [row, channel], on one device.
        starts: the orders that the searches start from, int64 [channel].
        pattern: N:M.
        block: channels of a block.
        at_once: swaps in a block between two updates of its gains; None for all that are disjoint.
        least_gain: share of a block's kept score that a swap must add to count.
    """
    orders = [torch.empty_like(start) for start in starts]
    batch: list[int] = []
    held = 0
    for i, matrix in enumerate(scores):
        held += 4 * matrix.numel()
        batch.append(i)
        if held > MOST_BYTES or i == len(scores) - 1:
            taken = ([one[j] for j in batch] for one in (scores, starts, orders))
            _launch(*taken, pattern, block, at_once or 0, least_gain)
            batch, held = [], 0
    return orders


def _launch(
    scores: list[Tensor],
    starts: list[Tensor],
    orders: list[Tensor],
    pattern: Pattern,
    block: int,
    at_once: int,
    least_gain: float,
) -> None:
    device = scores[0].device
    width = _WIDTHS[min(block, max(s.shape[1] for s in scores)) > _WIDTHS[0]]
    kernel, threads, shared, blocks = _kernel(pattern, width, least_gain, device.index)
    matrices = [_in_order(s, start) for s, start in zip(scores, starts, strict=True)]
    jobs = []  # what the kernel calls Job
    for x, start, order in zip(matrices, starts, orders, strict=True):
        rows, stride = x.shape
        for first in range(0, len(start), block):
            x_at, start_at, order_at = (
                of.data_ptr() + size * first for of, size in ((x, 4), (start, 8), (order, 8))
            )
            channels = min(block, len(start) - first)
            jobs.append((x_at, rows, stride, channels, start_at, order_at))
    jobs.sort(key=lambda job: -job[1])  # the longest first: the end is then even
    most_chunks = max(_chunks(job[1])[1] for job in jobs)
    board_bytes = _board_bytes(pattern, width) + 4 * most_chunks * width**2
    size = max(
        _team_size(tuple(job[1] for job in jobs), blocks),
        min(-(-blocks * board_bytes // (MOST_BYTES // 16)), blocks),
    )
    teams = min(blocks // size, len(jobs))
    boards = torch.empty(teams * board_bytes, dtype=torch.uint8, device=device)
    counters = torch.zeros((teams + 1) * _LINE, dtype=torch.int32, device=device)
    table = torch.tensor(jobs, dtype=torch.int64).to(device)
    with torch.cuda.device(device):
        device_code.start(
            device.index,
            device_code.launch_config((teams * size,), threads, shared, cooperative=True),
            kernel,
            table.data_ptr(),
            len(jobs),
            counters.data_ptr(),
            boards.data_ptr(),
            board_bytes,
            size,
            at_once,
        )


def _in_order(scores: Tensor, index: Tensor) -> Tensor:
    """The scores' columns in this order, float32; rows start at multiples of 16 bytes."""
    channels = len(index)
    columns = scores.index_select(1, index).float()
    return torch.nn.functional.pad(columns, (0, -channels % 4)) if channels % 4 else columns


@cache
def _kernel(pattern: Pattern, width: int, least_gain: float, device: int):
    """The compiled kernel, its threads and shared memory, and how many blocks run at a time."""
    rows = 2**13 // width
    shared = 4 * (2 * rows * width + rows * 64) + 32 * width
    constants = {
        "KEPT": pattern.n,
        "M": pattern.m,
        "WIDTH": width,
        "ROWS": rows,
        "LEAST_GAIN": least_gain,
        "SHARED_BYTES": shared,
        "BOARD_BYTES": _board_bytes(pattern, width),
    }
    kernel = device_code.compiled(_SOURCE, "block_shuffle", constants, device, shared_bytes=shared)
    torch.cuda.synchronize(device)  # makes the device's context this thread's, if none is yet
    at_a_time = kernel.occupancy.max_active_blocks_per_multiprocessor(width, shared)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return kernel, width, shared, at_a_time * processors


def _board_bytes(pattern: Pattern, width: int) -> int:
    groups = width // pattern.m
    return 4 * width**2 + 8 * groups**2 + 8 * (1 + _MOST_CHUNKS) * groups + 128


def _chunks(rows: int) -> tuple[int, int]:
    """Rows that are added up in one piece, and how many pieces there are; the kernel's own rule."""
    per_chunk = 64 * -(-rows // (64 * _MOST_CHUNKS))
    return per_chunk, -(-rows // per_chunk)


@lru_cache
def _team_size(rows: tuple[int, ...], blocks: int) -> int:
    """How many of the device's blocks work on a job together, so that all jobs end soonest.

    Args:
        rows: of each job, in the order in which teams that are free take them.
        blocks: that run at a time.
    """
    ends = {}
    for size in sorted({blocks // teams for teams in range(1, blocks + 1)}):
        free = [0.0] * min(blocks // size, len(rows))
        for of_job in rows:
            heapq.heapreplace(free, free[0] + _rows_in_turn(of_job, size))
        ends[size] = max(free)
    return min(ends, key=ends.get)


@cache
def _rows_in_turn(rows: int, size: int) -> float:
    """Rows that a block of a team goes through in a round, between four passes and one."""
    per_chunk, chunks = _chunks(rows)
    return per_chunk * (-(-4 * chunks // size) - (-chunks // size)) / 2 + _ROUND_IN_ROWS
