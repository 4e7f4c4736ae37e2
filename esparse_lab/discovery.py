"""Blocks and groups of a model that no entry of `ARCHITECTURES` describes, found by running it.

Linear layers that are called with one and the same tensor read one activation. What stands between
an MLP's layers cannot be seen this way, so `InputGroup.feeds` is None (but for stacked experts),
and DaSS treats such layers as Wanda does.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from esparse_lab.blocks import LINEAR, Block, InputGroup, WeightMatrix
from esparse_lab.errors import EsparseError
from esparse_lab.experts import are_experts, expert_groups

# Names that transformers gives to the small layers that choose or weigh experts.
ROUTERS = ("gate", "router", "shared_expert_gate")
# More of a block's matrices than this must be understood.
LEAST_SHARE = 0.9


@dataclass
class _Trace:
    """What happened in one forward.

    Attributes:
        calls: layers (and stacked experts) in the order of their first calls, with what they read.
        returns: what each block that ran returned, as `Block.returns`.
    """

    calls: dict[nn.Module, tuple[Tensor, int]] = field(default_factory=dict)
    returns: dict[nn.Module, int] = field(default_factory=dict)

    def note_call(self, module: nn.Module, args: tuple) -> None:
        # Holding the tensor keeps its id its own; the version tells when it was written over.
        if args:
            self.calls.setdefault(module, (args[0], args[0]._version))

    def note_return(self, module: nn.Module, _args: tuple, out: object) -> None:
        self.returns[module] = len(out) if isinstance(out, tuple) else 0


def discover_blocks(model: PreTrainedModel) -> list[Block]:
    """The transformer blocks of `model`, whatever its family.

    Raises:
        EsparseError: says what is missing.
    """
    lists = _block_lists(model)
    trace = _run(model, lists)
    ran = [path for path, blocks in lists.items() if any(b in trace.returns for b in blocks)]
    if len(ran) != 1:
        found = f"these run: {', '.join(ran)}" if ran else "none runs on text"
        raise _not_understood(model, f"it needs one nn.ModuleList of blocks with layers, {found}")
    [path] = ran
    return [
        Block(
            name := f"{path}.{i}", block, _groups(model, name, block, trace), trace.returns[block]
        )
        for i, block in enumerate(lists[path])
        if block in trace.returns
    ]


def _not_understood(model: PreTrainedModel, what: str) -> EsparseError:
    return EsparseError(
        f"Models of type {model.config.model_type!r} are not described, and tracing one failed: "
        f"{what}. Write its entry in esparse_lab/architectures.py."
    )


def _block_lists(model: PreTrainedModel) -> dict[str, nn.ModuleList]:
    """Lists whose every element holds layers, by path; not those inside others (experts)."""
    lists: dict[str, nn.ModuleList] = {}
    for path, module in model.named_modules():
        if (
            isinstance(module, nn.ModuleList)
            and len(module)
            and not path.startswith(tuple(f"{outer}." for outer in lists))
            and all(_layers(element) and not isinstance(element, LINEAR) for element in module)
        ):
            lists[path] = module
    return lists


def _layers(block: nn.Module) -> dict[str, nn.Module]:
    """Linear layers and stacked experts inside a block, by path; no routers."""
    return {
        path: module
        for path, module in block.named_modules()
        if (isinstance(module, LINEAR) and path.rpartition(".")[2] not in ROUTERS)
        or are_experts(module)
    }


@torch.no_grad()
def _run(model: PreTrainedModel, lists: dict[str, nn.ModuleList]) -> _Trace:
    trace, handles = _Trace(), []
    vocabulary = model.get_input_embeddings().num_embeddings
    tokens = torch.randint(vocabulary, (1, 16), generator=torch.Generator().manual_seed(0))
    try:
        for block in (block for blocks in lists.values() for block in blocks):
            handles.append(block.register_forward_hook(trace.note_return))
            for layer in _layers(block).values():
                handles.append(layer.register_forward_pre_hook(trace.note_call))
        model(tokens.to(model.device), use_cache=False)
    except Exception as error:  # whatever a model of unknown make raises
        raise _not_understood(model, f"its forward on random tokens raised {error!r}") from error
    finally:
        for handle in handles:
            handle.remove()
    return trace


def _groups(
    model: PreTrainedModel, name: str, block: nn.Module, trace: _Trace
) -> tuple[InputGroup, ...]:
    paths = {module: f"{name}.{path}" for path, module in _layers(block).items()}
    if idle := [path for module, path in paths.items() if module not in trace.calls]:
        raise _not_understood(
            model, f"these layers were never called with an activation: {', '.join(idle)}"
        )
    groups: list[InputGroup] = []
    of_input: dict[tuple[int, int], InputGroup] = {}
    for module, (x, version) in trace.calls.items():
        if module not in paths:
            continue
        if are_experts(module):
            groups += expert_groups(paths[module], module, len(groups))
            continue
        if (id(x), version) not in of_input:
            groups.append(of_input.setdefault((id(x), version), InputGroup({})))
        of_input[id(x), version].layers[paths[module]] = WeightMatrix.of(module)
    _check_share(model, name, block, groups)
    return tuple(groups)


def _check_share(
    model: PreTrainedModel, name: str, block: nn.Module, groups: list[InputGroup]
) -> None:
    """Refuse a block most of whose weights are in parameters that no layer here holds."""
    held = {
        id(getattr(layer.module, layer.parameter)) for g in groups for layer in g.layers.values()
    }
    matrices = {p: w for p, w in block.named_parameters() if w.dim() > 1}
    left = {f"{name}.{p}": w.numel() for p, w in matrices.items() if id(w) not in held}
    if sum(left.values()) > (1 - LEAST_SHARE) * sum(w.numel() for w in matrices.values()):
        names = ", ".join(sorted(left, key=left.get, reverse=True)[:3])
        raise _not_understood(model, f"much of a block's weight is in no linear layer: {names}")
