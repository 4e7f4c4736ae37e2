"""A linear layer whose N:M weight lies compressed in memory, of patterns that no hardware skips.

With few tokens a layer's time is that of reading its weight, and `nm_linear` reads the compressed
one. With many tokens the weight is decompressed for the moment and multiplied densely.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esparse_lab.errors import InputError
from esparse_lab.gemm.nm_linear import MOST_TOKENS, check_nm_product, nm_decompress, nm_linear
from esparse_lab.masks import Pattern
from esparse_lab.storage import Compressed, compress

MOST_IN_PARTS = 2 * MOST_TOKENS
"""Up to so many tokens the weight is read again for each `MOST_TOKENS` of them."""


class CompressedLinear(nn.Module):
    """y = x Wᵀ + b for inference, with W [out, in] stored as its kept values and a bit a weight.

    Args:
        weight: on a CUDA device, sparse as the pattern says, float16 or bfloat16.
        pattern: 1:4, 2:8, 2:4 or 4:8.
        bias: [out] or None.
        name: what errors call the layer.

    Raises:
        InputError: the kernel does not read such a weight, or it is not sparse in this pattern.
    """

    def __init__(
        self, weight: Tensor, pattern: Pattern, bias: Tensor | None = None, *, name: str = "weight"
    ):
        super().__init__()
        check_nm_product(1, weight.shape[1], pattern, weight.dtype)
        stored = compress(weight.detach(), pattern, name=name)
        self.out_features, self.in_features = weight.shape
        self.pattern = pattern
        self.register_buffer("values", stored.values)
        self.register_buffer("bits", stored.bits)
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x [..., in] to [..., out]."""
        y = torch.ops.esparse_lab.compressed_linear(
            x.reshape(-1, self.in_features),
            self.values,
            self.bits,
            self.bias,
            self.pattern.n,
            self.pattern.m,
        )
        return y.view(*x.shape[:-1], self.out_features)

    @property
    def weight_bytes(self) -> int:
        """Of the stored weight."""
        return self.values.nbytes + self.bits.nbytes

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.pattern}"


_LIBRARY = torch.library.Library("esparse_lab", "FRAGMENT")
_LIBRARY.define(
    "compressed_linear(Tensor x, Tensor values, Tensor bits, Tensor? bias, int n, int m) -> Tensor"
)


def _compressed_linear(x, values, bits, bias, n, m):
    weight = Compressed(values, bits, Pattern(n, m), x.shape[1])
    if x.dtype != values.dtype:
        raise InputError(f"The layer multiplies {values.dtype}, got {x.dtype}.")
    if len(x) > MOST_IN_PARTS:
        return F.linear(x, nm_decompress(weight), bias)
    if len(x) <= MOST_TOKENS:
        return nm_linear(x, weight, bias)
    return torch.cat([nm_linear(part, weight, bias) for part in x.split(MOST_TOKENS)])


def _compressed_linear_shape(x, values, bits, bias, n, m):
    return x.new_empty(x.shape[0], values.shape[0])


_LIBRARY.impl("compressed_linear", _compressed_linear, "CUDA")
torch.library.register_fake("esparse_lab::compressed_linear", _compressed_linear_shape)
