"""Traces of the Hessian against the Hessian itself, and outliers counted by hand."""

import numpy as np
import pytest
import torch
from tiny_models import random_model
from torch.func import functional_call
from transformers import LlamaConfig, LlamaForCausalLM

from esparse_lab import EsparseError, InputError, hessian_traces, outlier_shares, prunable_layers
from esparse_lab.sensitivity import _signs


@pytest.fixture(scope="module")
def smallest() -> LlamaForCausalLM:
    """One block of 136 prunable weights in float64: its whole Hessian can be written down."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=4,
        intermediate_size=6,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config).double().eval()


def whole_hessian(model, sequence) -> tuple[np.ndarray, dict[str, slice]]:
    """The loss's second derivatives by all prunable weights, and where each matrix's are."""
    weights = {f"{n}.weight": x.weight for n, x in prunable_layers(model).items()}
    ends = np.cumsum([w.numel() for w in weights.values()]).tolist()
    parts = {n: slice(e - w.numel(), e) for (n, w), e in zip(weights.items(), ends, strict=True)}

    def loss(flat):
        values = {n: flat[part].view_as(weights[n]) for n, part in parts.items()}
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            logits = functional_call(model, values, (sequence[None],)).logits[0]
        likely = logits.log_softmax(-1)
        return -sum(likely[i, token] for i, token in enumerate(sequence[1:])) / len(sequence[1:])

    flat = torch.cat([w.flatten() for w in weights.values()])
    hessian = torch.autograd.functional.hessian(loss, flat).numpy()
    return hessian, {n.removesuffix(".weight"): part for n, part in parts.items()}


def test_estimates_are_what_the_whole_hessian_gives(smallest):
    sequence = torch.randint(16, (9,), generator=torch.Generator().manual_seed(3))
    hessian, parts = whole_hessian(smallest, sequence)
    estimates = hessian_traces(smallest, sequence[None], probes=3, seed=1)
    assert list(estimates) == list(parts)
    weights = [layer.weight for layer in prunable_layers(smallest).values()]
    generator = torch.Generator().manual_seed(1)
    for probe in range(3):
        z = torch.cat([_signs(w, generator).flatten() for w in weights]).numpy()
        for name, part in parts.items():
            found = float(estimates[name][0, probe])
            # z_l (Hz)_l: its mean over signs is the trace of H_ll, as E[z z^T] = 1. Norms run in
            # float32 even here.
            assert found == pytest.approx(z[part] @ hessian[part] @ z, rel=1e-4, abs=1e-4), name


def test_signs_have_the_identity_as_their_second_moment():
    generator = torch.Generator().manual_seed(0)
    signs = torch.stack([_signs(torch.empty(2, 3), generator).flatten() for _ in range(4000)])
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    second = signs.T @ signs / 4000
    assert (second - torch.eye(6)).abs().max() < 4 / 4000**0.5
    assert signs.mean(dim=0).abs().max() < 4 / 4000**0.5


def test_each_sequence_has_its_own_loss(smallest):
    tokens = torch.randint(16, (2, 9), generator=torch.Generator().manual_seed(3))
    both = hessian_traces(smallest, tokens, probes=2)
    first = hessian_traces(smallest, tokens[:1], probes=2)
    for name in both:
        assert both[name].shape == (2, 2)
        assert torch.equal(both[name][:1], first[name])
    other_seed = hessian_traces(smallest, tokens[:1], probes=2, seed=5)
    assert not torch.equal(other_seed[name], first[name])


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mixtral"])
def test_the_model_is_left_as_it_was(model_type, tokens):
    model = random_model(model_type).bfloat16()
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    before = [(p.data_ptr(), p.dtype, p.requires_grad) for p in model.parameters()]
    with torch.no_grad():  # as inside prune_model
        half = hessian_traces(model, tokens[:1])
        assert [(p.data_ptr(), p.dtype, p.requires_grad) for p in model.parameters()] == before
        assert all(p.grad is None for p in model.parameters())
        whole = hessian_traces(model.float(), tokens[:1])
    for name in prunable_layers(model):
        assert torch.equal(half[name], whole[name])


def test_experts_have_traces_of_their_own(tokens):
    model = random_model("mixtral")
    traces = hessian_traces(model, tokens[:1])
    experts = [float(t) for n, t in traces.items() if ".0." in n and n.endswith("down_proj")]
    assert len(set(experts)) == len(experts) > 1


def test_traces_refuse_what_they_cannot_use(tiny_llama, tokens):
    with pytest.raises(InputError, match="at least 1 probe and 2 positions, got 0 and 12"):
        hessian_traces(tiny_llama, tokens, probes=0)
    with pytest.raises(InputError, match="got 1 and 1"):
        hessian_traces(tiny_llama, tokens[:, :1])
    tiny_llama.model.layers[1].self_attn.o_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(EsparseError, match=r"layers\.\d\..*not finite"):
        hessian_traces(tiny_llama, tokens)
    assert all(p.requires_grad for p in tiny_llama.parameters())


def test_outliers_are_counted_against_the_mean_of_their_block(tiny_llama, tokens):
    layers = prunable_layers(tiny_llama)
    read = {}
    handles = [
        layer.module.register_forward_pre_hook(
            lambda _m, args, name=name: read.update({name: args[0].double().numpy()})
        )
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        tiny_llama(tokens)
    for handle in handles:
        handle.remove()
    shares = outlier_shares(tiny_llama, tokens, factor=3.0)
    assert list(shares) == [f"model.layers.{i}" for i in range(3)]
    for block, share in shares.items():
        scores = []
        for name, layer in layers.items():
            if name.startswith(f"{block}."):
                norm = np.sqrt(np.square(read[name]).sum(axis=1).mean(axis=0))
                scores.append((np.abs(layer.weight.double().numpy()) * norm).ravel())
        scores = np.concatenate(scores)
        assert share == np.mean(scores > 3 * scores.mean())
        assert 0 < share < 0.2
