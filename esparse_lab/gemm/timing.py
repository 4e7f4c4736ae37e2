"""How long a product takes, dense and sparse, on this device: `time_gemm`."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import get_args

import pandas as pd
import torch
from tqdm import tqdm

from esparse_lab.errors import EsparseError, InputError, unknown
from esparse_lab.gemm import cusparselt, nm_linear
from esparse_lab.gemm.algorithms import AlgorithmStore
from esparse_lab.gemm.clock import Milliseconds, alternating_ms, kernel_names
from esparse_lab.gemm.cusparselt import TWO_FOUR, Plan, Product, padded_tokens
from esparse_lab.gemm.kernel import Kernel, unavailable
from esparse_lab.gemm.nm_linear import check_nm_product
from esparse_lab.gemm.operands import Operands
from esparse_lab.gemm.roofline import least_bytes, roofline
from esparse_lab.gemm.search import found
from esparse_lab.gemm.shapes import GemmShape
from esparse_lab.masks import Pattern
from esparse_lab.models import device_of
from esparse_lab.storage import compress

_SPARSE = re.compile(r"spars|sptensorop|spmma|nm_linear", re.IGNORECASE)


@dataclass(frozen=True)
class GemmTiming:
    """One product, y [m, n] = x [m, k] Wᵀ, measured dense and sparse in one run.

    Times are device times of one call in milliseconds, medians of replays of a CUDA graph over
    cold weights, dense and sparse in turn; see `clock.alternating_ms`.

    Attributes:
        name, m, k, n: the product; tokens, input channels, outputs.
        dtype, pattern, kernel, device: of what, by what and where.
        dense_ms, dense_least, dense_most: PyTorch's dense product (cuBLAS) of these m tokens, its
            median and spread.
        default_ms: cuSPARSELt with its own choice of algorithm; None where it has none.
        sparse_ms, sparse_least, sparse_most: the sparse product after the search; where the
            library wants more tokens than m, with the copy of them to their place.
        floor_ms: the least time that this card's measured arithmetic and bandwidth allow the
            sparse product; `dense_floor_ms` likewise.
        dense_bytes, sparse_bytes: of the weight.
        relative_error: of the sparse product against float32, ‖y - exact‖ / ‖exact‖.
        algorithm: the search's choice.
        kernel_name: of the longest kernel that the profiler saw.
        sparse_kernel: whether that name is a sparse kernel's.
    """

    name: str
    m: int
    k: int
    n: int
    dtype: str
    pattern: str
    kernel: str
    device: str
    dense_ms: float
    dense_least: float
    dense_most: float
    default_ms: float | None
    sparse_ms: float
    sparse_least: float
    sparse_most: float
    floor_ms: float
    dense_floor_ms: float
    dense_bytes: int
    sparse_bytes: int
    relative_error: float
    algorithm: str
    kernel_name: str
    sparse_kernel: bool

    @property
    def speedup(self) -> float:
        """How many times as fast as dense."""
        return self.dense_ms / self.sparse_ms

    @property
    def latency_reduction(self) -> float:
        """Share of the dense time that is saved, as Table 5 gives it; negative where slower."""
        return 1 - self.sparse_ms / self.dense_ms

    @property
    def tflops(self) -> float:
        """Arithmetic of the dense product in the sparse one's time, 1e12 operations a second."""
        return 2 * self.m * self.k * self.n / self.sparse_ms / 1e9

    @property
    def gbps(self) -> float:
        """Bytes of weight, inputs and outputs in the sparse product's time, 1e9 a second."""
        size = getattr(torch, self.dtype).itemsize
        return (self.sparse_bytes + size * self.m * self.k + 2 * self.m * self.n) / (
            self.sparse_ms * 1e6
        )


def time_gemm(
    m: int,
    k: int,
    n: int,
    *,
    dtype: torch.dtype | str = torch.float16,
    pattern: Pattern = TWO_FOUR,
    kernel: Kernel = "cusparselt",
    name: str = "",
    device: torch.device | str = "cuda",
    store: AlgorithmStore | None = None,
) -> GemmTiming:
    """Measure one product dense and sparse, on random data.

    Args:
        m: tokens.
        k: input channels.
        n: outputs.
        dtype: float16, bfloat16, int8 or float8_e4m3fn ("compressed": the first two).
        pattern: 2:4 for cuSPARSELt; 1:4, 2:8, 2:4 or 4:8 for the other.
        kernel: "cusparselt" (sparse tensor cores), or "compressed" (the stored weight read and
            multiplied densely, for few tokens).
        name: of the product in tables.
        device: a CUDA device.
        store: where searches are kept; the device's file in the cache when None.

    Raises:
        InputError: sizes, dtype, pattern or kernel cannot be measured.
        EsparseError: this machine cannot run it, and why.
    """
    shape = GemmShape(name or f"{m},{k},{n}", m, k, n)
    dtype = check_gemm(shape, dtype, pattern, kernel)
    if reason := unavailable(kernel):
        raise EsparseError(f"Nothing can be timed here: {reason}.")
    device = device_of(device)
    if device.type != "cuda":
        raise InputError(f"Products are timed on a CUDA device, not on {device}.")
    device = torch.device("cuda", cusparselt.device_index(device))
    try:
        with torch.cuda.device(device):
            if kernel == "compressed":
                return _by_compressed(shape, dtype, pattern, device)
            return _by_cusparselt(shape, dtype, pattern, device, store or AlgorithmStore(device))
    except torch.cuda.OutOfMemoryError as error:
        raise EsparseError(f"{shape} does not fit in the memory of {device}: {error}") from error


def check_gemm(
    shape: GemmShape, dtype: torch.dtype | str, pattern: Pattern, kernel: Kernel
) -> torch.dtype:
    """The dtype, if `time_gemm` can measure such a product on some device.

    Raises:
        InputError: it cannot, and why.
    """
    if kernel not in get_args(Kernel):
        raise unknown("kernel", kernel, get_args(Kernel))
    names = {str(known).removeprefix("torch."): known for known in cusparselt.OUTPUTS}
    name = str(dtype).removeprefix("torch.")
    if name not in names:
        raise unknown("dtype", name, list(names))
    dtype = names[name]
    if kernel == "compressed":
        check_nm_product(shape.m, shape.k, pattern, dtype)
    elif pattern != TWO_FOUR:
        raise InputError(
            f"Sparse tensor cores multiply 2:4, not {pattern}. For few tokens kernel='compressed' "
            "reads 1:4, 2:8 and 4:8."
        )
    else:
        weight = torch.empty(shape.n, shape.k, dtype=dtype, device="meta")
        cusparselt.check_weight(weight, f"the weight of {shape.name}")
    return dtype


def gemm_table(timings: Iterable[GemmTiming]) -> pd.DataFrame:
    """One row a timing: its fields, and speedup, latency_reduction, tflops, gbps, above_floor.

    `above_floor` is the sparse time divided by its floor.
    """
    return pd.DataFrame(
        {
            **asdict(timing),
            "speedup": timing.speedup,
            "latency_reduction": timing.latency_reduction,
            "tflops": timing.tflops,
            "gbps": timing.gbps,
            "above_floor": timing.sparse_ms / timing.floor_ms,
        }
        for timing in timings
    )


def summary(table: pd.DataFrame) -> str:
    """A `gemm_table` as text: a line a product, then which algorithm and kernel each ran."""
    times = pd.DataFrame(
        {
            "product": table.name,
            "M,K,N": [f"{m},{k},{n}" for m, k, n in zip(table.m, table.k, table.n, strict=True)],
            "dense ms": table.dense_ms.map("{:.4f}".format),
            "default ms": [f"{ms:.4f}" if pd.notna(ms) else "none" for ms in table.default_ms],
            "sparse ms": table.sparse_ms.map("{:.4f}".format),
            "reduction": table.latency_reduction.map("{:.1%}".format),
            "TFLOP/s": table.tflops.map("{:.1f}".format),
            "GB/s": table.gbps.map("{:.0f}".format),
            "x floor": table.above_floor.map("{:.2f}".format),
            "dense MB": (table.dense_bytes / 1e6).map("{:.2f}".format),
            "stored MB": (table.sparse_bytes / 1e6).map("{:.2f}".format),
            "error": table.relative_error.map("{:.1e}".format),
            "sparse kernel": table.sparse_kernel.map({True: "yes", False: "no"}),
        }
    )
    first = table.iloc[0]
    ran = [
        f"{one.name}: {one.algorithm}, {one.kernel_name or 'no kernel seen'}"
        for one in table.itertuples()
    ]
    heading = f"{first['kernel']}, {first['pattern']}, {first['dtype']}, {first['device']}"
    return "\n".join([heading, times.to_string(index=False), "", *ran])


def time_shapes(
    shapes: Iterable[GemmShape],
    *,
    dtype: torch.dtype | str = torch.float16,
    kernel: Kernel = "cusparselt",
    device: torch.device | str = "cuda",
    progress: bool = True,
    **settings: object,
) -> list[GemmTiming]:
    """`time_gemm` of each shape, with progress bars; one process searches for all of them."""
    shapes = list(shapes)
    settings |= {"dtype": dtype, "kernel": kernel, "device": device}
    if kernel == "cusparselt" and not unavailable(kernel):
        at = torch.device("cuda", cusparselt.device_index(device_of(device)))
        checked = [check_gemm(s, dtype, TWO_FOUR, kernel) for s in shapes]
        products = [
            Product(s.n, s.k, padded_tokens(s.m, known), known)
            for s, known in zip(shapes, checked, strict=True)
        ]
        bar = tqdm(products, "searching", unit="product", disable=not progress)
        found(bar, at, AlgorithmStore(at))
    bar = tqdm(shapes, "timing", unit="product", disable=not progress)
    return [time_gemm(s.m, s.k, s.n, name=s.name, **settings) for s in bar]


def _by_cusparselt(
    shape: GemmShape,
    dtype: torch.dtype,
    pattern: Pattern,
    device: torch.device,
    store: AlgorithmStore,
) -> GemmTiming:
    product = Product(shape.n, shape.k, padded_tokens(shape.m, dtype), dtype)
    best = found([product], device, store)[product]
    operands = Operands.random(product, device, pattern)
    stored = operands.compressed()
    calls = operands.sparse_calls(Plan(product, device, best.algorithm), stored, shape.m)
    dense, sparse = alternating_ms(operands.dense_calls(shape.m), calls)
    operands.y.fill_(float("nan"))
    calls[0]()
    return _timing(
        shape,
        product,
        pattern,
        "cusparselt",
        device,
        dense=dense,
        default_ms=best.default_ms,
        sparse=sparse,
        sparse_bytes=stored[0].nbytes,
        relative_error=operands.error(),
        algorithm=str(best.algorithm),
        names=kernel_names(calls[0]),
    )


def _by_compressed(
    shape: GemmShape,
    dtype: torch.dtype,
    pattern: Pattern,
    device: torch.device,
) -> GemmTiming:
    product = Product(shape.n, shape.k, shape.m, dtype)
    operands = Operands.random(product, device, pattern)
    stored = [compress(weight, pattern) for weight in operands.weights]
    launch = nm_linear.fastest_launch(operands.x, stored)

    def call(weight) -> None:
        operands.y = nm_linear.nm_linear(operands.x, weight, launch=launch)

    calls = [lambda w=w: call(w) for w in stored]
    dense, sparse = alternating_ms(operands.dense_calls(), calls)
    calls[0]()
    return _timing(
        shape,
        product,
        pattern,
        "compressed",
        device,
        dense=dense,
        default_ms=None,
        sparse=sparse,
        sparse_bytes=stored[0].nbytes,
        relative_error=operands.error(),
        algorithm=str(launch),
        names=kernel_names(calls[0]),
    )


def _timing(
    shape: GemmShape,
    product: Product,
    pattern: Pattern,
    kernel: str,
    device: torch.device,
    *,
    dense: Milliseconds,
    default_ms: float | None,
    sparse: Milliseconds,
    sparse_bytes: int,
    relative_error: float,
    algorithm: str,
    names: list[str],
) -> GemmTiming:
    dtype = str(product.dtype).removeprefix("torch.")
    size = product.dtype.itemsize
    dense_bytes = size * shape.k * shape.n
    moved = size * shape.m * shape.k + product.out_dtype.itemsize * shape.m * shape.n
    flops = 2 * shape.m * shape.k * shape.n
    ceilings = roofline(device.index)
    least_stored = least_bytes(shape.n, shape.k, pattern, product.dtype)
    return GemmTiming(
        shape.name,
        shape.m,
        shape.k,
        shape.n,
        dtype,
        str(pattern),
        kernel,
        torch.cuda.get_device_name(device),
        dense.median,
        dense.least,
        dense.most,
        default_ms,
        sparse.median,
        sparse.least,
        sparse.most,
        ceilings.floor_ms(flops, least_stored + moved, dtype, sparse=kernel == "cusparselt"),
        ceilings.floor_ms(flops, dense_bytes + moved, dtype),
        dense_bytes,
        sparse_bytes,
        relative_error,
        algorithm,
        names[0] if names else "",
        bool(names) and bool(_SPARSE.search(names[0])),
    )
