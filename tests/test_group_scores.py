"""What a group keeps when any channel is exchanged, against sorting, by every way there is."""

import numpy as np
import pytest
import torch

from esparse_lab import group_scores as module
from esparse_lab.cpu_loops import in_shares
from esparse_lab.group_scores import descending, group_scores, scores_inside


@pytest.fixture(params=["numba", "torch"])
def way(request, monkeypatch):
    if request.param == "numba":
        pytest.importorskip("numba")
    else:
        monkeypatch.setattr(module, "_compiled", lambda: None)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (4, 8), (1, 2)])
@pytest.mark.parametrize("rows", [1, 511, 1300])
@pytest.mark.parametrize("values", [4, 1000], ids=["ties", "few ties"])
def test_a_group_keeps_its_largest_whoever_comes_in(way, n, m, rows, values):
    draw = np.random.default_rng(rows + m)
    x = draw.integers(values, size=(3 * m + 1, rows)).astype(np.float32)
    channels = draw.permutation(len(x))[: 3 * m].reshape(3, m)
    rival, secure, kept = group_scores(torch.from_numpy(x), torch.from_numpy(channels), n)
    assert (rival.shape, secure.shape, kept.shape) == ((3, m, rows), (3, m), (3,))
    assert (rival.dtype, kept.dtype) == (torch.float32, torch.float64)
    newcomer = x[np.setdiff1d(np.arange(len(x)), channels)[0]].astype(float)
    for group, members in enumerate(channels):
        largest = -np.sort(-x[members].astype(float), axis=0)[:n]
        assert kept[group] == largest.sum()
        for place in range(m):
            exchanged = x[members].astype(float)
            exchanged[place] = newcomer
            wanted = -np.sort(-exchanged, axis=0)[:n]
            found = secure[group, place] + np.maximum(rival[group, place].numpy(), newcomer).sum()
            assert found == wanted.sum()


def test_other_layouts_and_shapes_agree():
    x = torch.randint(50, (24, 70)).float().t().contiguous().t()
    channels = torch.randperm(24).view(6, 4)[::2]
    inside = scores_inside(x[channels], 2)
    for found, wanted in zip(group_scores(x, channels, 2), inside, strict=True):
        assert torch.equal(found, wanted)
    blocks = torch.stack([x[channels], x[channels].flip(-1)])
    for found, wanted in zip(scores_inside(blocks, 2), inside, strict=True):
        assert torch.equal(found[0], wanted)


def test_descending_sorts():
    x = torch.rand(3, 8, 5)
    assert torch.equal(torch.stack(descending(x), dim=1), x.sort(dim=1, descending=True).values)


@pytest.mark.parametrize("count", [0, 1, 2, 7])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_shares_cover_everything_once(count, n_threads):
    before, seen = torch.get_num_threads(), []
    try:
        torch.set_num_threads(n_threads)
        in_shares(count, lambda some: seen.extend(range(count)[some]))
    finally:
        torch.set_num_threads(before)
    assert sorted(seen) == [*range(count)]


def test_an_error_in_a_share_is_not_lost():
    def fail(some):
        if some.start:
            raise ValueError("in a share")

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(ValueError, match="in a share"):
            in_shares(4, fail)
    finally:
        torch.set_num_threads(before)
