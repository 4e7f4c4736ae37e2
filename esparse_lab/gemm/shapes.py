"""The matrix products that are timed: the paper's, and those of a model's layers."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from esparse_lab.architectures import prunable_layers
from esparse_lab.errors import InputError
from esparse_lab.footprint import meta_model


@dataclass(frozen=True)
class GemmShape:
    """y [m, n] = x [m, k] Wᵀ with W [n, k]: m tokens, k input channels, n outputs."""

    name: str
    m: int
    k: int
    n: int

    def __post_init__(self) -> None:
        if min(self.m, self.k, self.n) < 1:
            raise InputError(f"The sizes of a product must be at least 1, got {self}.")

    @classmethod
    def parse(cls, text: str) -> "GemmShape":
        """The shape written as "M,K,N", such as "16,4096,11008".

        Raises:
            InputError: if the text is not three whole numbers of at least 1.
        """
        try:
            m, k, n = (int(part) for part in text.split(","))
        except ValueError:
            raise InputError(
                f"Cannot read the shape {text!r}: expected M,K,N (tokens, inputs, outputs), such "
                "as 16,4096,11008."
            ) from None
        return cls(text.replace(" ", ""), m, k, n)


_TABLE_5 = {
    "Q/K/V": (14336, 5376),
    "Att_Out": (1792, 14336),
    "FFN-1": (14336, 7168),
    "FFN-2": (7168, 14336),
}

PAPER_SHAPES = [
    GemmShape(f"{stage} {layer}", tokens, *weight)
    for stage, tokens in (("context", 16384), ("decode", 16))
    for layer, weight in _TABLE_5.items()
]
"""Table 5: a layer of BLOOM-176B split over 8 devices, for 16 x 1024 tokens and for 16."""


def model_shapes(name: str | Path, tokens: Iterable[int] = (16, 4096)) -> list[GemmShape]:
    """The products of a model's prunable layers, each once, from its configuration alone.

    Args:
        name: as of `footprint.meta_model`.
        tokens: how many at a time.
    """
    sizes: dict[tuple[int, int], list[str]] = {}
    for layer_name, layer in prunable_layers(meta_model(name)).items():
        rows, columns = layer.weight.shape
        roles = sizes.setdefault((columns, rows), [])
        if (role := layer_name.rpartition(".")[2]) not in roles:
            roles.append(role)
    return [GemmShape(" ".join(roles), m, k, n) for m in tokens for (k, n), roles in sizes.items()]
