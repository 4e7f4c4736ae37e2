"""Our Wanda and SparseGPT beside the authors' code: one model, the same tokens, one run.

    python benchmarks/against_peers.py [--wanda PATH] [--sparsegpt PATH] [--device cuda]
        [--dtype float16] [--sequences 128] [--length 2048] [--corpus NAME_OR_PATH]
        [--test NAME_OR_PATH] [--test-windows N] [--repeats 1] [--pattern 2:4] [--csv OUT]

Each PATH is a checkout of the authors' repository; `peer_code.py` says which commits and how their
functions are run without changing a file of theirs. On the clock is all of pruning: the embedding
of the tokens, every forward, statistics, masks and weights. Off it: loading, tokenizing, copying
the dense weights, perplexity, and a warm-up of each side on the first block, which compiles
Triton's kernels and starts CUDA and cuBLAS. Sides take turns, each on a fresh copy of the dense
model, which lies where the authors' own main() puts it: on the device, but for SparseGPT's code,
which takes block by block from CPU memory and returns it there (so its peak holds one block).

Memory is the peak of what is allocated on a GPU, weights included, or the growth of the process on
a CPU (Linux alone). TF32 is torch's default for both, off for matrix products, as SparseGPT's code
sets it too. Masks are compared by the weights that are not zero; rounding that tips one near tie
changes every later block a little, so the first block is counted by itself too.
"""

import argparse
import copy
import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import transformers
from peer_code import commit_of, load, prune_as_theirs
from torch import Tensor
from transformers import LlamaForCausalLM

from esparse_lab import Pattern, Recipe, perplexity, prunable_layers, prune_model
from esparse_lab.corpora import token_windows
from esparse_lab.methods import SparseGPT, Wanda
from esparse_lab.models import load_model
from esparse_lab.run_record import git_state

METHODS = {"wanda": Wanda(), "sparsegpt": SparseGPT()}
# As many as one batch of ours holds on a GPU, so that the warm-up meets every shape.
WARM_UP_SEQUENCES = 8
MOST_SEQUENCES = 128  # Wanda's code holds that many inputs, whatever it is asked for


@dataclass(frozen=True)
class Result:
    """What one run of one side gave.

    Attributes:
        seconds: of pruning.
        peak_mib: see the top of this file.
        masks: of every layer, in CPU memory.
        perplexity: of the pruned model on the test tokens.
    """

    seconds: float
    peak_mib: float
    masks: dict[str, Tensor]
    perplexity: float

    @property
    def zeros(self) -> float:
        """Share of the weights in pruned layers that is zero."""
        kept = sum(int(mask.sum()) for mask in self.masks.values())
        return 1 - kept / sum(mask.numel() for mask in self.masks.values())

    def same_as(self, other: "Result", within: str = "") -> float:
        """Share of mask entries that are equal, in layers whose name contains `within`."""
        masks = {name: mask for name, mask in self.masks.items() if within in name}
        equal = sum(int((mask == other.masks[name]).sum()) for name, mask in masks.items())
        return equal / sum(mask.numel() for mask in masks.values())


def resident_mib(which: str) -> float:
    """The process's memory now ("VmRSS") or its peak ("VmHWM"); NaN where /proc does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(x.split()[1]) / 1024 for x in lines if x.startswith(which)), float("nan"))


def measured(prune: Callable[[], None], device: str) -> tuple[float, float]:
    """Seconds of one call and its peak memory in MiB."""
    gc.collect()
    if device == "cpu":
        if Path("/proc/self/clear_refs").exists():
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier runs freed would be no growth
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew; see proc(5)
        before = resident_mib("VmRSS")
    else:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    started = time.perf_counter()
    prune()
    if device == "cpu":
        return time.perf_counter() - started, resident_mib("VmHWM") - before
    torch.cuda.synchronize()
    return time.perf_counter() - started, torch.cuda.max_memory_allocated() / 2**20


def first_block_of(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """A copy without the other blocks."""
    model = copy.deepcopy(model)
    model.model.layers = model.model.layers[:1]
    return model


def one_row(results: dict[str, list[Result]]) -> dict[str, object]:
    """The table's row about one method."""
    row: dict[str, object] = {}
    ours, theirs = results["ours"][-1], results["theirs"][-1]
    for side, runs in results.items():
        row |= {
            f"seconds_{side}": statistics.median(run.seconds for run in runs),
            f"all_seconds_{side}": " ".join(f"{run.seconds:.3f}" for run in runs),
            f"peak_mib_{side}": max(run.peak_mib for run in runs),
            f"perplexity_{side}": runs[-1].perplexity,
            f"zeros_{side}": runs[-1].zeros,
        }
    return row | {
        "times_as_fast": row["seconds_theirs"] / row["seconds_ours"],
        "their_peak_over_ours": row["peak_mib_theirs"] / row["peak_mib_ours"],
        "equal_mask_entries": ours.same_as(theirs),
        "equal_in_first_block": ours.same_as(theirs, ".layers.0."),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wanda", type=Path, help="checkout of locuslab/wanda")
    parser.add_argument("--sparsegpt", type=Path, help="checkout of IST-DASLab/sparsegpt")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16"])
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--corpus", default="wikipedia", help="calibration text: a name or a path")
    parser.add_argument("--test", default="wikipedia", help="test text: a name or a path")
    parser.add_argument("--test-windows", type=int, help="default: all")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--pattern", type=Pattern.parse, default="2:4")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    if args.sequences > MOST_SEQUENCES:
        parser.error(f"Wanda's code takes at most {MOST_SEQUENCES} sequences")
    checkouts = {n: getattr(args, n) for n in METHODS if getattr(args, n) is not None}
    if not checkouts:
        parser.error("give at least one checkout")
    ours = git_state()
    commits = {
        "esparse_lab": f"{ours['commit']}{' + local changes' * ours['dirty']}"
        if ours
        else "unknown"
    }
    commits |= {name: commit_of(name, checkout) for name, checkout in checkouts.items()}
    codes = {name: load(name, checkout) for name, checkout in checkouts.items()}

    loaded = load_model("smollm2-135m", dtype=args.dtype, device="cpu")
    dense = loaded.model
    calibration = token_windows(
        loaded.tokenizer,
        args.corpus,
        split="train",
        length=args.length,
        count=args.sequences,
        seed=0,
    )
    test = token_windows(
        loaded.tokenizer, args.test, split="test", length=args.length, count=args.test_windows
    )

    def prune(side: str, name: str, model: LlamaForCausalLM, tokens: Tensor) -> None:
        if side == "ours":
            prune_model(model, tokens, Recipe(METHODS[name], args.pattern), progress=False)
        else:
            prune_as_theirs(name, codes[name], model, tokens, args.pattern, device=args.device)

    def placed(side: str, name: str, model: LlamaForCausalLM) -> LlamaForCausalLM:
        from_cpu = side == "theirs" and name == "sparsegpt"
        return model if from_cpu else model.to(args.device)

    def run(side: str, name: str) -> Result:
        model = placed(side, name, copy.deepcopy(dense))
        seconds, peak = measured(lambda: prune(side, name, model, calibration), args.device)
        masks = {n: (layer.weight != 0).cpu() for n, layer in prunable_layers(model).items()}
        found = perplexity(model.to(args.device), test, progress=False).value
        print(f"{name}, {side}: {seconds:.2f} s, perplexity {found:.3f}", flush=True)
        return Result(seconds, peak, masks, found)

    settings = {
        "pattern": str(args.pattern),
        "device": torch.cuda.get_device_name()
        if args.device == "cuda"
        else f"CPU, {torch.get_num_threads()} threads",
        "dtype": args.dtype,
        "sequences": args.sequences,
        "length": args.length,
        "corpus": Path(args.corpus).name,
        "test": Path(args.test).name,
        "test_windows": len(test),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "esparse_lab": commits.pop("esparse_lab"),
        "perplexity_dense": perplexity(
            copy.deepcopy(dense).to(args.device), test, progress=False
        ).value,
    }
    rows = []
    for name in codes:
        for side in ("theirs", "ours"):
            prune(
                side,
                name,
                placed(side, name, first_block_of(dense)),
                calibration[:WARM_UP_SEQUENCES],
            )
        results: dict[str, list[Result]] = {"theirs": [], "ours": []}
        for _ in range(args.repeats):
            for side, runs in results.items():
                runs.append(run(side, name))
        rows.append(
            {"method": name} | one_row(results) | {"their_commit": commits[name]} | settings
        )
    table = pd.DataFrame(rows)
    print(table.set_index("method").T.to_string())
    if args.csv:
        table.to_csv(args.csv, index=False)


if __name__ == "__main__":
    main()
