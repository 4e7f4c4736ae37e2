"""Which sparsity each layer gets."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from esparse_lab.architectures import prunable_layers, transformer_blocks
from esparse_lab.budget import kept_per_row, levelled, nearest_choices
from esparse_lab.errors import InputError
from esparse_lab.masks import Pattern, Sparsity, Unstructured
from esparse_lab.sensitivity import hessian_traces, outlier_shares


@dataclass(frozen=True)
class Allocation(ABC):
    """Gives each layer a sparsity of its own; all weights of prunable layers count alike.

    The share of weights that is kept is `target` exactly: with a menu to the weight, if any
    assignment has that share, else less than one step of the smallest layer below it; unstructured
    to less than one weight in each row of the smallest layer. (Counted along the inputs. A method
    whose groups run along the outputs, DaSS, may round unstructured shares otherwise.)

    Attributes:
        target: share of the weights that is KEPT, above 0 and below 1.
        menu: what a layer may get: "unstructured", a share of each of its rows; or a list such as
            "3:8, 4:8, 5:8" or "dense, 2:4".
        spread: no layer is meant to keep a share further than this from `target`; at least 0.
        measures: whether the layers' weights or activations decide, not their shapes alone.
    """

    target: float
    menu: str = "unstructured"
    spread: ClassVar[float]
    measures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            raise InputError(
                f"The share of kept weights must be above 0 and below 1, got {self.target}."
            )
        if not (0 <= self.spread < self.target and self.target + self.spread <= 1):
            raise InputError(
                f"Layers cannot keep shares of {self.target} plus or minus {self.spread}: the "
                "spread must be at least 0, below the target and at most 1 - target. Take another "
                "target, or the uniform allocation."
            )
        if self.menu != "unstructured":
            self._choices()

    def _choices(self) -> list[Pattern | None]:
        """The menu's entries; None is dense."""
        entries = [entry.strip() for entry in self.menu.split(",")]
        if entries == [""] or len(set(entries)) < len(entries):
            raise InputError(
                f'Expected a menu of different entries, such as "3:8, 4:8, 5:8", "dense, 2:4" or '
                f'"unstructured", got {self.menu!r}.'
            )
        try:
            return [None if entry == "dense" else Pattern.parse(entry) for entry in entries]
        except InputError as error:
            raise InputError(
                f"In the menu {self.menu!r}: {error} A menu is 'unstructured', or N:M patterns and "
                "'dense' with commas between."
            ) from error

    @property
    def patterns(self) -> list[Pattern]:
        """The N:M patterns on the menu."""
        return [] if self.menu == "unstructured" else [c for c in self._choices() if c is not None]

    @abstractmethod
    def scores(self, model: PreTrainedModel, tokens: Tensor | None) -> dict[str, float]:
        """Each layer's wanted density, but for a number that is added to all of them."""

    def wanted(self, model: PreTrainedModel, tokens: Tensor | None) -> dict[str, float]:
        """Each layer's density before rounding: `target` on average over all weights.

        Raises:
            InputError: if the allocation needs more calibration tokens than it got.
        """
        scores = self.scores(model, tokens)
        sizes = np.array([layer.weight.numel() for layer in prunable_layers(model).values()])
        densities = levelled(np.array(list(scores.values())), sizes, self.target, self.spread)
        return dict(zip(scores, densities.tolist(), strict=True))

    def assign(self, model: PreTrainedModel, tokens: Tensor | None) -> dict[str, Sparsity | None]:
        """What each layer is to be pruned to; None leaves it dense.

        Raises:
            InputError: if the menu cannot reach the target, or for want of tokens.
        """
        layers = prunable_layers(model)
        rows, columns = np.array([layer.weight.shape for layer in layers.values()]).T
        sizes = rows * columns
        total = round(self.target * int(sizes.sum()))
        wanted = np.array(list(self.wanted(model, tokens).values()))
        if self.menu == "unstructured":
            kept = kept_per_row(wanted, rows, columns, total)
            sparsities = [
                Unstructured(k / c) if k < c else None
                for k, c in zip(kept.tolist(), columns.tolist(), strict=True)
            ]
        else:
            choices = self._choices()
            kept = rows[:, None] * np.stack([_kept_of(columns, c) for c in choices], axis=1)
            sparsities = [choices[i] for i in nearest_choices(wanted, sizes, kept, total)]
        return dict(zip(layers, sparsities, strict=True))


def _kept_of(columns: np.ndarray, choice: Pattern | None) -> np.ndarray:
    """How many of a row's weights stay, [layer]; a last group that is shorter keeps min(n, it)."""
    if choice is None:
        return columns
    return columns // choice.m * choice.n + np.minimum(choice.n, columns % choice.m)


@dataclass(frozen=True)
class Uniform(Allocation):
    """The same for every layer, as far as the menu goes.

    Where it does not, what is kept beyond is strewn evenly over the depth of the model.
    """

    spread: ClassVar[float] = 1e-6
    measures: ClassVar[bool] = False

    def scores(self, model: PreTrainedModel, tokens: Tensor | None) -> dict[str, float]:
        """Almost nothing: multiples of the golden ratio, which break ties between layers."""
        golden = (5**0.5 - 1) / 2
        return {n: self.spread * (i * golden % 1) for i, n in enumerate(prunable_layers(model))}


@dataclass(frozen=True)
class HessianSensitivity(Allocation):
    """Layers to which the loss is more sensitive keep more: shares in equal steps, by rank.

    Shao et al. 2023, arXiv 2310.09499, Alg. 1: the layer of rank i of n gets target - spread +
    2 * spread * i / (n - 1). Other than there, the ranking holds prunable layers alone and the
    target is met over weights, not layers.

    Attributes:
        spread: the paper's alpha.
        probes: sign vectors a sequence; see `hessian_traces`. The paper's code takes one, by which
            two draws rank the embedded model's layers with a correlation of 0.2; by 8, 0.5.
        sequences: calibration sequences that the loss is taken on, the first ones; the paper's
            code takes one.
        seed: of the signs.
        per_weight: the sensitivity is the trace over the number of weights, as the paper has it;
            its code takes the trace.
    """

    spread: float = 0.1
    probes: int = 8
    sequences: int = 1
    seed: int = 0
    per_weight: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.probes < 1 or self.sequences < 1:
            raise InputError(f"Probes and sequences must be at least 1, got {self}.")

    def scores(self, model: PreTrainedModel, tokens: Tensor | None) -> dict[str, float]:
        """Twice the spread times each layer's rank, 0 for the least sensitive to 1."""
        _check_count(self, tokens, self.sequences)
        some = tokens[: self.sequences]
        traces = hessian_traces(model, some, probes=self.probes, seed=self.seed)
        sizes = {n: layer.weight.numel() for n, layer in prunable_layers(model).items()}
        sensitivity = {
            n: float(trace.mean()) / (sizes[n] if self.per_weight else 1)
            for n, trace in traces.items()
        }
        ranks = {n: i for i, n in enumerate(sorted(sensitivity, key=sensitivity.get))}
        last = max(1, len(ranks) - 1)
        return {n: 2 * self.spread * ranks[n] / last for n in sensitivity}


@dataclass(frozen=True)
class OutlierShare(Allocation):
    """Blocks with more outlying Wanda scores keep more; all layers of a block keep the same.

    Yin et al. 2023, arXiv 2310.05175 (OWL). Their code moves the shares until their mean over
    blocks is the target, which can leave the range that their text states; here the range holds.

    Attributes:
        spread: the paper's lambda.
        factor: times the block's mean score makes an outlier; the paper's M.
    """

    spread: float = 0.08
    factor: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.factor > 0:
            raise InputError(f"The factor of an outlier must be above 0, got {self.factor}.")

    def scores(self, model: PreTrainedModel, tokens: Tensor | None) -> dict[str, float]:
        """The outliers' share, stretched to run from 0 to twice the spread."""
        _check_count(self, tokens, 1)
        shares = outlier_shares(model, tokens, factor=self.factor)
        low, width = min(shares.values()), max(shares.values()) - min(shares.values())
        return {
            name: 2 * self.spread * (shares[block.name] - low) / (width or 1)
            for block in transformer_blocks(model)
            for name in block.layers
        }


def _check_count(allocation: Allocation, tokens: Tensor | None, needed: int) -> None:
    found = 0 if tokens is None else len(tokens)
    if found < needed:
        raise InputError(f"{allocation} needs {needed} calibration sequences, got {found}.")


ALLOCATIONS: dict[str, type[Allocation]] = {
    "uniform": Uniform,
    "hessian": HessianSensitivity,
    "outliers": OutlierShare,
}
