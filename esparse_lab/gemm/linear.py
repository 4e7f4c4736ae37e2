"""A linear layer whose 2:4 weight is stored compressed and multiplied on sparse tensor cores."""

import ctypes
import weakref
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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

    A plan is kept for each number of tokens, so a call costs the CPU a few microseconds and can be
    captured in a CUDA graph, after one call with as many tokens outside of it. Layers share one
    workspace a device: call them on one stream at a time.

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
        if not choices or [c.tokens for c in choices] != sorted({c.tokens for c in choices}):
            raise InputError(f"{name}: choices must be in order of their tokens, got {choices}.")
        self.out_features, self.in_features = weight.shape
        self.dtype, self.name, self.choices = weight.dtype, name, choices
        keep_dense = any(choice.algorithm is None for choice in choices)
        keep_sparse = any(choice.algorithm is not None for choice in choices)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.register_buffer("dense", weight.detach() if keep_dense else None)
        stored = cusparselt.compress(weight.detach(), name) if keep_sparse else None
        self.register_buffer("stored", stored)
        self._plans: dict[int, tuple[Plan | None, Tensor | None]] = {}
        self._key = id(self)
        _LAYERS[self._key] = self

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., in] to [..., out]."""
        rows = x.reshape(-1, self.in_features)
        y = torch.ops.esparse_lab.sparse_linear(rows, self._key, self.out_features)
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

    def multiply(self, x: Tensor) -> Tensor:
        """Multiply x [tokens, in] to [tokens, out]: what the operator runs."""
        tokens = x.shape[0]
        plan, workspace = self._plans.get(tokens) or self._prepare(tokens)
        if plan is None:
            return F.linear(x, self.dense, self.bias)
        x = x.contiguous()
        padded = plan.product.tokens
        if padded != tokens:
            x = F.pad(x, (0, 0, 0, padded - tokens))
        y = torch.empty(padded, self.out_features, dtype=self.dtype, device=x.device)
        plan.run(
            self.stored.data_ptr(),
            x.data_ptr(),
            y.data_ptr(),
            workspace.data_ptr(),
            torch.cuda.current_stream().cuda_stream,
            _ONE_AT,
            _ZERO_AT,
        )
        return y[:tokens]

    def _prepare(self, tokens: int) -> tuple[Plan | None, Tensor | None]:
        if torch.cuda.is_current_stream_capturing():
            raise EsparseError(
                f"{self.name}: {tokens} tokens come up for the first time while a CUDA graph is "
                "captured. Call the model once with as many tokens before."
            )
        fitting = [choice for choice in self.choices if choice.tokens >= tokens]
        algorithm = (fitting or self.choices[-1:])[0].algorithm
        made = (None, None)
        if algorithm is not None:
            padded = cusparselt.padded_tokens(tokens, self.dtype)
            product = Product(self.out_features, self.in_features, padded, self.dtype)
            plan = Plan(product, self.stored.device, algorithm, self.bias)
            made = plan, _workspace(self.stored.device, plan.workspace_bytes)
        self._plans[tokens] = made
        return made


_LAYERS: "weakref.WeakValueDictionary[int, SparseLinear]" = weakref.WeakValueDictionary()
"""The layers that exist, for the operator: torch.compile sees a number, not a module."""

_WORKSPACES: dict[torch.device, Tensor] = {}


def _workspace(device: torch.device, n_bytes: int) -> Tensor:
    """The device's shared scratch; a larger one replaces it, and plans keep the one they had."""
    if device not in _WORKSPACES or _WORKSPACES[device].numel() < n_bytes:
        _WORKSPACES[device] = torch.zeros(max(n_bytes, 2**20), dtype=torch.uint8, device=device)
    return _WORKSPACES[device]


@torch.library.custom_op("esparse_lab::sparse_linear", mutates_args=())
def _sparse_linear(x: Tensor, layer: int, out_features: int) -> Tensor:
    return _LAYERS[layer].multiply(x)


@_sparse_linear.register_fake
def _(x: Tensor, layer: int, out_features: int) -> Tensor:
    return x.new_empty(x.shape[0], out_features)
