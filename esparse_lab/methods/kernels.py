"""The inner loops of the two column-by-column methods, for CUDA, in Triton.

Both go through a block of columns in order and each step depends on the last one, so PyTorch would
launch a dozen kernels a group of M weights. Here each program keeps a tile of rows in registers and
walks through the whole block. Tiles are laid out [row, group, member].
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from esparse_lab.masks import Pattern

ROWS = 16


@triton.jit
def _member(tile, group, groups):
    """The members of one group of a tile, [row, member]."""
    return tl.sum(tl.where(groups[None, :, None] == group, tile, 0.0), axis=1)


@triton.jit
def _column(values, k, members):
    """One column of [row, member], as [row]."""
    return tl.sum(tl.where(members[None, :] == k, values, 0.0), axis=1)


@triton.jit
def _sweep_kernel(
    w_ptr,
    u_ptr,
    root_ptr,
    pruned_ptr,
    error_ptr,
    n_rows,
    n_channels,
    start,
    kept,
    CHOOSE: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    M: tl.constexpr,
):
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    groups, members = tl.arange(0, GROUPS), tl.arange(0, M)
    columns = start + groups[:, None] * M + members[None, :]
    at = rows[:, None, None] * n_channels + columns[None, :, :]
    inside = (rows < n_rows)[:, None, None] & (columns < n_channels)[None, :, :]
    tile = tl.load(w_ptr + at, mask=inside, other=0.0)
    for g in range(GROUPS):
        left = (start + g * M).to(tl.int64)  # times n_channels passes 2^31 from 46341 channels on
        mine = _member(tile, g, groups)
        real = left + members < n_channels
        here = rows[:, None] * n_channels + left + members[None, :]
        here_inside = (rows < n_rows)[:, None] & real[None, :]
        if CHOOSE:
            root = tl.load(root_ptr + left + members, mask=real, other=0.0)
            saliency = tl.where(real[None, :], mine * root[None, :], float("inf"))
            saliency = saliency * saliency
            lower = saliency[:, None, :] < saliency[:, :, None]
            tied = (saliency[:, None, :] == saliency[:, :, None]) & (
                members[None, None, :] > members[None, :, None]
            )
            rank = tl.sum((lower | tied).to(tl.int32), axis=2)
            n_pruned = tl.maximum(tl.minimum(M, n_channels - left) - kept, 0)
            pruned = (rank < n_pruned).to(tl.float32)
            tl.store(pruned_ptr + here, pruned, mask=here_inside)
        else:
            pruned = tl.load(pruned_ptr + here, mask=here_inside, other=0.0)
        for k in tl.static_range(M):
            column = left + k
            if column < n_channels:
                pivot = tl.load(u_ptr + column * n_channels + column)
                error = _column(mine, k, members) * _column(pruned, k, members) / pivot
                of_group = tl.load(
                    u_ptr + column * n_channels + left + members, mask=real, other=0.0
                )
                mine -= error[:, None] * of_group[None, :]
                of_block = tl.load(
                    u_ptr + column * n_channels + columns, mask=columns < n_channels, other=0.0
                )
                tile -= error[:, None, None] * of_block[None, :, :]
                tl.store(error_ptr + rows * (GROUPS * M) + g * M + k, error, mask=rows < n_rows)
    tl.store(w_ptr + at, tile, mask=inside)


def eliminate(
    w: Tensor,
    u: Tensor,
    root: Tensor,
    pruned: Tensor,
    start: int,
    block: int,
    group: int,
    kept: int | None,
) -> Tensor:
    """`surgeon._eliminate` in one launch; block and group are powers of two, tensors contiguous."""
    # Without a choice to make, the size of a group only says how columns are laid out.
    m = group if kept is not None else min(block, 8)
    errors = torch.zeros(len(w), block, device=w.device)
    _sweep_kernel[(triton.cdiv(len(w), ROWS),)](
        w,
        u,
        root,
        pruned,
        errors,
        *(len(w), w.shape[1], start, kept or 0),
        CHOOSE=kept is not None,
        ROWS=ROWS,
        GROUPS=block // m,
        M=m,
    )
    return errors[:, : w.shape[1] - start]


@triton.jit
def _descent_kernel(
    w_ptr,
    gone_ptr,
    pull_ptr,
    h_ptr,
    ways_ptr,
    n_ways,
    n_rows,
    n_channels,
    start,
    kept,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    M: tl.constexpr,
):
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    groups, members = tl.arange(0, GROUPS), tl.arange(0, M)
    columns = start + groups[:, None] * M + members[None, :]
    at = rows[:, None, None] * n_channels + columns[None, :, :]
    inside = (rows < n_rows)[:, None, None] & (columns < n_channels)[None, :, :]
    w = tl.load(w_ptr + at, mask=inside, other=0.0)
    gone = tl.load(gone_ptr + at, mask=inside, other=0.0)
    pull = tl.load(pull_ptr + at, mask=inside, other=0.0)
    diagonal = members[:, None] == members[None, :]
    for g in range(GROUPS):
        left = (start + g * M).to(tl.int64)  # times n_channels passes 2^31 from 46341 channels on
        real = left + members < n_channels
        own = tl.load(
            h_ptr + (left + members)[:, None] * n_channels + left + members[None, :],
            mask=real[:, None] & real[None, :],
            other=0.0,
        )
        mine, before = _member(w, g, groups), _member(gone, g, groups)
        rest = _member(pull, g, groups) - tl.sum(before[:, :, None] * own[None, :, :], axis=1)
        # Cost of a way: sum of this over all pairs (k, l) that it prunes.
        share = mine[:, :, None] * mine[:, None, :] * own[None, :, :]
        share += tl.where(diagonal[None, :, :], (2 * mine * rest)[:, :, None], 0.0)
        size = tl.minimum(M, n_channels - left)
        n_pruned = tl.maximum(size - kept, 0)
        least = tl.full([ROWS], float("inf"), tl.float32)
        best = before
        for way in range(n_ways):
            code = tl.load(ways_ptr + way)
            goes = ((code >> members) & 1).to(tl.float32)
            if tl.sum(tl.where(real, goes, 0.0), axis=0).to(tl.int32) == n_pruned:
                both = goes[:, None] * goes[None, :]
                cost = tl.sum(tl.sum(share * both[None, :, :], axis=2), axis=1)
                better = cost < least
                least = tl.where(better, cost, least)
                best = tl.where(better[:, None], mine * goes[None, :], best)
        change = best - before
        gone = tl.where(groups[None, :, None] == g, best[:, None, :], gone)
        for k in tl.static_range(M):
            if left + k < n_channels:
                of_block = tl.load(
                    h_ptr + (left + k) * n_channels + columns, mask=columns < n_channels, other=0.0
                )
                pull += _column(change, k, members)[:, None, None] * of_block[None, :, :]
    tl.store(gone_ptr + at, gone, mask=inside)


def descend_block(
    w: Tensor,
    gone: Tensor,
    pull: Tensor,
    h: Tensor,
    ways: dict[int, Tensor],
    start: int,
    block: int,
    pattern: Pattern,
) -> None:
    """`mask_descent._descend_block` in one launch; block and M are powers of two."""
    codes = (ways[pattern.m] * 2 ** torch.arange(pattern.m, device=w.device)).sum(dim=1).int()
    _descent_kernel[(triton.cdiv(len(w), ROWS),)](
        w,
        gone,
        pull,
        h,
        codes,
        *(len(codes), len(w), w.shape[1], start, pattern.n),
        ROWS=ROWS,
        GROUPS=block // pattern.m,
        M=pattern.m,
    )


@triton.jit
def _swap_kernel(w_ptr, kept_ptr, pull_ptr, h_ptr, n_channels, most, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < n_channels
    at = row * n_channels + column
    w = tl.load(w_ptr + at, mask=inside, other=0.0)
    kept = tl.load(kept_ptr + at, mask=inside, other=0.0)
    pull = tl.load(pull_ptr + at, mask=inside, other=0.0)
    diagonal = tl.load(h_ptr + column.to(tl.int64) * (n_channels + 1), mask=inside, other=0.0)
    curve = w * w * diagonal
    step = 0
    while step < most:
        relief = tl.where(inside & (kept == 0), curve - 2 * w * pull, float("inf"))
        back = tl.argmin(relief, axis=0)
        kept = tl.where(column == back, 1.0, kept)
        of_back = tl.load(h_ptr + back.to(tl.int64) * n_channels + column, mask=inside, other=0.0)
        pull -= tl.sum(tl.where(column == back, w, 0.0), axis=0) * of_back
        cost = tl.where(inside & (kept == 1), curve + 2 * w * pull, float("inf"))
        gone = tl.argmin(cost, axis=0)
        kept = tl.where(column == gone, 0.0, kept)
        of_gone = tl.load(h_ptr + gone.to(tl.int64) * n_channels + column, mask=inside, other=0.0)
        pull += tl.sum(tl.where(column == gone, w, 0.0), axis=0) * of_gone
        step = tl.where(back == gone, most, step + 1)
    tl.store(kept_ptr + at, kept, mask=inside)


def swap_in_rows(w: Tensor, mask: Tensor, pull: Tensor, h: Tensor, most: int) -> Tensor:
    """`mask_descent._swap_in_rows` in one launch, one program a row."""
    kept = mask.float().contiguous()
    width = triton.next_power_of_2(w.shape[1])
    warps = min(16, max(1, width // 256))
    _swap_kernel[(len(w),)](w, kept, pull, h, w.shape[1], most, WIDTH=width, num_warps=warps)
    return kept == 1
