"""Our masks, weights and scores beside the authors' own code, on small random models.

    python benchmarks/exactness.py [--wanda PATH] [--sparsegpt PATH] [--ria PATH] [--dass PATH]
        [--seeds 3] [--csv OUT]

Each PATH is a checkout of the authors' repository (`peer_code.PINNED` names them and the commits
compared with). Their functions that prune a whole Llama are imported from there and run as they are
(`peer_code.py`), on the CPU, with the same float32 model and tokens as ours. Their scores are what
they hand to `torch.topk`.

SparseGPT is compared twice. In float32, where they factorise in float32 and we in float64, two
weights of a group may be nearer to each other than rounding is large; which of them goes changes
what comes after it in that row, and then every later block. In float64 (`Tensor.float` leaves both
sides' numbers as they are) such ties are gone, and nothing at all may differ.

DaSS's code leaves attention dense, so ours does too here. SparseGPT's and RIA's code prunes without
groups whatever is `<=` the value at place int(share * weights), one weight more than that share (in
every block of 128 columns; in every layer). Asked for one weight less, it must do as ours; asked
for the share itself, it must prune exactly those weights more, and "different" counts what follows
from them.
"""

import argparse
import contextlib
import math
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import torch
import transformers
from peer_code import PINNED, commit_of, load, prune_as_theirs
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from esparse_lab import Recipe, prunable_layers, prune_model
from esparse_lab.masks import Sparsity, parse_sparsity
from esparse_lab.methods import METHODS

SIZES = ((64, 160, 2), (96, 264, 3))  # hidden, intermediate, blocks
SEQUENCES, LENGTH = 12, 48
# Rounding: they and we sum in another order. Weights are counted in the root mean square of the
# dense layer's, scores in theirs.
WEIGHT_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
SCORE_TOLERANCE = 1e-5
# Share of the masks that SparseGPT's ties in float32 may change.
TIES = 0.01


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        method: in `METHODS`, and whose code to run.
        sparsity: as ours is told.
        dead: silence some input channels of every block.
        one_less: ask their code for one weight less per comparison (see the top of this file).
        dtype: of the models and of every sum.
    """

    method: str
    sparsity: str
    dead: bool = False
    one_less: bool | None = None
    dtype: torch.dtype = torch.float32

    @property
    def setting(self) -> str:
        """What the table calls it."""
        asked = {None: "", True: ", one less asked of theirs", False: ", as they round"}
        return self.sparsity + (", dead channels" if self.dead else "") + asked[self.one_less]


CHECKS = (
    *(Check("wanda", s) for s in ("2:4", "4:8", "3:4", "50%", "40%")),
    *(
        replace(check, dtype=dtype)
        for dtype in (torch.float64, torch.float32)
        for check in (
            *(Check("sparsegpt", s) for s in ("2:4", "4:8", "3:4")),
            *(Check("sparsegpt", s, dead=True) for s in ("2:4", "4:8")),
            *(Check("sparsegpt", "50% per layer", one_less=less) for less in (True, False)),
        )
    ),
    *(Check("ria", s) for s in ("2:4", "4:8", "3:4", "50%", "40%")),
    *(Check("ria", "50% per layer", one_less=less) for less in (True, False)),
    *(Check("dass", s) for s in ("2:4", "4:8", "3:4", "50%", "40%")),
)


@contextlib.contextmanager
def summed_in(dtype: torch.dtype) -> Iterator[None]:
    """While open, what would be widened or narrowed to float32 stays `dtype`."""
    torch.set_default_dtype(dtype)
    with contextlib.ExitStack() as stack:
        if dtype != torch.float32:
            stack.enter_context(patch.object(torch.Tensor, "float", lambda t: t.to(dtype)))
        yield
    torch.set_default_dtype(torch.float32)


def random_llama(seed: int, hidden: int, intermediate: int, blocks: int) -> LlamaForCausalLM:
    """A Llama whose channels differ in loudness, as trained ones do."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("layernorm.weight"):
            parameter.data.normal_().exp_()
    return model


def silence(model: LlamaForCausalLM) -> None:
    for block in model.model.layers:
        block.input_layernorm.weight.data[[1, 2, 3, 17]] = 0
        block.post_attention_layernorm.weight.data[[0, 5]] = 0


@dataclass(frozen=True)
class MlpAlone:
    """An allocation that leaves attention dense, as DaSS's code does."""

    sparsity: Sparsity

    def assign(self, model: LlamaForCausalLM, tokens: Tensor) -> dict[str, Sparsity | None]:
        """The sparsity for MLPs, None for the rest."""
        return {n: self.sparsity if ".mlp." in n else None for n in prunable_layers(model)}


def run_ours(model: LlamaForCausalLM, tokens: Tensor, check: Check) -> dict[str, Tensor]:
    """Prune `model` in place; returns the scores of the layers pruned, if any were asked for."""
    sparsity = parse_sparsity(check.sparsity)
    recipe = Recipe(METHODS[check.method](), sparsity)
    if check.method == "dass":
        recipe = replace(recipe, allocation=MlpAlone(sparsity))
    tape, score = [], METHODS[check.method].score

    def record(method, weight: Tensor, stats) -> Tensor:
        tape.append(score(method, weight, stats))
        return tape[-1]

    with patch.object(METHODS[check.method], "score", record):
        pruned = prune_model(model, tokens, recipe, progress=False)
    # In layer order; layers that read one activation may have been scored as one matrix.
    rows = (row for scores in tape for row in scores)
    return {
        layer.name: torch.stack([next(rows) for _ in layer.mask])
        for layer in pruned
        if tape and layer.sparsity is not None
    }


@contextlib.contextmanager
def groups_ranked(tape: list[Tensor]) -> Iterator[None]:
    """While open, note what is handed to `torch.topk`: their scores, M columns (or rows) a time."""
    topk = torch.topk

    def note(values: Tensor, *args, **keywords):
        tape.append(values.clone())
        return topk(values, *args, **keywords)

    with patch.object(torch, "topk", note):
        yield


def largest_score_difference(tape: list[Tensor], ours: dict[str, Tensor]) -> float:
    """The largest difference over their score, for what `tape` took in, in layer order."""
    largest, place = 0.0, 0
    for scores in ours.values():
        along = 0 if tape[place].shape[0] < scores.shape[0] else 1
        size = tape[place].shape[along]
        n_groups = scores.shape[along] // size
        theirs = torch.cat(tape[place : place + n_groups], dim=along)
        place += n_groups
        largest = max(largest, float(((theirs - scores).abs() / theirs).max()))
    assert place == len(tape), "their code ranked groups that ours did not"
    return largest


def compare(check: Check, code: types.ModuleType, seeds: int) -> dict[str, object]:
    """One row of the table; weights are compared in the layers whose masks are the same."""
    compared = different = more = expected_more = 0
    weight_differences, score_differences = [], []
    for size in SIZES:
        for seed in range(seeds):
            tape: list[Tensor] = []
            with summed_in(check.dtype):
                models = [random_llama(seed, *size) for _ in range(2)]
                dense = {n: w.weight.clone() for n, w in prunable_layers(models[0]).items()}
                if check.dead:
                    for model in models:
                        silence(model)
                generator = torch.Generator().manual_seed(seed + 100)
                tokens = torch.randint(256, (SEQUENCES, LENGTH), generator=generator)
                scores = run_ours(models[0], tokens, check)
                with groups_ranked(tape):
                    sparsity, one_less = parse_sparsity(check.sparsity), check.one_less
                    prune_as_theirs(
                        check.method, code, models[1], tokens, sparsity, one_less=one_less
                    )
            ours, theirs = map(prunable_layers, models)
            for name, before in dense.items():
                a, b = ours[name].weight, theirs[name].weight
                compared += a.numel()
                different += int(((a != 0) != (b != 0)).sum())
                more += int((a != 0).sum() - (b != 0).sum())
                if torch.equal(a != 0, b != 0):
                    gap = (a - b).abs().max() / before.square().mean().sqrt()
                    weight_differences.append(float(gap))
                if check.one_less is False:
                    columns = 128 if check.method == "sparsegpt" else a.shape[1]
                    expected_more += math.ceil(a.shape[1] / columns)
            if tape and check.method != "sparsegpt":
                score_differences.append(largest_score_difference(tape, scores))
    weight_difference = max(weight_differences, default=math.nan)
    score_difference = max(score_differences, default=math.nan)
    if check.one_less is False:
        passed = more == expected_more
    else:
        ties = TIES if check.method == "sparsegpt" and check.dtype == torch.float32 else 0
        passed = different <= ties * compared and more == 0
        passed &= ties > 0 or weight_difference <= WEIGHT_TOLERANCE[check.dtype]
        passed &= not score_difference > SCORE_TOLERANCE
    return {
        "method": check.method,
        "setting": check.setting,
        "precision": str(check.dtype).removeprefix("torch."),
        "compared": compared,
        "different": different,
        "pruned_more_by_theirs": more,
        "expected_more": expected_more,
        "largest_weight_difference": weight_difference,
        "largest_score_difference": score_difference,
        "passed": passed,
        "seeds": seeds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, (repository, _) in PINNED.items():
        parser.add_argument(f"--{name}", type=Path, help=f"checkout of {repository}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    rows = []
    for name, (repository, _) in PINNED.items():
        checkout = getattr(args, name)
        if checkout is None:
            continue
        commit = commit_of(name, checkout)
        code = load(name, checkout)
        for check in CHECKS:
            if check.method == name:
                row = compare(check, code, args.seeds)
                rows.append(row | {"repository": repository, "commit": commit})
    if not rows:
        parser.error("give at least one checkout")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    table = pd.DataFrame(rows).assign(**versions)
    print(table.drop(columns=["repository", "commit", *versions]).to_string(index=False))
    if args.csv:
        table.to_csv(args.csv, index=False, float_format="%.2g")
    return 0 if table["passed"].all() else 1


if __name__ == "__main__":
    sys.exit(main())
