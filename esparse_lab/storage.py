"""An N:M weight stored compressed: the kept values and one bit a weight. And what storage costs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from esparse_lab.errors import InputError, unknown
from esparse_lab.masks import Pattern, in_groups

Index = Literal["hardware", "bitmask"]

_CHUNK_WEIGHTS = 2**22  # some 20 bytes of scratch for each of them


@dataclass(frozen=True)
class Compressed:
    """A weight [out, in] that keeps exactly `min(n, group size)` values of every group of a row.

    Attributes:
        values: the kept weights in order of their column, [out, kept], dtype of the weight.
        bits: which columns they are, uint8 [out, ceil(in / 8)]: bit j of byte b is column 8 b + j,
            set where the weight is kept; bits past the last column are 0.
        pattern: what was kept.
        columns: how many columns the weight has.
    """

    values: Tensor
    bits: Tensor
    pattern: Pattern
    columns: int

    @property
    def nbytes(self) -> int:
        """Bytes of the values and the bits."""
        return self.values.nbytes + self.bits.nbytes

    def mask(self, rows: slice = slice(None)) -> Tensor:
        """True where a weight is kept, bool [out, in] or these `rows` of it."""
        bits = self.bits[rows, :, None] >> torch.arange(
            8, dtype=torch.uint8, device=self.bits.device
        )
        return (bits & 1).flatten(1)[:, : self.columns].bool()

    def decompress(self) -> Tensor:
        """The weight [out, in]: kept values bit for bit (NaN payloads too), +0.0 elsewhere.

        So a -0.0 that is not among the kept comes back as +0.0, which compares equal.
        """
        weight = self.values.new_zeros(len(self.values), self.columns)
        for rows in _chunks(weight):
            weight[rows][self.mask(rows)] = self.values[rows].flatten()
        return weight


def compress(weight: Tensor, pattern: Pattern, *, name: str = "weight") -> Compressed:
    """`weight` without its zeros, on its device; of any dtype that PyTorch can compare and index.

    A group with fewer than n nonzero weights stores the zeros of its lowest columns as well, so
    that every row is equally long. NaN is nonzero.

    Args:
        weight: N:M sparse along the input, [out, in].
        pattern: the sparsity; where `in` is no multiple of m the last group is shorter.
        name: what errors call the weight.

    Raises:
        InputError: if the weight is not a matrix, or a group holds more than n nonzero weights.
    """
    weight = _matrix(weight, pattern, name)
    n_rows, columns = weight.shape
    values = weight.new_empty(n_rows, kept_columns(columns, pattern))
    bits = torch.empty(n_rows, -(-columns // 8), dtype=torch.uint8, device=weight.device)
    place = 2 ** torch.arange(8, dtype=torch.uint8, device=weight.device)
    for rows in _chunks(weight):
        nonzero = weight[rows] != 0
        kept = pattern.mask(nonzero.float())
        if (nonzero & ~kept).any():
            require_nm(weight, pattern, name)
        values[rows] = weight[rows][kept].view(len(kept), -1)
        bits[rows] = (in_groups(kept, 8, fill=False) * place).sum(-1, dtype=torch.uint8)
    return Compressed(values, bits, pattern, columns)


def first_violation(weight: Tensor, pattern: Pattern) -> tuple[int, int, int] | None:
    """Row, group and count of the first group with more than n nonzero weights; None if none has.

    Rows come before groups: it is the first in reading order of `weight` [out, in].
    """
    for rows in _chunks(weight):
        per_group = in_groups(weight[rows] != 0, pattern.m, fill=False).sum(dim=-1)
        bad = (per_group > pattern.n).nonzero()
        if len(bad):
            row, group = bad[0].tolist()
            return rows.start + row, group, int(per_group[row, group])
    return None


def require_nm(weight: Tensor, pattern: Pattern, name: str = "weight") -> None:
    """Raise `InputError` unless at most n of every m consecutive inputs of a row are nonzero.

    The message names the first group that has more, and its values.
    """
    weight = _matrix(weight, pattern, name)
    found = first_violation(weight, pattern)
    if found:
        row, group, count = found
        channels = range(weight.shape[1])[group * pattern.m : (group + 1) * pattern.m]
        values = [f"{value:.4g}" for value in weight[row, channels[0] :][: min(pattern.m, 8)]]
        raise InputError(
            f"{name} is not {pattern}: row {row}, channels {channels[0]} to {channels[-1]} hold "
            f"{count} nonzero weights ({', '.join(values)}{', ...' if pattern.m > 8 else ''}). "
            f"Prune it first: prune_model with {pattern!r}, all layers that are to be compressed."
        )


def two_bit_indices(compressed: Compressed) -> Tensor:
    """Place within its group of each kept value, uint8 [out, kept]: what 2:4 hardware stores.

    Raises:
        InputError: if groups are of more than 4, whose places take more than two bits.
    """
    m = compressed.pattern.m
    if m > 4:
        raise InputError(f"A place among {m} takes more than two bits: expected m of 4 or less.")
    columns = compressed.mask().nonzero()[:, 1]
    return (columns % m).to(torch.uint8).view(compressed.values.shape)


def kept_columns(columns: int, pattern: Pattern) -> int:
    """How many of a row's `columns` weights are stored."""
    return columns // pattern.m * pattern.n + min(pattern.n, columns % pattern.m)


def compressed_bytes(
    rows: int, columns: int, pattern: Pattern, *, value_bits: int = 16, index: Index = "bitmask"
) -> int:
    """Bytes of a compressed weight [rows, columns]; with "bitmask" exactly `Compressed.nbytes`.

    The index is a "bitmask", one bit a weight and rows of whole bytes; or that of the "hardware",
    the place within its group of each kept value in ceil(log2 m) bits, as tensor cores read 2:4.
    """
    kept = rows * kept_columns(columns, pattern)
    if _known(index) == "bitmask":
        return kept * value_bits // 8 + rows * -(-columns // 8)
    return -(-kept * (value_bits + _place_bits(pattern)) // 8)


def bits_per_weight(pattern: Pattern, value_bits: int = 16, index: Index = "hardware") -> float:
    """Bits stored per weight of the dense matrix, where groups are whole.

    Divided by `value_bits` it is the share of dense storage.

    >>> bits_per_weight(Pattern(2, 4)) / 16  # at most 7/16 can be saved
    0.5625
    """
    if _known(index) == "bitmask":
        return pattern.density * value_bits + 1
    return pattern.density * (value_bits + _place_bits(pattern))


def _place_bits(pattern: Pattern) -> int:
    return math.ceil(math.log2(pattern.m))


def _known(index: str) -> str:
    if index not in get_args(Index):
        raise unknown("index", index, get_args(Index))
    return index


def _matrix(weight: Tensor, pattern: Pattern, name: str) -> Tensor:
    if weight.ndim != 2 or not weight.numel():
        raise InputError(f"{name} has shape {tuple(weight.shape)}: expected a matrix [out, in].")
    if not isinstance(pattern, Pattern):
        raise InputError(f"{name}: only N:M such as 2:4 is stored compressed, got {pattern}.")
    return weight.detach()


def _chunks(weight: Tensor) -> Iterator[slice]:
    """Rows at a time, so that the scratch does not grow with the weight."""
    step = max(1, _CHUNK_WEIGHTS // weight.shape[1])
    for start in range(0, len(weight), step):
        yield slice(start, start + step)
