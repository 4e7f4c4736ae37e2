"""A norm whose output comes in another channel order, in one kernel: `gathered_norm.cu`.

Where the kernel cannot run, PyTorch computes the norm and gathers, which is its oracle.
"""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from esparse_lab import device_code

_SOURCE = Path(__file__).with_name("gathered_norm.cu")
_SUMS_BYTES = 256
_MOST_THREADS = 512
MOST_BYTES = 1 << 16
"""Of a row: it lies in shared memory. 32768 channels of float16 or 16384 of float32."""

_LLAMA = ("Llama", "Mistral", "Mixtral", "Phi3", "Qwen2", "Qwen2Moe", "Qwen3", "Qwen3Moe")
_GEMMA = ("Gemma", "Gemma2", "Gemma3")
FORMULAS = {
    "LayerNorm": ("layer", "eps"),
    **{f"{name}RMSNorm": ("rms", "variance_epsilon") for name in _LLAMA},
    **{f"{name}RMSNorm": ("gemma", "eps") for name in _GEMMA},
}
"""What the kernel computes for a class of norm, and where that keeps its epsilon.

With n = x / sqrt(mean(x²) + eps) in float32 and T rounding to the dtype of x: "rms" is
T(weight * T(n)), "gemma" T((1 + weight) * n), "layer" LayerNorm's formula rounded once.
"""


class GatheredNorm(nn.Module):
    """A norm whose output channels are reordered: `out[..., k] = norm(x)[..., index[k]]`.

    On a CUDA device (compute capability 8.0 or later, with cuda.core) one kernel does it for the
    norms in `FORMULAS`, unless gradients are wanted. It rounds where the norm does but sums in
    another order, so that now and then a rounding falls to the other side. Its first call for a
    width and dtype compiles it, so that one must not be captured in a graph.

    Attributes:
        norm: the norm as it was.
        index: a buffer, int64 [channel]; saved with the model.
    """

    def __init__(self, norm: nn.Module, index: Tensor):
        super().__init__()
        self.norm = norm
        self.register_buffer("index", index)
        self.formula, eps = FORMULAS.get(type(norm).__name__, ("", ""))
        self.eps = getattr(norm, eps) if eps else 0.0

    def forward(self, hidden: Tensor) -> Tensor:
        """The norm of `hidden` [..., channel], reordered."""
        norm = self.norm
        if not self.formula or not _fuses(hidden, norm.weight, self.index):
            return norm(hidden).index_select(-1, self.index)
        bias = norm.bias if self.formula == "layer" else None
        return torch.ops.esparse_lab.gathered_norm(
            hidden, norm.weight, bias, self.index, self.formula, self.eps
        )


def _fuses(x: Tensor, weight: Tensor | None, index: Tensor) -> bool:
    """Whether the kernel can take the place of a norm with this weight, or None."""
    return (
        x.is_cuda
        and weight is not None
        and x.dtype == weight.dtype
        and x.dtype in (torch.float16, torch.bfloat16, torch.float32)
        and x.device == weight.device == index.device
        and weight.shape == x.shape[-1:] == index.shape
        and x.shape[-1] * x.element_size() <= MOST_BYTES
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and _runs_on(x.device)
    )


@torch.compiler.assume_constant_result
def _runs_on(device: torch.device) -> bool:
    return device_code.runs_on(device)


_LIBRARY = torch.library.Library("esparse_lab", "FRAGMENT")
_LIBRARY.define(
    "gathered_norm(Tensor x, Tensor weight, Tensor? bias, Tensor index, str formula, float eps)"
    " -> Tensor"
)


def _gathered_norm(x, weight, bias, index, formula, eps):
    y = x.new_empty(x.shape)
    if not y.numel():
        return y
    width, device = x.shape[-1], x.device.index
    rows = x.reshape(-1, width)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    vector = _vector(rows)
    with torch.cuda.device(device):
        kernel, threads, shared, blocks = _prepared(x.dtype, formula, eps, width, vector, device)
        device_code.start(
            device,
            device_code.launch_config((min(len(rows), blocks),), threads, shared),
            kernel,
            rows.data_ptr(),
            rows.stride(0),
            len(rows),
            index.contiguous().data_ptr(),
            weight.contiguous().data_ptr(),
            0 if bias is None else bias.contiguous().data_ptr(),
            y.data_ptr(),
        )
    return y


def _gathered_norm_shape(x, weight, bias, index, formula, eps):
    return x.new_empty(x.shape)


_LIBRARY.impl("gathered_norm", _gathered_norm, "CUDA")
torch.library.register_fake("esparse_lab::gathered_norm", _gathered_norm_shape)


def _vector(rows: Tensor) -> int:
    """Channels that are read at once: 16 bytes of them, where all rows start at such a multiple."""
    vector = 16 // rows.element_size()
    starts = rows.data_ptr() // rows.element_size(), rows.stride(0), rows.shape[1]
    return 1 if any(start % vector for start in starts) else vector


def _constants(dtype: torch.dtype, formula: str, eps: float, width: int, vector: int) -> dict:
    """What the kernel is compiled with, as its head explains."""
    pieces = width // vector
    each = -(-pieces // _MOST_THREADS)
    return {
        "BYTES": dtype.itemsize,
        "BF16": int(dtype == torch.bfloat16),
        "LAYER": int(formula == "layer"),
        "GEMMA": int(formula == "gemma"),
        "EPS": eps,
        "WIDTH": width,
        "VECTOR": vector,
        "THREADS": 32 * -(-pieces // (32 * each)),
    }


@cache
def _prepared(dtype: torch.dtype, formula: str, eps: float, width: int, vector: int, device: int):
    """The compiled kernel, its threads and shared memory, and how many blocks run at a time."""
    constants = _constants(dtype, formula, eps, width, vector)
    threads, shared = constants["THREADS"], _SUMS_BYTES + width * dtype.itemsize
    kernel = device_code.compiled(_SOURCE, "gathered_norm", constants, device, shared_bytes=shared)
    torch.cuda.synchronize(device)  # makes the device's context this thread's, if none is yet
    at_a_time = kernel.occupancy.max_active_blocks_per_multiprocessor(threads, shared)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return kernel, threads, shared, at_a_time * processors
