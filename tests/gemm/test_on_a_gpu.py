"""Sparse products on a device that has them: right, in graphs and compiled, and found only once."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_models import random_model

from esparse_lab import (
    CompressedLinear,
    InputError,
    Magnitude,
    Pattern,
    Recipe,
    SparseLinear,
    compress,
    nm_linear,
    nm_mask,
    prunable_layers,
    prune_model,
    sparsify,
    time_gemm,
)
from esparse_lab.gemm import cusparselt, search
from esparse_lab.gemm.algorithms import AlgorithmStore
from esparse_lab.gemm.clock import kernel_names
from esparse_lab.gemm.cusparselt import Algorithm, Plan, Product
from esparse_lab.gemm.linear import Choice
from esparse_lab.gemm.nm_linear import LAUNCHES, Launch, nm_decompress
from esparse_lab.gemm.operands import Operands

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(cusparselt.unavailable()), reason=cusparselt.unavailable() or "runs"),
]

TWO_FOUR = Pattern(2, 4)
TOKENS = [1, 7, 16, 33, 1024]
HALVES = [torch.float16, torch.bfloat16]
ROUNDING = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # four steps of the format at 1


def weight_and_bias(pattern, rows, columns, dtype):
    draw = torch.Generator("cuda").manual_seed(0)
    weight = torch.randn(rows, columns, generator=draw, device="cuda")
    weight *= nm_mask(weight.abs(), pattern) * columns**-0.5
    bias = torch.randn(rows, generator=draw, device="cuda")
    return weight.to(dtype), bias.to(dtype)


def inputs(tokens, columns, dtype, seed=1):
    draw = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(tokens, columns, generator=draw, device="cuda").to(dtype)


def assert_near(found, exact, dtype):
    """Within the format's rounding of the largest result; the oracle is float64."""
    assert found.dtype == dtype
    assert (found.double() - exact).abs().max() <= ROUNDING[dtype] * exact.abs().max()


def sparse_layer(dtype, *, bias=True, rows=160, columns=192):
    weight, added = weight_and_bias(TWO_FOUR, rows, columns, dtype)
    added = added if bias else None
    layer = SparseLinear(weight, added, choices=[Choice(4096, Algorithm())], name="layer")
    assert layer.dense is None
    return layer, lambda x: F.linear(
        x.double(), weight.double(), None if added is None else added.double()
    )


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_a_sparse_layer_multiplies_as_its_masked_weight_does(dtype, bias):
    layer, exact = sparse_layer(dtype, bias=bias)
    for tokens in TOKENS:
        x = inputs(tokens, 192, dtype)
        assert_near(layer(x), exact(x), dtype)
    x = inputs(6, 192, dtype).view(2, 3, 192)
    assert_near(layer(x), exact(x), dtype)
    by_feature = inputs(192, 40, dtype).t()  # not contiguous
    assert_near(layer(by_feature), exact(by_feature), dtype)
    with pytest.raises(InputError, match=r"multiplies torch.*got torch\.float32"):
        layer(x.float())


@pytest.mark.parametrize("tokens", TOKENS)
def test_it_runs_in_a_cuda_graph_on_new_inputs(tokens):
    layer, exact = sparse_layer(torch.float16)
    x = inputs(tokens, 192, torch.float16)
    layer(x)  # plans
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer(x)
    for seed in (2, 3):
        x.copy_(inputs(tokens, 192, torch.float16, seed))
        y.fill_(float("nan"))
        graph.replay()
        assert_near(y, exact(x), torch.float16)


def test_it_compiles_whole():
    layer, exact = sparse_layer(torch.bfloat16)
    compiled = torch.compile(lambda x: layer(x).relu(), fullgraph=True)
    for tokens in (16, 33):
        x = inputs(tokens, 192, torch.bfloat16)
        assert_near(compiled(x), exact(x).relu(), torch.bfloat16)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_the_library_stores_nine_sixteenths(dtype):
    weight, _ = weight_and_bias(TWO_FOUR, 256, 512, dtype)
    assert cusparselt.compress(weight).nbytes == weight.nbytes * 9 // 16
    weight[3, 8:12] = 1
    with pytest.raises(InputError, match="w is not 2:4: row 3, channels 8 to 11 hold 4"):
        cusparselt.compress(weight, "w")


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("pattern", ["1:4", "2:8", "2:4", "4:8"])
def test_few_tokens_with_any_compressed_pattern_are_right_and_repeat_bit_for_bit(pattern, dtype):
    pattern = Pattern.parse(pattern)
    # Rows and columns that fill no block.
    weight, bias = weight_and_bias(pattern, 200, 488, dtype)
    stored = compress(weight, pattern)
    for launch in (None, Launch(splits=1), LAUNCHES[-1]):
        for tokens in (1, 7, 16, 17, 32):
            x = inputs(tokens, 488, dtype)
            y = nm_linear(x, stored, bias, launch=launch)
            assert_near(y, F.linear(x.double(), weight.double(), bias.double()), dtype)
            for _ in range(20):
                assert torch.equal(nm_linear(x, stored, bias, launch=launch), y)


@pytest.mark.parametrize("columns", [8, 72, 96, 1024])
def test_few_tokens_with_rows_that_begin_anywhere(columns):
    """Rows of words that are multiples of 1, 4 and 16, and a weight, x that begin off 16 bytes."""
    weight, _ = weight_and_bias(TWO_FOUR, 50, columns, torch.float16)
    stored = compress(weight, TWO_FOUR)
    some = replace(stored, values=stored.values[3:], bits=stored.bits[3:])
    x = inputs(1, 5 * columns + 1, torch.float16)[0, 1:].view(5, columns)
    exact = F.linear(x.double(), weight.double())
    assert_near(nm_linear(x, stored), exact, torch.float16)
    assert_near(nm_linear(x, some), exact[:, 3:], torch.float16)


def test_few_tokens_in_a_graph_and_on_streams_that_overlap():
    weight, bias = weight_and_bias(TWO_FOUR, 512, 2048, torch.float16)
    stored = compress(weight, TWO_FOUR)
    x = inputs(4, 2048, torch.float16)
    y = nm_linear(x, stored, bias)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = nm_linear(x, stored, bias)
    captured.zero_()
    graph.replay()
    assert torch.equal(captured, y)
    streams = [torch.cuda.Stream() for _ in range(4)]
    torch.cuda.synchronize()
    found = []
    for stream in streams * 10:
        with torch.cuda.stream(stream):
            found.append(nm_linear(x, stored, bias))
    torch.cuda.synchronize()
    assert all(torch.equal(one, y) for one in found)


@pytest.mark.parametrize(
    ("x", "bias", "says"),
    [
        ((4, 56), (32,), "expected 64 channels"),
        ((4, 64), (31,), r"bias is \(31,\)"),
    ],
)
def test_what_does_not_fit_the_compressed_weight_is_refused(x, bias, says):
    weight, _ = weight_and_bias(TWO_FOUR, 32, 64, torch.float16)
    x, bias = (torch.ones(shape, device="cuda").half() for shape in (x, bias))
    with pytest.raises(InputError, match=says):
        nm_linear(x, compress(weight, TWO_FOUR), bias)


@pytest.mark.parametrize("pattern", ["1:4", "2:8", "2:4", "4:8"])
def test_a_weight_is_decompressed_bit_for_bit(pattern):
    pattern = Pattern.parse(pattern)
    weight, _ = weight_and_bias(pattern, 200, 488, torch.bfloat16)
    stored = compress(weight, pattern)
    assert torch.equal(nm_decompress(stored), weight)
    assert torch.equal(nm_decompress(stored), stored.decompress())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("pattern", ["1:4", "4:8"])
def test_a_compressed_layer_multiplies_any_number_of_tokens(pattern, dtype):
    pattern = Pattern.parse(pattern)
    weight, bias = weight_and_bias(pattern, 160, 192, dtype)
    layer = CompressedLinear(weight, pattern, bias)
    assert layer.weight_bytes == weight.nbytes * (16 * pattern.density + 1) / 16
    for tokens in (1, 32, 33, 64, 65, 1024):
        x = inputs(tokens, 192, dtype)
        layer(x)  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)
        x.copy_(inputs(tokens, 192, dtype, seed=2))
        graph.replay()
        assert_near(y, F.linear(x.double(), weight.double(), bias.double()), dtype)
        assert torch.equal(layer(x.view(1, tokens, 192))[0], y)
    with pytest.raises(InputError, match=r"multiplies torch.*got torch\.float32"):
        layer(x.float())


# Of 64 x 64 and more the library stores 9/16; what it keeps of smaller ones is padded.
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("gemm") / "found.json"
    return AlgorithmStore(torch.device("cuda"), path)


@pytest.fixture
def model():
    made = random_model("llama", **SIZES)
    prune_model(made, None, Recipe(Magnitude(), TWO_FOUR), progress=False)
    return made.half().cuda()


@pytest.mark.parametrize("policy", ["sparse", "auto"])
def test_a_converted_model_says_what_its_masked_form_says(model, store, policy):
    masked = copy.deepcopy(model)
    changed = sparsify(model, tokens=[16], policy=policy, store=store, progress=False)
    assert [layer.name for layer in changed] == [*prunable_layers(masked)]
    for layer in changed:
        assert isinstance(model.get_submodule(layer.name), SparseLinear)
        if policy == "sparse":
            assert layer.stored_bytes == layer.dense_bytes * 9 // 16
        assert layer.chosen_ms[0] <= layer.dense_ms[0] or policy == "sparse"
    exact = copy.deepcopy(masked).double()
    ids = torch.randint(256, (2, 20), generator=torch.Generator().manual_seed(0)).cuda()
    for some in (ids, ids[:, :8], ids[:, :1]):  # more, as many and fewer than were searched for
        with torch.no_grad():
            wanted = exact(some).logits
            off, off_masked = (
                (one(some).logits.double() - wanted).abs().max() for one in (model, masked)
            )
        assert off <= 3 * off_masked


def test_a_4_to_8_model_says_what_its_masked_form_says():
    masked = random_model("llama", **SIZES)
    prune_model(masked, None, Recipe(Magnitude(), Pattern(4, 8)), progress=False)
    masked = masked.half().cuda()
    model, exact = copy.deepcopy(masked), copy.deepcopy(masked).double()
    changed = sparsify(model, pattern=Pattern(4, 8), progress=False)
    assert [layer.name for layer in changed] == [*prunable_layers(masked)]
    assert all(layer.stored_bytes == layer.dense_bytes * 9 // 16 for layer in changed)
    ids = torch.randint(256, (5, 20), generator=torch.Generator().manual_seed(0)).cuda()
    for some in (ids, ids[:, :8], ids[:, :1]):
        with torch.no_grad():
            wanted = exact(some).logits
            off, off_masked = (
                (one(some).logits.double() - wanted).abs().max() for one in (model, masked)
            )
        assert off <= 3 * off_masked


def test_a_layer_that_is_not_2_to_4_is_named_and_the_model_stays(model, store):
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, :4] = 1
    before = copy.deepcopy(model)
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj is not 2:4: row 0"):
        sparsify(model, tokens=[16], store=store, progress=False)
    assert not [m for m in model.modules() if isinstance(m, SparseLinear)]
    for one, other in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_changed_plan_runs_the_kernels_of_a_new_one():
    device, product = torch.device("cuda"), Product(512, 256, 32, torch.float16)
    operands = Operands.random(product, device, TWO_FOUR)
    stored = operands.compressed()[:1]
    whole = [Algorithm(i) for i in (3, 0, 5)]
    split = [Algorithm(i, 1, "ONE_KERNEL") for i in (0, 5)]
    for ways in (whole, split):
        changed = Plan(product, device, ways[-1])
        for way in ways:
            changed.change(way)
            ran = []
            for plan in (changed, Plan(product, device, way)):
                (call,) = operands.sparse_calls(plan, stored)
                operands.y.fill_(float("nan"))
                ran.append((kernel_names(call), operands.y.clone(), plan.workspace_bytes))
                assert operands.error() < 1e-3
            assert ran[0][0] == ran[1][0]
            assert torch.equal(ran[0][1], ran[1][1])
            assert ran[0][2] == ran[1][2]


def test_a_second_start_searches_nothing(store, monkeypatch):
    product = Product(96, 64, 16, torch.float16)
    first = search.found([product], torch.device("cuda"), store)

    def fail(*_):
        raise AssertionError("a search")

    monkeypatch.setattr(search, "_search", fail)
    again = AlgorithmStore(torch.device("cuda"), store.path)
    assert search.found([product], torch.device("cuda"), again) == first


def test_a_measurement_names_the_sparse_kernel_that_ran(store):
    timing = time_gemm(16, 512, 256, store=store)
    assert timing.sparse_kernel, timing.kernel_name
    assert timing.relative_error < 1e-3
    assert timing.sparse_bytes == timing.dense_bytes * 9 // 16
    assert timing.floor_ms <= timing.sparse_least <= timing.sparse_ms <= timing.sparse_most
