"""y = x Wᵀ + b with a compressed N:M weight and few tokens; `nm_linear.cu` is its kernel."""

import itertools
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from esparse_lab.device_code import launch_config, start
from esparse_lab.errors import InputError
from esparse_lab.gemm import nm_kernels
from esparse_lab.gemm.nm_kernels import Variant
from esparse_lab.masks import Pattern
from esparse_lab.storage import Compressed

MOST_TOKENS = 32
KEPT_OF_EIGHT = (2, 4)
"""How many of eight neighbouring columns a pattern may keep: 1:4 and 2:8, 2:4 and 4:8."""


_MOST_BLOCKS = 2**14
MOST_ROWS = 32 * _MOST_BLOCKS
"""Outputs of a weight, at the least rows a block takes."""


@dataclass(frozen=True)
class Launch:
    """How the kernel is spread over the device.

    Attributes:
        rows: outputs of one block; 32, 64 or 128.
        row_bytes: of a row's kept values that a block reads at a time; 128 or 256, which 32 rows
            need.
        splits: blocks that share the columns of the same rows.
        blocks: that share a multiprocessor. Its shared memory is what they read ahead into.
    """

    rows: int = 32
    row_bytes: int = 256
    splits: int = 1
    blocks: int = 2


LAUNCHES = [
    Launch(rows, row_bytes, splits, blocks)
    for rows, row_bytes, most_blocks in ((32, 256, 3), (64, 128, 2), (128, 128, 2))
    for blocks in range(1, most_blocks + 1)
    for splits in (1, 2, 4)
]
"""What `fastest_launch` tries."""


def check_nm_product(tokens: int, columns: int, pattern: Pattern, dtype: torch.dtype) -> None:
    """Raise `InputError` if the kernel does not multiply so many tokens by such a weight."""
    if pattern.density * 8 not in KEPT_OF_EIGHT or pattern.m not in (4, 8):
        raise InputError(
            f"The kernel reads 1:4, 2:8, 2:4 and 4:8, not {pattern}. Multiply the decompressed "
            "weight."
        )
    if columns % 8:
        raise InputError(f"The kernel reads eight columns at a time, and the weight has {columns}.")
    if dtype not in (torch.float16, torch.bfloat16):
        raise InputError(f"The kernel reads float16 and bfloat16, not {dtype}.")
    if tokens > MOST_TOKENS:
        raise InputError(f"The kernel multiplies at most {MOST_TOKENS} tokens, got {tokens}.")


def check_nm_linear(weight: Compressed, tokens: int = 1) -> None:
    """Raise `InputError` if the kernel does not multiply so many tokens by this weight."""
    check_nm_product(tokens, weight.columns, weight.pattern, weight.values.dtype)
    if weight.values.device.type != "cuda":
        raise InputError(f"The kernel runs on a CUDA device, not on {weight.values.device}.")


def nm_linear(
    x: Tensor, weight: Compressed, bias: Tensor | None = None, *, launch: Launch | None = None
) -> Tensor:
    """Multiply x [tokens, in] by the compressed weight [out, in]: [tokens, out].

    Sums are in float32 and always in the same order, so the same inputs give the same bits.

    Args:
        x: at most `MOST_TOKENS` tokens, of the weight's dtype and device.
        weight: from `storage.compress`; 1:4, 2:8, 2:4 or 4:8.
        bias: [out].
        launch: how to spread the work; a guess from the shape when None. The first call with one
            compiles, so it must not be captured in a graph.

    Raises:
        InputError: the kernel does not read such a weight, or x does not fit it.
    """
    tokens, columns = x.shape
    check_nm_linear(weight, tokens)
    values = weight.values
    if columns != weight.columns or x.dtype != values.dtype or x.device != values.device:
        raise InputError(
            f"x is {tuple(x.shape)} of {x.dtype} on {x.device}: expected {weight.columns} channels "
            f"of {values.dtype} on {values.device}."
        )
    rows = len(values)
    if bias is not None and (bias.shape != (rows,) or bias.dtype != x.dtype):
        raise InputError(
            f"bias is {tuple(bias.shape)} of {bias.dtype}: expected ({rows},) of {x.dtype}."
        )
    device = x.device.index
    if launch is None:
        launch = _guess(rows, columns, device)
    kernel, grid = _prepared(x.dtype, weight.pattern, tokens, rows, columns // 8, launch, device)
    x, values, bits = _aligned(x), _aligned(values), _aligned(weight.bits)
    if bias is not None:
        bias = bias.contiguous()
    with torch.cuda.device(device):
        y = x.new_empty(tokens, rows)
        parts = None
        if launch.splits > 1:
            parts = torch.empty(launch.splits, tokens, rows, device=x.device)
        start(
            device,
            grid,
            kernel,
            x.data_ptr(),
            values.data_ptr(),
            bits.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            y.data_ptr(),
            0 if parts is None else parts.data_ptr(),
            _counters(device) + next(_turns) % _TURNS * 4 * _MOST_BLOCKS,
            tokens,
            rows,
            columns // 8,
        )
    return y


@cache
def _prepared(
    dtype: torch.dtype,
    pattern: Pattern,
    tokens: int,
    rows: int,
    words: int,
    launch: Launch,
    device: int,
):
    """The kernel, compiled, and the grid of this product's launches."""
    blocks = -(-rows // launch.rows)
    if blocks > _MOST_BLOCKS:
        raise InputError(f"The weight has {rows} rows, the kernel takes {MOST_ROWS} at most.")
    variant = _variant(dtype, pattern, tokens, words, launch)
    stages = variant.stages(device, launch.blocks)
    if stages < 2:
        raise InputError(f"{launch} takes more shared memory than this device has.")
    with torch.cuda.device(device):
        kernel = nm_kernels.kernel(variant, stages, device)
    shared = stages * variant.stage_bytes
    return kernel, launch_config((blocks, launch.splits), nm_kernels.THREADS, shared)


def nm_decompress(weight: Compressed) -> Tensor:
    """The weight in full, [out, in], as `weight.decompress()`; nothing waits for the device.

    Raises:
        InputError: the kernel does not read such a weight.
    """
    check_nm_linear(weight)
    values, bits = weight.values.contiguous(), weight.bits.contiguous()
    full = values.new_empty(len(values), weight.columns)
    device, words = values.device.index, bits.numel()
    kernel = nm_kernels.decompressing(int(weight.pattern.density * 8), device)
    config = launch_config((-(-words // nm_kernels.THREADS),), nm_kernels.THREADS)
    with torch.cuda.device(device):
        start(device, config, kernel, values.data_ptr(), bits.data_ptr(), full.data_ptr(), words)
    return full


def _variant(
    dtype: torch.dtype, pattern: Pattern, tokens: int, words: int, launch: Launch
) -> Variant:
    return Variant(
        bf16=dtype == torch.bfloat16,
        kept=int(pattern.density * 8),
        within_four=pattern.m == 4,
        tiles=next(tiles for tiles in (1, 2, 4) if tokens <= 8 * tiles),
        rows=launch.rows,
        row_bytes=launch.row_bytes,
        aligned=next(step for step in (16, 4, 1) if words % step == 0),
    )


@cache
def _guess(rows: int, columns: int, device: int) -> Launch:
    """All blocks at work at once, each on as few rows as it takes: mostly the fastest of all."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    blocks = -(-rows // Launch.rows)
    splits = max(1, min(4, round(processors / blocks), columns // 512))
    return Launch(splits=splits, blocks=min(3, -(-blocks * splits // processors)))


def _aligned(tensor: Tensor) -> Tensor:
    """In row order, and starting where the kernel can read 16 bytes at a time."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


_TURNS = 16
_turns = itertools.count()


@cache
def _counters(device: int) -> int:
    """Address of counters that the kernel leaves at zero, so that no call must clear them.

    Calls take turns with `_TURNS` sets of them, since calls on several streams may overlap.
    """
    _kept.append(torch.zeros(_TURNS * _MOST_BLOCKS, dtype=torch.int32, device=device))
    return _kept[-1].data_ptr()


_kept: list[Tensor] = []


def fastest_launch(x: Tensor, weights: list[Compressed]) -> Launch:
    """The fastest way to spread this product over the device, measured.

    Args:
        x: [tokens, in].
        weights: copies of the compressed weight, enough that no cache holds them all.
    """
    times = launch_times(x, weights)
    return min(times, key=times.get)


def launch_times(x: Tensor, weights: list[Compressed]) -> dict[Launch, float]:
    """Milliseconds of the product under each of `LAUNCHES` that fits it and the device."""
    from esparse_lab.gemm.clock import device_ms

    tokens, columns = x.shape
    times = {}
    for launch in LAUNCHES:
        variant = _variant(x.dtype, weights[0].pattern, tokens, columns // 8, launch)
        if variant.words * launch.splits * 8 > columns:
            continue
        if variant.stages(x.device.index, launch.blocks) < 2:
            continue
        calls = [lambda w=w, on=launch: nm_linear(x, w, launch=on) for w in weights]
        times[launch] = device_ms(calls, least_ms=1.0, replays=3).median
    return times
