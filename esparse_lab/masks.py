"""N:M masks: which weights stay in each group of M neighbours along the input."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from esparse_lab.errors import InputError


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
    if scores.isnan().any():
        raise InputError(
            f"{int(scores.isnan().sum())} of {scores.numel()} scores are NaN: a mask needs scores "
            "that can be compared."
        )
    groups = in_groups(scores, pattern.m, fill=-torch.inf)
    if pattern.m <= 16:
        kept = _rank(groups) < pattern.n
    else:
        best = groups.argsort(dim=-1, descending=True, stable=True)[..., : pattern.n]
        kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, best, True)
    return kept.flatten(1)[:, : scores.shape[1]]


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


def check_nm(weight: Tensor, pattern: Pattern) -> None:
    """Raise `InputError`, naming the first offending group, unless `weight` is N:M sparse.

    At most `n` of every `m` consecutive input channels of a row may be nonzero.
    """
    per_group = in_groups(weight != 0, pattern.m, fill=False).sum(dim=-1)
    bad = (per_group > pattern.n).nonzero()
    if len(bad):
        row, group = bad[0].tolist()
        raise InputError(
            f"Not {pattern}: row {row}, channels {group * pattern.m} to "
            f"{min((group + 1) * pattern.m, weight.shape[1]) - 1} hold "
            f"{int(per_group[row, group])} nonzero weights ({len(bad)} such groups)."
        )
