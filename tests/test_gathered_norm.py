"""A norm that hands its output over in another order: what the norm gives, gathered."""

import copy
import shutil

import pytest
import torch
from emulated import emulated
from tiny_models import TINY_CONFIGS, random_model

from esparse_lab import ChannelOrder, device_code, gathered_norm
from esparse_lab.folding import fold_orders
from esparse_lab.gathered_norm import FORMULAS, GatheredNorm
from esparse_lab.gemm.clock import kernel_names
from esparse_lab.planner import order_plans

HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32
# Half a step of the format at 1, twice where the norm rounds twice; and sums in float32.
ROUNDING = {HALF: 2.1 * 2**-11, BRAIN: 2.1 * 2**-8, FULL: 2e-6}
EPS = 1e-3  # large enough to be seen


def norms_that_gather() -> dict[str, type[torch.nn.Module]]:
    """The class of every norm behind which an order costs a gather, in every family."""
    found = {}
    for family in TINY_CONFIGS:
        model = random_model(family)
        for plan in order_plans(model).values():
            if plan.norm is not None:
                norm = type(model.get_submodule(plan.norm))
                found[norm.__name__] = norm
    return found


NORMS = norms_that_gather()


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gathered(name, width, dtype=FULL, **how):
    """A norm of this class, with weights that differ, whose output comes in a random order."""
    norm = NORMS[name](width, eps=EPS, **how)
    for seed, parameter in enumerate(norm.parameters()):
        parameter.data += 0.5 * draw(width, seed=seed + 1)
    order = torch.randperm(width, generator=torch.Generator().manual_seed(width))
    return GatheredNorm(norm.to(dtype), order).requires_grad_(False)


def activations(shape, dtype):
    """Channels with means and scales of their own, small enough for EPS to count."""
    width = shape[-1]
    x = draw(*shape) * 0.1 * draw(width, seed=5).exp() + 0.1 * draw(width, seed=6)
    return x.to(dtype)


def exact(module, x):
    """What the module gives for x, in float64 throughout, on the CPU."""
    norm, x = module.norm.cpu(), x.cpu().double()
    weight = norm.weight.double()
    if isinstance(norm, torch.nn.LayerNorm):
        x = x - x.mean(-1, keepdim=True)
    y = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()
    y = y * (1 + weight if "Gemma" in type(norm).__name__ else weight)
    if getattr(norm, "bias", None) is not None:
        y = y + norm.bias.double()
    return y[..., module.index.cpu()]


def check(found, module, x):
    """`found` is right to rounding, and nearly always bit for bit what PyTorch gives on the CPU."""
    module, x = copy.deepcopy(module).cpu(), x.cpu()
    plain = module.norm(x)[..., module.index]
    assert found.dtype == plain.dtype
    assert found.shape == plain.shape
    assert found.is_contiguous()
    found = found.cpu()
    right = exact(module, x)
    assert ((found.double() - right).abs() <= ROUNDING[x.dtype] * right.abs() + 3e-6).all()
    if x.dtype != FULL:
        assert (found != plain).sum() <= 2 + 0.01 * plain.numel()


def test_the_kernel_knows_every_norm_that_gathers():
    assert set(NORMS) == set(FORMULAS)


@pytest.mark.parametrize("dtype", [HALF, BRAIN, FULL, torch.float64], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_on_a_cpu_it_is_the_norm_and_then_a_gather(name, dtype):
    module, x = gathered(name, 24, dtype), activations((2, 5, 24), dtype)
    assert torch.equal(module(x), module.norm(x).index_select(-1, module.index))
    assert torch.equal(module(x)[..., 3], module.norm(x)[..., module.index[3]])


def test_other_norms_stay_with_pytorch():
    class Doubled(torch.nn.LayerNorm):
        def forward(self, x):
            return 2 * super().forward(x)

    assert not GatheredNorm(Doubled(4), torch.arange(4)).formula


CASES = {  # a class of norm, dtype, width, where a row starts, what the norm is made with
    **{name: (name, HALF, 200, 0, {}) for name in NORMS},
    "bfloat16": ("LlamaRMSNorm", BRAIN, 200, 0, {}),
    "float32": ("GemmaRMSNorm", FULL, 200, 0, {}),
    "odd": ("LayerNorm", BRAIN, 77, 0, {}),
    "unaligned": ("LlamaRMSNorm", HALF, 200, 1, {}),
    "two pieces a thread": ("LlamaRMSNorm", HALF, 4136, 0, {}),
    "one channel": ("LayerNorm", HALF, 1, 0, {}),
    "no bias": ("LayerNorm", HALF, 200, 0, {"bias": False}),
}


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to emulate a kernel")
@pytest.mark.parametrize("case", CASES)
def test_the_kernel_on_emulated_threads(case, libraries):
    name, dtype, width, offset, how = CASES[case]
    module = gathered(name, width, dtype, **how)
    x = activations((5, width + 8), dtype)[:, offset : offset + width]
    vector = gathered_norm._vector(x)
    assert vector == (1 if case in ("odd", "unaligned", "one channel") else 16 // dtype.itemsize)
    constants = gathered_norm._constants(dtype, module.formula, module.eps, width, vector)
    shared = gathered_norm._SUMS_BYTES + width * dtype.itemsize
    run = emulated(gathered_norm._SOURCE, "gathered_norm", constants, shared, libraries)
    y = torch.full((5, width), torch.nan, dtype=dtype)
    bias = getattr(module.norm, "bias", None)
    norm = module.norm
    addresses = [t.data_ptr() for t in (module.index, norm.weight)]
    addresses += [0 if bias is None else bias.data_ptr(), y.data_ptr()]
    run(2, x.data_ptr(), x.stride(0), len(x), *addresses)
    check(y, module, x)


def test_its_shape_is_known_without_a_device():
    with torch.device("meta"):
        x, weight = torch.empty(2, 5, 48, dtype=HALF)[..., ::2], torch.empty(24, dtype=HALF)
        index = torch.empty(24, dtype=torch.int64)
        y = torch.ops.esparse_lab.gathered_norm(x, weight, None, index, "rms", EPS)
    assert (y.shape, y.dtype, y.is_contiguous()) == (x.shape, HALF, True)


def needs_gpu(test):
    reason = device_code.unavailable()
    return pytest.mark.gpu(pytest.mark.skipif(bool(reason), reason=reason or "runs")(test))


def fused(module, x):
    """What the module gives for x on the GPU, by the kernel."""
    module = copy.deepcopy(module).cuda()
    assert gathered_norm._fuses(x, module.norm.weight, module.index)
    return module(x)


@needs_gpu
@pytest.mark.parametrize("dtype", [HALF, BRAIN, FULL], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_a_gpu_gives_what_the_norm_gives(name, dtype):
    module = gathered(name, 576, dtype)
    x = activations((2, 300, 576), dtype)
    check(fused(module, x.cuda()), module, x)


@needs_gpu
@pytest.mark.parametrize("name", ["LlamaRMSNorm", "LayerNorm"])
@pytest.mark.parametrize("width", [1, 7, 40, 577, 4096, 5120, 8192, 16383, 16384])
def test_of_any_width(name, width):
    for dtype in (HALF, FULL):
        module = gathered(name, width, dtype)
        for tokens in (1, 3):
            x = activations((tokens, width), dtype)
            check(fused(module, x.cuda()), module, x)


@needs_gpu
def test_more_rows_than_blocks_are_all_written():
    module, x = gathered("LlamaRMSNorm", 4096, HALF), activations((5000, 4096), HALF)
    check(fused(module, x.cuda()), module, x)


@needs_gpu
def test_any_layout_is_read():
    module = gathered("LayerNorm", 64, HALF)
    wide = activations((6, 5, 144), HALF).cuda()
    layouts = [
        wide[..., 8:72],
        wide[..., 3:67],
        wide[..., 3:131:2],
        wide[:, ::2, :64],
        wide[2, 1, :64],
    ]
    layouts += [
        wide[..., :64].transpose(0, 1),
        wide[:1, :1, :64].expand(3, 4, 64),
        wide[:0, :, :64],
    ]
    for x in layouts:
        check(fused(module, x), module, x)


@needs_gpu
@torch.no_grad()
def test_in_a_graph_and_compiled():
    module = gathered("LlamaRMSNorm", 576, HALF)
    on_gpu, x = copy.deepcopy(module).cuda(), activations((16, 576), HALF).cuda()
    eager = on_gpu(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = on_gpu(x)
    other = activations((32, 576), HALF)[16:].cuda()
    x.copy_(other)
    graph.replay()
    check(y, module, other)
    check(torch.compile(on_gpu, fullgraph=True)(other), module, other)
    assert torch.equal(y, on_gpu(other))
    assert not torch.equal(y, eager)


@needs_gpu
def test_gradients_are_those_of_pytorch():
    module = gathered("LlamaRMSNorm", 64).cuda()
    x = activations((4, 64), FULL).cuda().requires_grad_()
    (found,) = torch.autograd.grad(module(x).square().sum(), x)
    (expected,) = torch.autograd.grad(module.norm(x)[:, module.index].square().sum(), x)
    torch.testing.assert_close(found, expected)


@needs_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_nothing_waits_for_the_device():
    module, x = gathered("LayerNorm", 64, HALF).cuda(), activations((4, 64), HALF).cuda()
    module(x)
    try:
        torch.cuda.set_sync_debug_mode("error")
        module(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@torch.no_grad()
def test_a_folded_model_runs_it(tiny_llama, tokens):
    model, tokens = tiny_llama.half().cuda(), tokens.cuda()
    expected = model(tokens).logits
    order = ChannelOrder(torch.randperm(24, generator=torch.Generator().manual_seed(3)))
    fold_orders(model, {f"model.layers.1.mlp.{n}_proj": order for n in ("gate", "up")})
    assert "gathered_norm" in kernel_names(lambda: model(tokens))
    assert (model(tokens).logits - expected).abs().max() < 2e-3 * expected.abs().max()
