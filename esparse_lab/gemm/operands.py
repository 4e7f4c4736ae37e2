"""Random inputs of a product, dense and compressed, and the calls that multiply them."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from esparse_lab.gemm import cusparselt
from esparse_lab.gemm.clock import copies_for_cold
from esparse_lab.gemm.cusparselt import Plan, Product
from esparse_lab.masks import Pattern, nm_mask

Call = Callable[[], object]

_ZERO = ctypes.c_float(0.0)
_INT8_SPREAD = 40.0
"""Standard deviation of random int8 values."""


@dataclass
class Operands:
    """Inputs of `y = alpha x Wᵀ`, the weight in as many copies as leave no cache warm.

    Attributes:
        weights: N:M sparse, [rows, columns] each.
        x: [tokens, columns]; [columns, tokens] where the product says that it lies by feature.
        y: where results go: [tokens, rows] or [rows, tokens].
        alpha: keeps y near 1 where integers are multiplied; 1 otherwise.
    """

    product: Product
    weights: list[Tensor]
    x: Tensor
    y: Tensor
    alpha: float

    @classmethod
    def random(
        cls, product: Product, device: torch.device, pattern: Pattern, seed: int = 0
    ) -> "Operands":
        """Normal values, the weight's scaled so that y is near 1 in size, as x is."""
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device)

        kept = product.columns * pattern.density
        weight = normal(product.rows, product.columns)
        weight *= nm_mask(weight.abs(), pattern)
        x = normal(product.tokens, product.columns)
        alpha = 1.0
        if product.dtype == torch.int8:
            alpha = kept**-0.5 / _INT8_SPREAD**2
            weight, x = ((t * _INT8_SPREAD).round().clamp(-127, 127) for t in (weight, x))
        elif product.dtype == torch.float8_e4m3fn:
            alpha = kept**-0.5  # scaling the weight itself would lose its small values
        else:
            weight *= kept**-0.5
        weight, x = weight.to(product.dtype), x.to(product.dtype)
        copies = copies_for_cold(int(weight.nbytes * pattern.density))
        y_shape = (product.tokens, product.rows)
        return cls(
            product,
            [weight, *(weight.clone() for _ in range(copies - 1))],
            x.t().contiguous() if product.x_by_feature else x,
            torch.empty(
                y_shape[::-1] if product.y_by_feature else y_shape,
                dtype=product.out_dtype,
                device=device,
            ),
            alpha,
        )

    def dense_calls(self, tokens: int | None = None) -> list[Call]:
        """The dense product by PyTorch, token by token in memory; one call a copy.

        Args:
            tokens: multiply the first ones alone. A product of 1 token need not take the time of
                one of 8: cuBLAS chooses a kernel for each number.
        """
        x = (self.x.t().contiguous() if self.product.x_by_feature else self.x)[:tokens]
        if self.product.dtype == torch.int8:
            # cuBLAS wants more than 16 rows of integers.
            x = x if len(x) > 16 else x.repeat(-(-32 // len(x)), 1)
            return [lambda w=w: torch._int_mm(x, w.t()) for w in self.weights]
        if self.product.dtype == torch.float8_e4m3fn:
            one = torch.ones((), device=x.device)
            scaled = {"scale_a": one, "scale_b": one, "out_dtype": self.product.out_dtype}
            return [lambda w=w: torch._scaled_mm(x, w.t(), **scaled) for w in self.weights]
        out = torch.empty(len(x), self.product.rows, dtype=x.dtype, device=x.device)
        return [lambda w=w: torch.mm(x, w.t(), out=out) for w in self.weights]

    def compressed(self) -> list[Tensor]:
        """Every copy of the weight as cuSPARSELt stores it."""
        stored = cusparselt.compress(self.weights[0])
        return [stored, *(stored.clone() for _ in self.weights[1:])]

    def sparse_calls(
        self, plan: Plan, stored: list[Tensor], tokens: int | None = None
    ) -> list[Call]:
        """The product by cuSPARSELt under a plan, into `y`; one call a copy.

        Args:
            plan: of this product.
            stored: the copies, compressed.
            tokens: if fewer than the product's, they are first copied to their place in `x`, as a
                `SparseLinear` must; `x` lies token by token then.
        """
        given = self.x[:tokens].clone() if tokens and tokens < self.product.tokens else None
        workspace = torch.zeros(
            max(plan.workspace_bytes, 16), dtype=torch.uint8, device=self.x.device
        )
        alpha = ctypes.c_float(self.alpha)

        def call(weight: Tensor) -> None:
            if given is not None:
                self.x[:tokens].copy_(given)
            plan.run(
                weight.data_ptr(),
                self.x.data_ptr(),
                self.y.data_ptr(),
                workspace.data_ptr(),
                torch.cuda.current_stream().cuda_stream,
                ctypes.addressof(alpha),
                ctypes.addressof(_ZERO),
            )

        return [lambda w=w: call(w) for w in stored]

    def error(self, tokens: int = 256) -> float:
        """Relative error of `y` against float32, ‖y - exact‖ / ‖exact‖, over the first tokens."""
        x = self.x.t() if self.product.x_by_feature else self.x
        y = self.y.t() if self.product.y_by_feature else self.y
        exact = self.alpha * (x[:tokens].float() @ self.weights[0].float().t())
        return ((y[:tokens].float() - exact).norm() / exact.norm()).item()
