"""The sweep that SparseGPT and ISC share: prune from left to right, let the rest make up for it.

Frantar and Alistarh 2023, arXiv 2301.00774, Algorithm 1.
"""

import torch
from torch import Tensor

from esparse_lab.errors import InputError
from esparse_lab.masks import Pattern, Sparsity, Unstructured
from esparse_lab.methods.method import Choice
from esparse_lab.methods.triton_limits import runs_in_triton


def sweep(
    weight: Tensor, factor: Tensor, channel_saliency: Tensor, sparsity: Sparsity, block: int
) -> Choice:
    """Prune columns in order; each pruned weight's error moves into the columns right of it.

    A group's mask is chosen when the sweep arrives at it, from weights that have already made up
    for what was pruned before.

    Args:
        weight: [out, in].
        factor: upper triangular U, U^T U the inverse Hessian, [in, in].
        channel_saliency: what a weight's square is multiplied with to rank it, [in].
        sparsity: which weights compete. Unstructured: those of a row, or of all rows, inside each
            block of columns.
        block: columns that are updated at once; the rest follows block by block.
    """
    if block < 1:
        raise InputError(f"block must be at least 1 column, got {block}.")
    if isinstance(sparsity, Pattern) and block % sparsity.m:
        raise InputError(
            f"A block of {block} columns does not hold whole groups of {sparsity.m}; set it to a "
            f"multiple, such as block={-(-block // sparsity.m) * sparsity.m}."
        )
    w = weight.float().contiguous().clone()
    u = factor.to(w).contiguous()
    root = channel_saliency.to(w).sqrt()
    group = sparsity.m if isinstance(sparsity, Pattern) else block
    pruned = torch.zeros_like(w)
    eliminate = _eliminate
    if runs_in_triton(w, block, group):
        from esparse_lab.methods.kernels import eliminate
    for start in range(0, w.shape[1], block):
        end = min(start + block, w.shape[1])
        if isinstance(sparsity, Unstructured):
            saliency = (w[:, start:end] * root[start:end]).square()
            # What the columns so far shall keep, less what is kept: blocks do not round one by one.
            rows = len(w) if sparsity.within == "layer" else 1
            n_kept = sparsity.kept(rows * end) - sparsity.kept(rows * start)
            pruned[:, start:end] = ~sparsity.mask(saliency, n_kept)
        kept = sparsity.n if isinstance(sparsity, Pattern) else None
        errors = eliminate(w, u, root, pruned, start, block, group, kept)
        w[:, end:].addmm_(errors, u[start:end, end:], alpha=-1)
    mask = pruned == 0
    return Choice(mask, w.masked_fill_(~mask, 0))


def _eliminate(
    w: Tensor,
    u: Tensor,
    root: Tensor,
    pruned: Tensor,
    start: int,
    block: int,
    group: int,
    kept: int | None,
) -> Tensor:
    """Prune one block of columns of `w` in place; the rows all at once.

    Args:
        w: weights, float32 [out, in].
        u: upper triangular factor, float32 [in, in].
        root: roots of the channels' saliency, float32 [in].
        pruned: 1.0 where a weight goes, float32 [out, in]: written group by group if `kept` is
            given, else read.
        start: first column.
        block: columns; may reach beyond the last one.
        group: columns that compete.
        kept: how many of a group stay, or None.

    Returns:
        The errors of the block's columns, [out, column].
    """
    inside = slice(start, min(start + block, w.shape[1]))
    # Transposed: what is done to a column is then done to one contiguous vector.
    columns, goes = w[:, inside].T.contiguous(), pruned[:, inside].T.contiguous()
    u, root = u[inside, inside], root[inside, None]
    errors = torch.empty_like(columns)
    column, error, row_of_u = columns.unbind(), errors.unbind(), u.unbind()
    per_pivot = 1 / u.diagonal()[:, None]
    n_columns = len(column)
    step = 8 if kept is None else group  # the rest of the block follows a few columns at a time
    for left in range(0, n_columns, step):
        right = min(left + step, n_columns)
        if kept is not None:
            saliency = (columns[left:right] * root[left:right]).square_()
            n_pruned = max(0, right - left - kept)
            worst = saliency.topk(n_pruned, dim=0, largest=False).indices
            goes[left:right].scatter_(0, worst, 1.0)
        scales = (goes[left:right] * per_pivot[left:right]).unbind()
        for k in range(left, right):
            torch.mul(column[k], scales[k - left], out=error[k])
            if k + 1 < right:
                columns[k + 1 : right].addr_(row_of_u[k][k + 1 : right], error[k], alpha=-1)
        columns[right:].addmm_(u[left:right, right:].T, errors[left:right], alpha=-1)
    w[:, inside], pruned[:, inside] = columns.T, goes.T
    return errors.T
