"""y = x Wᵀ + b with a compressed N:M weight and few tokens; see `nm_kernels`."""

import importlib.util
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from esparse_lab.errors import InputError
from esparse_lab.gemm.permute_table import permutations
from esparse_lab.masks import Pattern
from esparse_lab.storage import Compressed

MOST_TOKENS = 32
KEPT_OF_EIGHT = (2, 4)
"""How many of eight neighbouring columns a pattern may keep: 1:4 and 2:8, 2:4 and 4:8."""


_MOST_BLOCKS = 2**14
MOST_ROWS = 64 * _MOST_BLOCKS
"""Outputs of a weight, at the least rows a program takes."""


@dataclass(frozen=True)
class Launch:
    """How the kernel is spread over the device.

    Attributes:
        rows: outputs of one program.
        words: groups of eight columns that it reads at a time.
        splits: programs that share the columns of one block of rows.
        warps, stages: of the program.
    """

    rows: int = 64
    words: int = 16
    splits: int = 4
    warps: int = 4
    stages: int = 2


LAUNCHES = [
    Launch(rows, words, splits, warps, stages)
    for rows, warps in ((64, 4), (128, 4), (128, 8))
    for words in (8, 16, 32)
    for splits in (1, 2, 4, 8)
    for stages in (2, 4)
]
"""What `fastest_launch` tries."""


def unavailable() -> str:
    """Why the kernel cannot run here, with what to do about it; empty when it can."""
    if not torch.cuda.is_available():
        return "no CUDA device is present"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    return ""


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
        launch: how to spread the work; a guess from the shape when None.

    Raises:
        InputError: the kernel does not read such a weight, or x does not fit it.
    """
    tokens, columns = x.shape
    check_nm_linear(weight, tokens)
    if columns != weight.columns or x.dtype != weight.values.dtype:
        raise InputError(
            f"x is {tuple(x.shape)} of {x.dtype}: expected {weight.columns} channels of "
            f"{weight.values.dtype}."
        )
    from esparse_lab.gemm import nm_kernels  # needs Triton

    launch = launch or Launch()
    rows, words = len(weight.values), columns // 8
    kept = int(weight.pattern.density * 8)
    each = -(-words // launch.splits)
    each = -(-each // launch.words) * launch.words
    blocks = -(-rows // launch.rows)
    if blocks > _MOST_BLOCKS:
        raise InputError(f"The weight has {rows} rows, the kernel takes {MOST_ROWS} at most.")
    x = x.contiguous()
    y = x.new_empty(tokens, rows)
    partial = torch.empty(launch.splits, tokens, rows, device=x.device)
    nm_kernels.nm_linear_kernel[(blocks, launch.splits)](
        x,
        weight.values.view({2: torch.int32, 4: torch.int64}[kept]),
        weight.bits,
        permutations(kept, x.device),
        x if bias is None else bias,
        y,
        partial,
        _zeros(x.device),
        tokens,
        rows,
        words,
        each,
        KEPT=kept,
        WITHIN_FOUR=weight.pattern.m == 4,
        HAS_BIAS=bias is not None,
        TOKENS=16 if tokens <= 16 else 32,
        BLOCK_ROWS=launch.rows,
        BLOCK_WORDS=launch.words,
        SPLITS=launch.splits,
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
    return y


@cache
def _zeros(device: torch.device) -> Tensor:
    """Counters that the kernel leaves at zero, so that no call must clear them."""
    return torch.zeros(_MOST_BLOCKS, dtype=torch.int32, device=device)


def fastest_launch(x: Tensor, weights: list[Compressed]) -> Launch:
    """The fastest way to spread this product over the device, measured.

    Args:
        x: [tokens, in].
        weights: copies of the compressed weight, enough that no cache holds them all.
    """
    from esparse_lab.gemm.clock import device_ms

    rows = len(weights[0].values)
    times = {}
    for launch in LAUNCHES:
        if launch.rows > rows or launch.splits * launch.words * 8 > x.shape[1]:
            continue
        calls = [lambda w=w, on=launch: nm_linear(x, w, launch=on) for w in weights]
        times[launch] = device_ms(calls, least_ms=1.0, replays=3).median
    return min(times, key=times.get)
