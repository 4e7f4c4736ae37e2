"""Sums of maxima against the definition, by every way that this machine has."""

import numpy as np
import pytest
import torch

from esparse_lab import pairwise
from esparse_lab.pairwise import MaximumSums


@pytest.fixture(params=["numba", "torch"])
def way(request, monkeypatch):
    if request.param == "numba":
        pytest.importorskip("numba")
    else:
        monkeypatch.setattr(pairwise, "_compiled", lambda: None)
    return request.param


@pytest.mark.parametrize(
    ("n_blocks", "columns", "asked", "rows"),
    [(1, 8, 4, 64), (2, 7, 5, 63), (3, 1, 1, 1), (2, 9, 1, 130), (1, 2, 3, 2500)],
)
def test_equals_the_definition(way, n_blocks, columns, asked, rows):
    generator = np.random.default_rng(columns * rows)
    x = generator.exponential(size=(n_blocks, columns, rows)).astype(np.float32)
    blocks = generator.integers(n_blocks, size=4)
    y = generator.exponential(size=(4, asked, rows)).astype(np.float32)
    expected = np.maximum(x[blocks, None].astype(float), y[:, :, None]).sum(-1)
    found = MaximumSums(torch.from_numpy(x))(torch.from_numpy(blocks), torch.from_numpy(y))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_threads_share_the_work_and_not_the_result(way, n_threads):
    before = torch.get_num_threads()
    x, y = torch.rand(1, 33, 500), torch.rand(1, 7, 500)
    try:
        torch.set_num_threads(n_threads)
        found = MaximumSums(x)(torch.tensor([0]), y)
    finally:
        torch.set_num_threads(before)
    exact = torch.maximum(x.double()[:, None], y.double()[:, :, None]).sum(-1)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)


def test_y_may_lie_anyhow_in_memory(way):
    x = torch.rand(1, 4, 100)
    y = torch.rand(1, 100, 6).transpose(1, 2)
    exact = torch.maximum(x[:, None], y[:, :, None]).sum(-1)
    torch.testing.assert_close(MaximumSums(x)(torch.tensor([0]), y), exact)
