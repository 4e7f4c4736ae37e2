"""The inputs of timed products, on the CPU; nothing is timed."""

import pytest
import torch

from esparse_lab.gemm.cusparselt import Product
from esparse_lab.gemm.operands import Operands
from esparse_lab.masks import Pattern


@pytest.mark.parametrize("tokens", [1, 4, 8, None])
@pytest.mark.parametrize("by_feature", [False, True])
def test_the_dense_product_multiplies_so_many_tokens_and_no_more(tokens, by_feature):
    product = Product(32, 64, 8, torch.float16, x_by_feature=by_feature)
    operands = Operands.random(product, torch.device("cpu"), Pattern(2, 4))
    x = operands.x.t() if by_feature else operands.x
    wanted = x.double()[:tokens] @ operands.weights[-1].double().t()
    found = operands.dense_calls(tokens)[-1]()
    assert found.shape == (tokens or 8, 32)
    torch.testing.assert_close(found.double(), wanted, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("tokens", [1, 3, 16])
def test_integers_are_multiplied_by_more_than_sixteen_tokens(tokens):
    product = Product(32, 64, 16, torch.int8)
    operands = Operands.random(product, torch.device("cpu"), Pattern(2, 4))
    found = operands.dense_calls(tokens)[0]()
    assert len(found) > 16
    wanted = operands.x[:tokens].long() @ operands.weights[0].long().t()
    assert torch.equal(found[:tokens].long(), wanted)


class Recorded:
    """A plan that keeps what its product would read."""

    workspace_bytes = 0

    def __init__(self, operands):
        self.operands, self.read = operands, []

    def run(self, *_):
        self.read.append(self.operands.x.clone())


@pytest.mark.parametrize("tokens", [3, 8, None])
def test_few_tokens_are_copied_to_their_place_in_every_call(tokens, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_stream", Empty)
    product = Product(32, 64, 8, torch.float16)
    operands = Operands.random(product, torch.device("cpu"), Pattern(2, 4))
    plan, before = Recorded(operands), operands.x.clone()
    calls = operands.sparse_calls(plan, operands.weights[:1], tokens)
    operands.x.zero_()
    calls[0]()
    copied = 3 if tokens == 3 else 0
    assert torch.equal(plan.read[0][:copied], before[:copied])
    assert not plan.read[0][copied:].any()


class Empty:
    """In place of a CUDA stream, which a CPU has none of."""

    cuda_stream = 0
