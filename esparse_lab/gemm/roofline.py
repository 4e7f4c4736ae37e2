"""What the card can do at best, measured on it: the floor under every time."""

from dataclasses import dataclass
from functools import cache

import pandas as pd
import torch

from esparse_lab.gemm.clock import device_ms
from esparse_lab.gemm.cusparselt import OUTPUTS
from esparse_lab.masks import Pattern
from esparse_lab.storage import compressed_bytes

_SIDE = 8192


@dataclass(frozen=True)
class Roofline:
    """Measured ceilings of one device.

    Attributes:
        tflops: of a dense product of 8192 x 8192 matrices, by dtype name; 8-bit types are taken
            to be twice as fast as float16, as the hardware's sheet says.
        gbps: of a device-to-device copy of 1 GiB, bytes read and bytes written both counted.
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
        source = torch.empty(2**30, dtype=torch.uint8, device="cuda").random_()
        target = torch.empty_like(source)
        ms = device_ms([lambda: target.copy_(source)]).least
    return Roofline(tflops, 2 * source.numel() / ms / 1e6)


def roofline_table(timings: pd.DataFrame) -> pd.DataFrame:
    """Where each product of a `gemm_table` stands under the ceilings of its card.

    Columns: name, m, k, n, dtype, kernel, form ("dense" or "sparse"), intensity (operations a byte
    that must move), tflops (reached; the sparse form is counted with the dense one's arithmetic)
    and roof_tflops (what the card allows at this intensity: the arithmetic over `floor_ms`).
    """
    rows = []
    for one in timings.itertuples():
        dtype = getattr(torch, one.dtype)
        flops = 2 * one.m * one.k * one.n
        moved = dtype.itemsize * one.m * one.k + OUTPUTS[dtype].itemsize * one.m * one.n
        stored = compressed_bytes(
            one.n,
            one.k,
            Pattern.parse(one.pattern),
            value_bits=8 * dtype.itemsize,
            index="hardware",
        )
        for form, weight, ms, floor in (
            ("dense", one.dense_bytes, one.dense_ms, one.dense_floor_ms),
            ("sparse", stored, one.sparse_ms, one.floor_ms),
        ):
            place = flops / (weight + moved), flops / ms / 1e9, flops / floor / 1e9
            rows.append((one.name, one.m, one.k, one.n, one.dtype, one.kernel, form, *place))
    columns = ["name", "m", "k", "n", "dtype", "kernel", "form"]
    return pd.DataFrame(rows, columns=[*columns, "intensity", "tflops", "roof_tflops"])
