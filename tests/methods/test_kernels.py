"""The CUDA kernels do what the PyTorch code does."""

import pytest
import torch

from esparse_lab import LayerStats, Pattern, Unstructured
from esparse_lab.curvature import hessian, inverse_factor
from esparse_lab.methods import mask_descent, surgeon

pytestmark = pytest.mark.gpu

WIDTHS = [3, 74, 384, 576]
SPARSITIES = [Pattern(2, 4), Pattern(4, 8), Pattern(1, 4), Unstructured(0.5)]


@pytest.fixture(params=WIDTHS, ids=lambda width: f"width {width}")
def layer(request):
    """Weights [out, in] and correlated statistics, on the GPU."""
    generator = torch.Generator().manual_seed(request.param)
    width = request.param
    mix = torch.eye(width) + torch.randn(width, width, generator=generator) / width**0.5
    activations = torch.randn(4, 512, width, generator=generator) @ mix
    weight = torch.randn(50, width, generator=generator).cuda()
    return weight, LayerStats.of(activations.cuda(), None)


def in_torch(monkeypatch):
    for module in (surgeon, mask_descent):
        monkeypatch.setattr(module, "runs_in_triton", lambda *_: False)


@pytest.mark.parametrize("sparsity", SPARSITIES, ids=str)
def test_sweep(layer, sparsity, monkeypatch):
    weight, stats = layer
    factor = inverse_factor(hessian(stats, 0.01))
    arguments = (weight, factor, factor.diagonal() ** -2, sparsity, 128)
    ours = surgeon.sweep(*arguments)
    in_torch(monkeypatch)
    theirs = surgeon.sweep(*arguments)
    # A near tie may fall either way and what follows it in its row differs: rows are compared.
    same = (ours.mask == theirs.mask).all(dim=1)
    assert float(same.float().mean()) > 0.9
    torch.testing.assert_close(ours.weight[same], theirs.weight[same], rtol=1e-3, atol=1e-4)
    assert torch.equal(ours.mask.sum(dim=1), theirs.mask.sum(dim=1))


@pytest.mark.parametrize("sparsity", SPARSITIES, ids=str)
def test_mask_descent(layer, sparsity, monkeypatch):
    weight, stats = layer
    method = mask_descent.MaskDescent()
    ours = method.choose(weight, stats, sparsity).mask
    in_torch(monkeypatch)
    theirs = method.choose(weight, stats, sparsity).mask
    assert float((ours == theirs).all(dim=1).float().mean()) > 0.9
    assert torch.equal(ours.sum(dim=1), theirs.sum(dim=1))
