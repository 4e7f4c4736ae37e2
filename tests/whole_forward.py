"""What the layers of a model hold and read, worked out from torch and transformers alone."""

import re

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

EXPERT = re.compile(r"(.+)\.experts\.(\d+)\.(gate_up_proj|down_proj)")


def block_of(name: str) -> int:
    return int(re.search(r"\.(\d+)\.", name)[1])


def layer_names(model: PreTrainedModel) -> set[str]:
    """Every matrix inside the blocks but those that choose or weigh experts."""
    names = set()
    for path, module in model.named_modules():
        if "vision" in path or not re.search(r"\.(layers|h)\.\d+\.", path):
            continue
        if isinstance(module, nn.Linear | Conv1D) and not path.endswith("shared_expert_gate"):
            names.add(path)
        for parameter, values in module.named_parameters(recurse=False):
            if values.dim() == 3:
                names |= {f"{path}.{expert}.{parameter}" for expert in range(len(values))}
    return names


def matrix(model: PreTrainedModel, name: str) -> torch.Tensor:
    """The weights of a layer, [out, in]; writing into them changes the model."""
    if found := EXPERT.fullmatch(name):
        block, expert, parameter = found.groups()
        return model.get_parameter(f"{block}.experts.{parameter}").data[int(expert)]
    module = model.get_submodule(name)
    return module.weight.data.T if isinstance(module, Conv1D) else module.weight.data


def inputs_of_whole_forward(
    model: PreTrainedModel, tokens: torch.Tensor
) -> dict[str, list[torch.Tensor]]:
    """What each layer reads when the model simply runs: one [token, in] a sequence."""
    read = {name: [] for name in layer_names(model)}
    routed = {}  # what each block of experts reads
    for name in read:
        if found := EXPERT.fullmatch(name):
            routed[found[1]] = []
    handles = [
        model.get_submodule(path).register_forward_pre_hook(
            lambda _m, args, kept=kept: kept.append(args[0].flatten(0, -2))
        )
        for path, kept in [*routed.items(), *read.items()]
        if not EXPERT.fullmatch(path)
    ]
    with torch.no_grad():
        for sequence in tokens:
            model(sequence[None])
    for handle in handles:
        handle.remove()
    for name in read:
        if found := EXPERT.fullmatch(name):
            read[name] = [_read_by_expert(model, x, *found.groups()) for x in routed[found[1]]]
    return read


def _read_by_expert(model, x, block: str, expert: str, parameter: str) -> torch.Tensor:
    """The tokens that go to an expert, of the two best each; or the products it makes of them."""
    router = model.get_submodule(block).gate.weight.data
    best_two = (x @ router.T).topk(2, dim=-1).indices
    mine = x[[int(expert) in chosen for chosen in best_two.tolist()]]
    if parameter == "gate_up_proj":
        return mine
    gate_up = matrix(model, f"{block}.experts.{expert}.gate_up_proj")
    gate, up = gate_up[: len(gate_up) // 2], gate_up[len(gate_up) // 2 :]
    return nn.functional.silu(mine @ gate.T) * (mine @ up.T)
