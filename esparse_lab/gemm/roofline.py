"""What the card can do at best, measured on it: the floor under every time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import get_args

import pandas as pd
import torch

from esparse_lab.gemm.clock import device_ms
from esparse_lab.gemm.cusparselt import OUTPUTS
from esparse_lab.masks import Pattern
from esparse_lab.storage import Index, compressed_bytes

_SIDE = 8192
_GIB = 2**30


@dataclass(frozen=True)
class Roofline:
    """Measured ceilings of one device.

    Attributes:
        tflops: of a dense product of 8192 x 8192 matrices, by dtype name; 8-bit types are taken
            to be twice as fast as float16, as the hardware's sheet says.
        gbps: of the fastest of a copy within the device (bytes read and written), a sum and a
            product of 16 tokens, each over 1 GiB: reading alone can be faster than copying.
    """

    tflops: dict[str, float]
    gbps: float

    def floor_ms(self, flops: float, n_bytes: float, dtype: str, *, sparse: bool = False) -> float:
        """The least time for so much arithmetic and so many bytes: the larger of the two terms.

        Sparse tensor cores skip half of the products, so their arithmetic counts half; `flops` is
        what the dense product takes.
        """
        arithmetic = flops / (2 if sparse else 1) / (self.tflops[dtype] * 1e9)
        return max(arithmetic, n_bytes / (self.gbps * 1e6))


@cache
def roofline(device: int) -> Roofline:
    """Measure the ceilings of a CUDA device; a second call remembers them."""
    with torch.cuda.device(device):
        tflops = {}
        for dtype in (torch.float16, torch.bfloat16):
            a, b = (torch.randn(_SIDE, _SIDE, device="cuda").to(dtype) for _ in range(2))
            out = torch.empty_like(a)
            ms = device_ms([lambda a=a, b=b, out=out: torch.mm(a, b.t(), out=out)]).least
            tflops[str(dtype).removeprefix("torch.")] = 2 * _SIDE**3 / ms / 1e9
        tflops["int8"] = tflops["float8_e4m3fn"] = 2 * tflops["float16"]
        gbps = max(_gbps(*way) for way in _ways_through_memory())
    return Roofline(tflops, gbps)


def _ways_through_memory() -> Iterator[tuple[Callable[[], object], int]]:
    """Calls that wait for memory alone, and the bytes that each moves."""
    source = torch.empty(_GIB // 2, dtype=torch.float16, device="cuda").normal_()
    target = torch.empty_like(source)
    yield lambda: target.copy_(source), 2 * _GIB
    yield lambda: source.sum(dtype=torch.float32), _GIB
    few = torch.randn(16, _SIDE, device="cuda").half()
    yield lambda: few @ source.view(-1, _SIDE).t(), _GIB


def _gbps(call: Callable[[], object], n_bytes: int) -> float:
    return n_bytes / device_ms([call]).least / 1e6


def least_bytes(rows: int, columns: int, pattern: Pattern, dtype: torch.dtype) -> int:
    """Of a compressed weight, with the smaller of the ways to say which values are kept."""
    bits = 8 * dtype.itemsize
    return min(
        compressed_bytes(rows, columns, pattern, value_bits=bits, index=index)
        for index in get_args(Index)
    )


def unbeaten(timings: pd.DataFrame) -> pd.DataFrame:
    """A `gemm_table` with floors that none of its products beats, and `above_floor` to match.

    Where products ran faster than the ceilings that were measured apart from them, those were too
    low, and what the products reached takes their place.
    """
    work = _work(timings)
    least = work[["ms", "floor_ms"]].min(axis=1)
    per_ms = (work.n_bytes / least).max()
    flops_per_ms = (work.flops / least).groupby(work.dtype).transform("max")
    work["floor_ms"] = (work.flops / flops_per_ms).clip(lower=work.n_bytes / per_ms)
    floors = {
        form: part.set_index("row").floor_ms.to_numpy() for form, part in work.groupby("form")
    }
    return timings.assign(
        floor_ms=floors["sparse"],
        dense_floor_ms=floors["dense"],
        above_floor=timings.sparse_ms.to_numpy() / floors["sparse"],
    )


def roofline_table(timings: pd.DataFrame) -> pd.DataFrame:
    """Where each product of a `gemm_table` stands under the ceilings of its card.

    Columns: name, m, k, n, dtype, kernel, form ("dense" or "sparse"), intensity (operations a byte
    that must move), tflops (reached; the sparse form is counted with the dense one's arithmetic)
    and roof_tflops (what the card allows at this intensity: the arithmetic over `floor_ms`).
    """
    work = _work(timings)
    product = 2 * work.m * work.k * work.n
    work["intensity"] = product / work.n_bytes
    work["tflops"] = product / work.ms / 1e9
    work["roof_tflops"] = product / work.floor_ms / 1e9
    columns = ["name", "m", "k", "n", "dtype", "kernel", "form"]
    return work[[*columns, "intensity", "tflops", "roof_tflops"]]


def _work(timings: pd.DataFrame) -> pd.DataFrame:
    """Two rows a product of a `gemm_table`: what its dense and its sparse form must do at least."""
    rows = []
    for at, one in enumerate(timings.itertuples()):
        dtype = getattr(torch, one.dtype)
        flops = 2 * one.m * one.k * one.n
        moved = dtype.itemsize * one.m * one.k + OUTPUTS[dtype].itemsize * one.m * one.n
        stored = least_bytes(one.n, one.k, Pattern.parse(one.pattern), dtype)
        skipped = 2 if one.kernel == "cusparselt" else 1
        same = at, one.name, one.m, one.k, one.n, one.dtype, one.kernel
        dense = flops, one.dense_bytes + moved, one.dense_ms, one.dense_floor_ms
        sparse = flops / skipped, stored + moved, one.sparse_ms, one.floor_ms
        rows += [(*same, "dense", *dense), (*same, "sparse", *sparse)]
    columns = ["row", "name", "m", "k", "n", "dtype", "kernel", "form"]
    return pd.DataFrame(rows, columns=[*columns, "flops", "n_bytes", "ms", "floor_ms"])
