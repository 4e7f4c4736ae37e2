"""The authors' own code, run as it is: what `exactness.py` and `against_peers.py` share.

From a checkout of the authors' repository (`PINNED` names them and the commits compared with) the
function that prunes a whole Llama is imported and run:

    wanda      lib/prune.py    prune_wanda        locuslab/wanda
    sparsegpt  llama.py        llama_sequential   IST-DASLab/sparsegpt
    ria        lib/prune.py    prune_ria          biomedical-cybernetics/...
    dass       lib/prune.py    prune_wandinter    guozhiyu/glu_dass

No file of theirs is changed. What surrounds them is supplied: their data loader hands out our
tokens; blocks get the rotary embeddings, which transformers now computes outside of them; and
`datasets` and the calls to CUDA that a machine may lack do nothing.
"""

import contextlib
import importlib
import importlib.util
import io
import sys
import types
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from esparse_lab.masks import Pattern, Sparsity
from esparse_lab.run_record import git_state

PINNED = {
    "wanda": ("locuslab/wanda", "8e8fc87b4a2f9955baa7e76e64d5fce7fa8724a6"),
    "sparsegpt": ("IST-DASLab/sparsegpt", "147d2159dc4f3e9f73e47b32c04d7b3708f44436"),
    "ria": (
        "biomedical-cybernetics/Relative-importance-and-activation-pruning",
        "7bc55b06924659ea977f7804b773ce3ef0d55c2f",
    ),
    "dass": ("guozhiyu/glu_dass", "2d03ebc7806fece18799254a365fae94bb52b8b3"),
}


def commit_of(name: str, checkout: Path) -> str:
    """The checkout's commit, printed with what it should be; "unknown" where git cannot tell."""
    repository, pinned = PINNED[name]
    state = git_state(checkout.resolve() / "lib")  # asks in the folder above
    commit = "unknown"
    if state is not None:
        commit = state["commit"] + (" + local changes" if state["dirty"] else "")
    print(f"{repository} is at {commit}" + ("" if commit == pinned else f", not {pinned}"))
    return commit


def load(name: str, checkout: Path) -> types.ModuleType:
    """Their module, under a name of its own: three of the repositories call their package lib.

    SparseGPT's code and copies of it turn TF32 off for the whole process: that is put back.
    """
    absent = importlib.util.find_spec("datasets") is None
    if absent:
        sys.modules["datasets"] = types.SimpleNamespace(load_dataset=None)
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    if name == "sparsegpt":
        with patch.object(sys, "path", [str(checkout.resolve()), *sys.path]):
            code = importlib.import_module("llama")
    else:
        package = types.ModuleType(f"{name}_lib")
        package.__path__ = [str(checkout.resolve() / "lib")]
        sys.modules[package.__name__] = package
        code = importlib.import_module(f"{package.__name__}.prune")
    if absent:
        del sys.modules["datasets"]  # transformers looks for it again
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed
    return code


@contextlib.contextmanager
def _quiet_without_cuda() -> Iterator[None]:
    """Calls that need a GPU leave things where they are, and nothing is printed."""
    with contextlib.ExitStack() as stack:
        if not torch.cuda.is_available():
            stack.enter_context(patch.object(torch.cuda, "synchronize", lambda *_: None))
            stack.enter_context(patch.object(torch.Tensor, "cuda", lambda tensor, *_: tensor))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield


@contextlib.contextmanager
def _blocks_given_rotary(model: LlamaForCausalLM) -> Iterator[None]:
    """While open, blocks that are called without rotary embeddings get them, computed once."""
    known: dict[tuple, tuple[Tensor, Tensor]] = {}

    def add_rotary(_block: nn.Module, positional: tuple, keywords: dict) -> tuple[tuple, dict]:
        hidden = positional[0]
        key = hidden.shape[1], hidden.dtype, hidden.device
        if key not in known:
            places = torch.arange(hidden.shape[1], device=hidden.device)[None]
            known[key] = model.model.rotary_emb(hidden, places)
        return positional, keywords | {"position_embeddings": known[key]}

    with contextlib.ExitStack() as hooks:
        for block in model.model.layers:
            hook = block.register_forward_pre_hook(add_rotary, with_kwargs=True)
            hooks.callback(hook.remove)
        yield


def prune_as_theirs(
    name: str,
    code: types.ModuleType,
    model: LlamaForCausalLM,
    tokens: Tensor,
    sparsity: Sparsity,
    *,
    device: torch.device | str = "cpu",
    one_less: bool | None = None,
) -> None:
    """Prune `model` in place with the authors' function.

    Args:
        name: in `PINNED`.
        code: what `load` gave.
        model: a Llama.
        tokens: int64 [sequence, position].
        sparsity: as ours is told.
        device: where their function works.
        one_less: without groups, ask for one weight less per comparison; None for RIA's comparison
            within rows (see `exactness.py`).
    """
    n_and_m, share = (0, 0), 1 - sparsity.density
    if isinstance(sparsity, Pattern):
        n_and_m = (sparsity.m - sparsity.n, sparsity.m)  # they count what goes
    elif one_less:
        # int(share * weights) is one less, for every even number of weights below 10^6.
        share -= 1e-6
    loader = [(sequence[None], None) for sequence in tokens]
    args = Namespace(nsamples=len(tokens), seed=0, sparsity_ratio=share, use_variant=False)
    model.seqlen, model.hf_device_map = tokens.shape[1], {}
    model.model.rotary_emb.to(device)  # lay inside of blocks when they wrote, and came along
    code.get_loaders = lambda *_, **__: (loader, None)
    with _blocks_given_rotary(model), _quiet_without_cuda():
        if name == "sparsegpt":
            code.args = Namespace(
                nsamples=len(tokens),
                sparsity=share,
                prunen=n_and_m[0],
                prunem=n_and_m[1],
                percdamp=0.01,
                blocksize=128,
                true_sequential=False,
                wbits=16,
                minlayer=-1,
                maxlayer=1000,
                prune_only="",
                invert=False,
            )
            code.llama_sequential(model, loader, device)
            return
        if name == "ria":
            args = Namespace(
                **vars(args),
                model="llama",
                prune_method="ria",
                a=0.5,
                seqlen=tokens.shape[1],
                calib_dataset="ours",
                reconstruction=False,
                gptq=False,
                reallocation=False,
                semi_sparse_acc=False,
                per_outneuron=one_less is None,
            )
        prune = {"wanda": "prune_wanda", "ria": "prune_ria", "dass": "prune_wandinter"}[name]
        getattr(code, prune)(args, model, None, torch.device(device), *n_and_m)
