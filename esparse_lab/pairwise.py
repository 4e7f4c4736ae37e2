"""Sums over rows of the larger of two values, for all pairs of columns: the cost of a swap search.

sum over r of max(x[c, r], y[a, r]) is what a group keeps of channel c in the place of channel a. It
is no matrix product. PyTorch's L1 distance gives it, since max(x, y) = (x + y + |x - y|) / 2; on a
CPU a function that numba compiles is several times as fast, and is used where numba is installed.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from esparse_lab.cpu_loops import Loop, compiled, in_shares

# On a CPU, torch sums an L1 distance in one chain of dependent additions. Rows in pieces of this
# many let neighbouring pairs overlap: twice as fast, and rounds less.
ROWS_AT_ONCE = 64
# A numba call sums so many rows of so many columns before it goes on: they stay in the cache.
ROWS_IN_CACHE, COLUMNS_IN_CACHE = 1024, 128


class MaximumSums:
    """All sums of maxima with the columns of `x`, ready to be asked many times.

    Args:
        x: values of at least 0, float32 [block, column, row].
    """

    def __init__(self, x: Tensor):
        self._x = x
        self._sums = x.sum(dim=-1)
        self._compiled = _compiled() if x.device.type == "cpu" else None
        if self._compiled is None:
            self._x = self._in_pieces(x).contiguous()

    def __call__(self, blocks: Tensor, y: Tensor) -> Tensor:
        """Sums for each column of y [b, a, row] with each of these `blocks` [b]: [b, a, column]."""
        if self._compiled is not None:
            return torch.stack(
                [self._by_numba(self._x[block], one) for block, one in zip(blocks, y, strict=True)]
            )
        distance = torch.cdist(self._in_pieces(y), self._x[blocks], p=1).sum(dim=1)
        return (distance + y.sum(dim=-1)[:, :, None] + self._sums[blocks][:, None]) / 2

    def _in_pieces(self, columns: Tensor) -> Tensor:
        """[b, column, row] as [b, piece, column, row of the piece], filled up with zeros."""
        size = ROWS_AT_ONCE if columns.device.type == "cpu" else columns.shape[-1]
        filled = torch.nn.functional.pad(columns, (0, -columns.shape[-1] % size))
        return filled.unflatten(-1, (-1, size)).transpose(1, 2)

    def _by_numba(self, x: Tensor, y: Tensor) -> Tensor:
        out = torch.zeros(len(y), len(x))
        columns, wanted, sums = x.numpy(), np.ascontiguousarray(y.numpy()), out.numpy()
        in_shares(len(y), lambda some: self._compiled(columns, wanted[some], sums[some]))
        return out


@cache
def _compiled() -> Loop | None:
    """out[a, c] += sum of max(x[c], y[a]) over rows, compiled; None without numba."""

    def maximum_sums(x, y, out):
        def eight(x0, x1, x2, x3, y0, y1):
            s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = np.float32(0)
            for i in range(len(x0)):
                p, q, r, s, u, v = x0[i], x1[i], x2[i], x3[i], y0[i], y1[i]
                s00 += p if p > u else u
                s01 += q if q > u else u
                s02 += r if r > u else u
                s03 += s if s > u else u
                s10 += p if p > v else v
                s11 += q if q > v else v
                s12 += r if r > v else v
                s13 += s if s > v else v
            return (s00, s01, s02, s03), (s10, s11, s12, s13)

        last_x, last_y = len(x) - 1, len(y) - 1
        for start in range(0, x.shape[1], ROWS_IN_CACHE):
            rows = slice(start, min(start + ROWS_IN_CACHE, x.shape[1]))
            for tile in range(0, len(x), COLUMNS_IN_CACHE):
                # Four columns by two: each value that is loaded serves several sums.
                for a in range(0, len(y), 2):
                    y0, y1 = y[a, rows], y[min(a + 1, last_y), rows]
                    for c in range(tile, min(tile + COLUMNS_IN_CACHE, len(x)), 4):
                        c1, c2, c3 = min(c + 1, last_x), min(c + 2, last_x), min(c + 3, last_x)
                        first, second = eight(
                            x[c, rows], x[c1, rows], x[c2, rows], x[c3, rows], y0, y1
                        )
                        for i in range(min(4, len(x) - c)):
                            out[a, c + i] += first[i]
                            if a < last_y:
                                out[a + 1, c + i] += second[i]

    return compiled(maximum_sums)
