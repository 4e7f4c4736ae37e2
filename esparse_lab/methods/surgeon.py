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
        raise InputError(f"A block of {block} columns does not hold whole groups of {sparsity.m}.")
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
            pruned[:, start:end] = ~sparsity.mask(saliency)
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
    end = min(start + block, w.shape[1])
    step = _columns_at_once(group)
    powers = 2.0 ** torch.arange(step, device=w.device)
    errors = torch.zeros_like(w[:, start:end])
    of_code = _errors_by_code(u, start, end, step)
    for left in range(start, end, step):
        right = min(left + step, end)
        if kept is not None and (left - start) % group == 0:
            members = slice(left, min(left + group, end))
            saliency = (w[:, members] * root[members]).square()
            n_pruned = max(0, saliency.shape[1] - kept)
            worst = saliency.topk(n_pruned, dim=1, largest=False).indices
            pruned[:, members].scatter_(1, worst, 1.0)
        code = (pruned[:, left:right] @ powers[: right - left]).long()
        maps = of_code[(left - start) // step][code][:, : right - left, : right - left]
        error = torch.bmm(w[:, None, left:right], maps)[:, 0]
        errors[:, left - start : right - start] = error
        w[:, left:end].addmm_(error, u[left:right, left:end], alpha=-1)
    return errors


def _columns_at_once(group: int) -> int:
    """The largest divisor of `group` that is at most 8: 2^8 cases of pruned columns are tabled."""
    return max(step for step in range(1, 9) if group % step == 0)


def _errors_by_code(u: Tensor, start: int, end: int, step: int) -> Tensor:
    """Maps from the weights of `step` columns to their errors, for every set of pruned columns.

    The sweep gives, column by column, e_i = (w_i - sum over k < i of e_k u_ki) / u_ii where column
    i is pruned and 0 where not. That is linear in w, so each set of pruned columns has one matrix
    A with e = w A, and no loop over columns is left.

    Returns:
        A by step and by code (the sum of 2^i over pruned columns i), [step, 2^columns, column,
        column].
    """
    n_steps = -(-(end - start) // step)
    corner = torch.eye(n_steps * step, dtype=u.dtype, device=u.device)
    corner[: end - start, : end - start] = u[start:end, start:end]
    places = torch.arange(n_steps, device=u.device)
    inside = corner.view(n_steps, step, n_steps, step)[places, :, places]  # [step, column, column]
    codes = torch.arange(2**step, device=u.device)
    is_pruned = (codes[:, None] >> torch.arange(step, device=u.device) & 1).to(u)
    # e T = w D with T = diag(u) + (u above the diagonal) D, D the pruned columns.
    diagonal = torch.diag_embed(inside.diagonal(dim1=1, dim2=2))[:, None]
    above = inside.triu(1)[:, None] * is_pruned[None, :, None, :]
    pruned_diagonal = torch.diag_embed(is_pruned).expand(n_steps, -1, -1, -1)
    return torch.linalg.solve_triangular(diagonal + above, pruned_diagonal, upper=True, left=False)
