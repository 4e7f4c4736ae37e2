"""Masks: which weights stay, in each group of M neighbours along the input or in each row."""

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from esparse_lab.errors import InputError, unknown

Comparison = Literal["row", "layer"]


@dataclass(frozen=True)
class Pattern:
    """N:M sparsity: of every `m` consecutive input channels a row keeps `n`.

    `n` counts KEPT weights, as NVIDIA and PyTorch do. Wanda, SparseGPT and the E-Sparse paper count
    pruned ones: equal for 2:4 and 4:8, opposite for 1:4 and 3:4.

    Where the number of channels is not a multiple of `m`, the last group is shorter and keeps
    `min(n, its size)`: what padding it with zeros up to `m` would keep.

    >>> Pattern.parse("2:4")
    Pattern(n=2, m=4)
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise InputError(
                f"Pattern {self.n}:{self.m} is not possible: N of every M weights are kept, so "
                "0 < N < M, such as 2:4."
            )

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """The pattern written as "2:4".

        Raises:
            InputError: if the text is not N:M with 0 < N < M.
        """
        found = re.fullmatch(r"(\d{1,4}):(\d{1,4})", text.strip())
        if not found:
            raise InputError(f"Cannot read the pattern {text!r}: expected N:M, such as 2:4.")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def density(self) -> float:
        """Share of the weights that stays, where groups are whole."""
        return self.n / self.m

    def mask(self, scores: Tensor) -> Tensor:
        """True where a weight is kept; see `nm_mask`."""
        return nm_mask(scores, self)


@dataclass(frozen=True)
class Unstructured:
    """Sparsity without groups: the best scores stay wherever they are.

    Attributes:
        density: share of the weights that is KEPT, above 0 and below 1.
        within: what competes: the weights of one "row" (one output; Wanda's choice), each row
            keeping the same number, or those of the whole "layer".
    """

    density: float
    within: Comparison = "row"

    def __post_init__(self) -> None:
        if not 0 < self.density < 1:
            raise InputError(f"The share of kept weights must be above 0 and below 1, got {self}.")
        if self.within not in get_args(Comparison):
            raise unknown("comparison", self.within, get_args(Comparison))

    def __str__(self) -> str:
        return f"{self.density * 100:.6g}%" + ("" if self.within == "row" else " per layer")

    def kept(self, n_weights: int) -> int:
        """How many of `n_weights` that compete with each other stay: rounded up, as Wanda does."""
        return math.ceil(self.density * n_weights - 1e-6)

    def mask(self, scores: Tensor, n_kept: int | None = None) -> Tensor:
        """True for the best scores of each row or of the layer, bool [out, in].

        Of equal scores the one that comes first is kept, so the mask is the same on every device.

        Args:
            scores: importance, float [out, in].
            n_kept: how many of those that compete stay; None for `density` of them.

        Raises:
            InputError: if a score is NaN.
        """
        _refuse_nan(scores)
        competing = scores if self.within == "row" else scores.reshape(1, -1)
        # A stable sort settles ties by place; topk does not.
        best = competing.argsort(dim=1, descending=True, stable=True)
        best = best[:, : self.kept(competing.shape[1]) if n_kept is None else n_kept]
        kept = torch.zeros_like(competing, dtype=torch.bool).scatter_(1, best, True)
        return kept.view(scores.shape)


Sparsity = Pattern | Unstructured


def parse_sparsity(text: str) -> Sparsity:
    """The sparsity written as "2:4", "50%" (of every row is KEPT) or "50% per layer".

    Raises:
        InputError: if the text is none of these.
    """
    found = re.fullmatch(r"(\d{1,2}(?:\.\d+)?)\s*%(\s*per layer)?", text.strip())
    if found:
        return Unstructured(float(found[1]) / 100, "layer" if found[2] else "row")
    if "%" in text:
        raise InputError(
            f"Cannot read the share of kept weights {text!r}: expected such as 50% (of every row "
            "stays) or 50% per layer, above 0 and below 100."
        )
    try:
        return Pattern.parse(text)
    except InputError as error:
        if ":" in text:
            raise
        raise InputError(
            f"Cannot read the pattern {text!r}: expected N:M, such as 2:4, or a share, such as 50%."
        ) from error


def in_groups(scores: Tensor, m: int, *, fill: float) -> Tensor:
    """`scores` [row, in] as [row, group, m], the last group filled up with `fill`."""
    n_fill = -scores.shape[1] % m
    if n_fill:
        scores = torch.nn.functional.pad(scores, (0, n_fill), value=fill)
    return scores.reshape(scores.shape[0], -1, m)


def nm_mask(scores: Tensor, pattern: Pattern) -> Tensor:
    """True where a weight is kept: in each row, the `n` best scores of every `m` neighbours.

    Exactly `n` are kept in each whole group. Of equal scores the lower channel is kept, so the mask
    is the same on every device.

    Args:
        scores: importance, float [out, in]; no NaN.
        pattern: what to keep.

    Returns:
        bool [out, in].

    Raises:
        InputError: if a score is NaN.
    """
    _refuse_nan(scores)
    groups = in_groups(scores, pattern.m, fill=-torch.inf)
    if pattern.m <= 16:
        kept = _rank(groups) < pattern.n
    else:
        best = groups.argsort(dim=-1, descending=True, stable=True)[..., : pattern.n]
        kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, best, True)
    return kept.flatten(1)[:, : scores.shape[1]]


def _refuse_nan(scores: Tensor) -> None:
    if scores.amax().isnan():  # NaN if any score is, without a mask of them all
        raise InputError(
            f"{int(scores.isnan().sum())} of {scores.numel()} scores are NaN: a mask needs scores "
            "that can be compared."
        )


def _rank(groups: Tensor) -> Tensor:
    """How many members of its group come before each one, uint8 [row, group, m].

    Comparing all pairs beats a sort for small groups, and settles ties by position everywhere.
    """
    members = groups.unbind(dim=-1)
    ranks = [torch.zeros_like(members[0], dtype=torch.uint8) for _ in members]
    for j, later in enumerate(members):
        for i in range(j):
            ahead = later > members[i]
            ranks[i] += ahead
            ranks[j] += ~ahead
    return torch.stack(ranks, dim=-1)
