"""What can run sparse, found without a GPU, and what is refused without being touched."""

import copy
import itertools

import pytest
import torch
from tiny_models import random_model

from esparse_lab import (
    DaSS,
    EsparseError,
    InputError,
    Magnitude,
    Pattern,
    Recipe,
    SparseLinear,
    Wanda,
    compress,
    nm_mask,
    overfull_share,
    prunable_layers,
    prune_model,
    sparse_layers,
    sparsify,
    time_gemm,
)
from esparse_lab.gemm.cusparselt import Algorithm, check_weight, padded_tokens
from esparse_lab.gemm.linear import Choice
from esparse_lab.gemm.nm_linear import check_nm_linear
from esparse_lab.gemm.readiness import mlp_readiness

TWO_FOUR = Pattern(2, 4)
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "head_dim": 16}
ON_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without one says")


@pytest.fixture
def model():
    """A tiny Llama whose sizes are multiples of 16, pruned 2:4, float16."""
    made = random_model("llama", **SIZES)
    prune_model(made, None, Recipe(Magnitude(), TWO_FOUR), progress=False)
    return made.half()


def same(one, other) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("multiple", [8, 16])
def test_tokens_are_rounded_up_to_the_next_multiple(multiple):
    dtype = {8: torch.float16, 16: torch.int8}[multiple]
    for tokens in range(1, 50):
        assert padded_tokens(tokens, dtype) == next(
            n for n in itertools.count(1) if n >= tokens and n % multiple == 0
        )


@pytest.mark.parametrize(
    ("shape", "dtype", "says"),
    [
        ((16, 16), torch.float16, None),
        ((48, 32), torch.bfloat16, None),
        ((32, 64), torch.int8, None),
        ((32, 64), torch.float8_e4m3fn, None),
        ((16, 24), torch.float16, "w is 16 x 24; for float16 .* multiples of 16"),
        ((20, 16), torch.bfloat16, "w is 20 x 16; for bfloat16 .* multiples of 16"),
        ((16, 32), torch.int8, "w is 16 x 32; for int8 .* multiples of 32"),
        ((16, 16), torch.float32, "w is float32; cuSPARSELt multiplies float16, bfloat16, int8"),
    ],
)
def test_which_weights_have_a_kernel(shape, dtype, says):
    weight = torch.empty(shape, dtype=dtype, device="meta")
    if says is None:
        check_weight(weight, "w")
        return
    with pytest.raises(InputError, match=says):
        check_weight(weight, "w")


def compressed(pattern, columns=32, dtype=torch.float16):
    weight = torch.randn(4, columns, generator=torch.Generator().manual_seed(0))
    return compress((weight * nm_mask(weight.abs(), pattern)).to(dtype), pattern)


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        (compressed(Pattern(3, 4)), "1:4, 2:8, 2:4 and 4:8, not 3:4"),
        (compressed(Pattern(1, 2)), "not 1:2"),
        (compressed(Pattern(8, 16)), "not 8:16"),
        (compressed(TWO_FOUR, columns=36), "eight columns at a time, and the weight has 36"),
        (compressed(TWO_FOUR, dtype=torch.float32), "not torch.float32"),
        (compressed(TWO_FOUR), "on a CUDA device, not on cpu"),
    ],
)
def test_what_the_few_token_kernel_does_not_read(weight, says):
    with pytest.raises(InputError, match=says):
        check_nm_linear(weight)


def test_a_model_that_is_2_to_4_is_ready_and_stays_as_it_is(model):
    before = copy.deepcopy(model)
    assert [*sparse_layers(model)] == [*prunable_layers(model)]
    some = ["model.layers.1.mlp.down_proj"]
    assert [*sparse_layers(model, some)] == some
    assert same(model, before)


def test_one_weight_too_many_is_found_and_nothing_is_changed(model):
    layer = model.model.layers[2].mlp.up_proj
    with torch.no_grad():
        layer.weight[5, 8:12] = torch.tensor([1.0, 2.0, 0.0, 3.0])
    before = copy.deepcopy(model)
    says = r"model\.layers\.2\.mlp\.up_proj is not 2:4: row 5, channels 8 to 11 hold 3 nonzero"
    for refuse in (sparse_layers, sparsify):
        with pytest.raises(InputError, match=says):
            refuse(model)
    assert same(model, before)
    assert not [m for m in model.modules() if isinstance(m, SparseLinear)]
    others = [name for name in prunable_layers(model) if name != "model.layers.2.mlp.up_proj"]
    assert [*sparse_layers(model, others)] == others


def test_any_pattern_that_holds_is_ready_for_the_kernel_that_reads_it(model):
    four_eight = {"pattern": Pattern(4, 8), "kernel": "compressed"}
    layer = model.model.layers[1].mlp.gate_proj
    with torch.no_grad():
        layer.weight[2, 8:16] = torch.tensor([0.0, 0, 0, 0, 1, 1, 1, 1])  # 4:8 and not 2:4
    assert [*sparse_layers(model, **four_eight)] == [*prunable_layers(model)]
    with pytest.raises(InputError, match=r"gate_proj is not 2:4: row 2, channels 12 to 15"):
        sparse_layers(model, kernel="compressed")
    with torch.no_grad():
        layer.weight[2, 8] = 1
    with pytest.raises(InputError, match=r"gate_proj is not 4:8: row 2, channels 8 to 15 hold 5"):
        sparse_layers(model, **four_eight)
    for pattern, kernel, says in (
        (Pattern(4, 8), "cusparselt", "Sparse tensor cores multiply 2:4, not 4:8"),
        (TWO_FOUR, "triton", "Unknown kernel 'triton'"),
        (Pattern(3, 4), "compressed", r"q_proj: The kernel reads 1:4, 2:8, 2:4 and 4:8, not 3:4"),
    ):
        with pytest.raises(InputError, match=says):
            sparsify(model, pattern=pattern, kernel=kernel)
    with pytest.raises(InputError, match="q_proj: The kernel reads float16 and bfloat16, not"):
        sparsify(model.float(), pattern=Pattern(4, 8))


def test_what_else_is_refused(model):
    with pytest.raises(InputError, match=r"Unknown layer 'model\.layers\.0\.mlp\.downproj'"):
        sparsify(model, layers=["model.layers.0.mlp.downproj"])
    with pytest.raises(InputError, match="No layer is to be replaced"):
        sparsify(model, layers=[])
    with pytest.raises(InputError, match="Unknown policy 'fast'"):
        sparsify(model, policy="fast")
    with pytest.raises(InputError, match="at least 1"):
        sparsify(model, tokens=[16, 0])
    with pytest.raises(InputError, match=r"q_proj is float32; .*float16, bfloat16\."):
        sparsify(model.float())
    small = random_model("llama").half()  # hidden size 24
    with pytest.raises(InputError, match=r"q_proj is 24 x 24; .* multiples of 16"):
        sparsify(small)
    mixtral = random_model("mixtral", **SIZES).half()
    with pytest.raises(InputError, match="which multiplies it itself"):
        sparsify(mixtral)


@ON_CPU
@pytest.mark.parametrize("pattern", [TWO_FOUR, Pattern(4, 8)], ids=str)
def test_without_a_device_a_ready_model_is_refused_and_stays(model, pattern):
    before = copy.deepcopy(model)
    with pytest.raises(EsparseError, match="cannot run sparse here: no CUDA device is present"):
        sparsify(model, pattern=pattern)
    assert same(model, before)


@ON_CPU
@pytest.mark.parametrize("kernel", ["cusparselt", "compressed"])
def test_without_a_device_nothing_is_timed(kernel):
    with pytest.raises(EsparseError, match="Nothing can be timed here: no CUDA device") as error:
        time_gemm(16, 64, 32, kernel=kernel)
    assert not isinstance(error.value, InputError)


def test_a_sparse_layer_computes_in_the_weights_own_dtype():
    weight = torch.zeros(32, 32, dtype=torch.int8)
    with pytest.raises(InputError, match=r"down is int8; .*float16, bfloat16\."):
        SparseLinear(weight, choices=[Choice(16, Algorithm())], name="down")


@pytest.mark.parametrize("choices", [[], [Choice(32, None), Choice(16, None)]])
def test_choices_must_be_in_order(choices):
    with pytest.raises(InputError, match="in order of their tokens"):
        SparseLinear(torch.zeros(16, 16).half(), choices=choices)


def test_overfull_groups_are_counted_along_the_input():
    weight = torch.tensor([[1.0, 1, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1, 1, 1]])
    assert overfull_share(weight) == 2 / 4
    assert overfull_share(weight[:, :4]) == 0
    draw = torch.rand(400, 400, generator=torch.Generator().manual_seed(0))
    # Half of all places, drawn apart: (4 + 1) of 16 groups hold three or four.
    assert overfull_share(draw < 0.5) == pytest.approx(5 / 16, abs=0.01)


def test_dass_leaves_the_first_mlp_layer_unfit_and_wanda_does_not(tokens):
    model = random_model("llama", **SIZES)
    before = copy.deepcopy(model)
    found = mlp_readiness(model, tokens, 1, [Wanda(), DaSS()]).set_index(["method", "layer"])
    gate, down = (f"model.layers.1.mlp.{role}_proj" for role in ("gate", "down"))
    assert [*found.index] == [(m, name) for m in ("Wanda", "DaSS") for name in (gate, down)]
    assert found.grouped_along.tolist() == ["in", "in", "out", "in"]
    assert (found.kept_share == 0.5).all()
    unfit = found.overfull_share
    assert unfit["DaSS", gate] > 0.1
    assert unfit.drop(("DaSS", gate)).tolist() == [0, 0, 0]
    assert same(model, before)
    # The very masks that pruning makes with the dense model's statistics.
    prune_model(model, tokens, Recipe(DaSS(), TWO_FOUR, calibration="dense"), progress=False)
    weights = {name: layer.weight for name, layer in prunable_layers(model).items()}
    assert overfull_share(weights[gate]) == pytest.approx(unfit["DaSS", gate], abs=0.01)
    with pytest.raises(InputError, match="blocks 0 to 2, got 3"):
        mlp_readiness(model, tokens, 3, [Wanda()])
