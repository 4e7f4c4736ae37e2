"""Experts: matrices stacked in one module, each of which sees the tokens that a router sends it.

transformers keeps them as `gate_up_proj` [expert, 2 * product, hidden] and `down_proj` [expert,
hidden, product], and calls the module with hidden states [token, hidden] and the numbers of each
token's experts [token, chosen].
"""

from torch import Tensor, nn

from esparse_lab.blocks import InputGroup, WeightMatrix


class RoutedGroup(InputGroup):
    """The gate and up projection of one expert, which are one matrix."""

    def read(self, args: tuple, length: int) -> Tensor:
        """The hidden states of the expert's tokens, [token, in]; may be empty."""
        hidden, chosen = args[:2]
        return hidden[(chosen == self.layers[self.name].expert).any(dim=-1)]


class ProductGroup(RoutedGroup):
    """The down projection of one expert."""

    def read(self, args: tuple, length: int) -> Tensor:
        """The products of gate and up projection for the expert's tokens, [token, in].

        The module hands them to nobody, so they are computed here as it does.
        """
        gate_up = self.module.gate_up_proj[self.layers[self.name].expert]
        return self.module._apply_gate(nn.functional.linear(super().read(args, length), gate_up))


def are_experts(module: nn.Module) -> bool:
    """Whether `module` holds experts as `expert_groups` expects them."""
    shapes = {name: p.shape for name, p in module.named_parameters(recurse=False)}
    if set(shapes) != {"gate_up_proj", "down_proj"} or len(shapes["down_proj"]) != 3:
        return False
    n_experts, hidden, product = shapes["down_proj"]
    return shapes["gate_up_proj"] == (n_experts, 2 * product, hidden)


def expert_groups(path: str, module: nn.Module, first: int) -> list[InputGroup]:
    """Two groups an expert; `first` is the number inside the block of the first one."""
    groups: list[InputGroup] = []
    for expert in range(len(module.down_proj)):
        for kind, parameter in ((RoutedGroup, "gate_up_proj"), (ProductGroup, "down_proj")):
            matrix = WeightMatrix(module, parameter, expert)
            feeds = first + len(groups) + 1 if kind is RoutedGroup else None
            groups.append(kind({f"{path}.{expert}.{parameter}": matrix}, feeds))
    return groups
