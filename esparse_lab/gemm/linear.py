"""A linear layer whose 2:4 weight is stored compressed and multiplied on sparse tensor cores."""

import ctypes
from dataclasses import dataclass, field
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esparse_lab.device_code import current_stream
from esparse_lab.errors import EsparseError, InputError
from esparse_lab.gemm import cusparselt
from esparse_lab.gemm.cusparselt import Algorithm, Plan, Product

_ONE, _ZERO = ctypes.c_float(1.0), ctypes.c_float(0.0)
_ONE_AT, _ZERO_AT = ctypes.addressof(_ONE), ctypes.addressof(_ZERO)


@dataclass(frozen=True)
class Choice:
    """How products of up to `tokens` tokens are computed.

    Attributes:
        tokens: the largest number of tokens that it is for.
        algorithm: of the sparse product, or None for the dense one.
    """

    tokens: int
    algorithm: Algorithm | None


class SparseLinear(nn.Module):
    """y = x Wᵀ + b for inference, with W compressed once.

    A plan is kept for each number of tokens, so a call costs the CPU little and can be captured in
    a CUDA graph, after one call with as many tokens outside of it. All layers share one workspace a
    device: call them on one stream at a time.

    Args:
        weight: [out, in] on a CUDA device, 2:4 along the input, float16 or bfloat16.
        bias: [out] or None.
        choices: in order of their tokens; beyond the last one, that one holds. The dense weight is
            kept as well if any of them is dense.
        name: what errors call the layer.

    Raises:
        InputError: cuSPARSELt has no kernel for such a weight, or it is not 2:4.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        choices: list[Choice],
        name: str = "weight",
    ):
        super().__init__()
        cusparselt.check_weight(weight, name, dtypes=cusparselt.LINEAR_DTYPES)
        if not choices or [c.tokens for c in choices] != sorted({c.tokens for c in choices}):
            raise InputError(f"{name}: choices must be in order of their tokens, got {choices}.")
        self.out_features, self.in_features = weight.shape
        self.choices = choices
        keep_dense = any(choice.algorithm is None for choice in choices)
        keep_sparse = any(choice.algorithm is not None for choice in choices)
        stored = cusparselt.compress(weight.detach(), name) if keep_sparse else None
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.register_buffer("dense", weight.detach() if keep_dense else None)
        self.register_buffer("stored", stored)
        # Layers of one shape share a number, so that torch.compile makes one kernel for all blocks.
        self._shape = _number(*weight.shape, weight.dtype, tuple(choices))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., in] to [..., out]."""
        y = torch.ops.esparse_lab.sparse_linear(
            x.reshape(-1, self.in_features),
            self.stored,
            self.dense,
            self.bias,
            self.out_features,
            self._shape,
        )
        return y.view(*x.shape[:-1], self.out_features)

    @property
    def weight_bytes(self) -> int:
        """Of the stored forms of the weight."""
        return sum(form.nbytes for form in (self.dense, self.stored) if form is not None)

    def extra_repr(self) -> str:
        """For `print(model)`."""
        kinds = ", ".join(
            f"up to {c.tokens} tokens {'dense' if c.algorithm is None else 'sparse'}"
            for c in self.choices
        )
        return f"in_features={self.in_features}, out_features={self.out_features}, {kinds}"


@dataclass
class _Shape:
    """The plans of all layers that have one shape and one list of choices."""

    rows: int
    columns: int
    dtype: torch.dtype
    choices: tuple[Choice, ...]
    plans: dict[tuple, tuple[Plan | None, Tensor | None, Tensor | None]] = field(
        default_factory=dict
    )

    def multiply(
        self, x: Tensor, stored: Tensor | None, dense: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        if x.dtype != self.dtype:  # the library would read its bytes as the weight's dtype
            raise InputError(
                f"A layer {self.rows} x {self.columns} multiplies {self.dtype}, got {x.dtype}."
            )
        tokens = x.shape[0]
        key = (tokens, x.device.index, None if bias is None else bias.data_ptr())
        plan, workspace, staged = self.plans.get(key) or self._prepare(key, tokens, x.device, bias)
        if plan is None:
            return F.linear(x, dense, bias)
        if staged is None:
            x = x.contiguous()
        else:  # what its other rows hold does not matter
            staged[:tokens].copy_(x)
            x = staged
        y = torch.empty(plan.product.tokens, self.rows, dtype=self.dtype, device=x.device)
        plan.run(
            stored.data_ptr(),
            x.data_ptr(),
            y.data_ptr(),
            workspace.data_ptr(),
            current_stream(x.device.index),
            _ONE_AT,
            _ZERO_AT,
        )
        return y[:tokens]

    def _prepare(
        self, key: tuple, tokens: int, device: torch.device, bias: Tensor | None
    ) -> tuple[Plan | None, Tensor | None, Tensor | None]:
        fitting = [choice for choice in self.choices if choice.tokens >= tokens]
        algorithm = (fitting or self.choices[-1:])[0].algorithm
        made = (None, None, None)
        if algorithm is not None:
            if torch.cuda.is_current_stream_capturing():
                raise EsparseError(
                    f"A layer {self.rows} x {self.columns} meets {tokens} tokens for the first "
                    "time while a CUDA graph is captured. Call the model once with as many tokens "
                    "before."
                )
            padded = cusparselt.padded_tokens(tokens, self.dtype)
            plan = Plan(
                Product(self.rows, self.columns, padded, self.dtype), device, algorithm, bias
            )
            staged = None
            if padded != tokens:
                staged = torch.zeros(padded, self.columns, dtype=self.dtype, device=device)
            made = plan, _workspace(device, plan.workspace_bytes), staged
        self.plans[key] = made
        return made


_SHAPES: list[_Shape] = []


@cache
def _number(rows: int, columns: int, dtype: torch.dtype, choices: tuple[Choice, ...]) -> int:
    _SHAPES.append(_Shape(rows, columns, dtype, choices))
    return len(_SHAPES) - 1


_WORKSPACES: dict[torch.device, Tensor] = {}


def _workspace(device: torch.device, n_bytes: int) -> Tensor:
    """The device's shared scratch; a larger one replaces it, and plans keep the one they had."""
    if device not in _WORKSPACES or _WORKSPACES[device].numel() < n_bytes:
        _WORKSPACES[device] = torch.zeros(max(n_bytes, 2**20), dtype=torch.uint8, device=device)
    return _WORKSPACES[device]


# The bare registration: torch.library.custom_op would cost each call tens of microseconds.
_LIBRARY = torch.library.Library("esparse_lab", "DEF")
_LIBRARY.define(
    "sparse_linear(Tensor x, Tensor? stored, Tensor? dense, Tensor? bias, int rows, int shape)"
    " -> Tensor"
)


def _sparse_linear(x, stored, dense, bias, rows, shape):
    return _SHAPES[shape].multiply(x, stored, dense, bias)


def _sparse_linear_shape(x, stored, dense, bias, rows, shape):
    return x.new_empty(x.shape[0], rows)


_LIBRARY.impl("sparse_linear", _sparse_linear, "CUDA")
torch.library.register_fake("esparse_lab::sparse_linear", _sparse_linear_shape)
