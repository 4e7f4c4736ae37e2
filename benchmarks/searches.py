"""Searches for channel orders on the same matrices: retained score and time, ours, RIA's, apex's.

    python benchmarks/searches.py --out DIR [--device cuda] [--cases random1024 real4096 ...]
        [--searches gns+lbs assignment ...] [--pattern 2:4] [--seconds 900] [--apex CHECKOUT]

Cases (each with how many matrices are searched):
    random1024, random4096   uniform random scores
    real1024, real4096       scores of gate and up projections of the embedded model, of as many
                             blocks side by side as it takes (3072 rows for 4096 channels)
    embedded                 E-Sparse's scores of the embedded model, 210 layers in 120 groups
    llama7b                  224 matrices of a LLaMA-7B in 128 groups, random scores whose channels
                             differ in scale; one block is searched and counted 32 times (--all
                             searches every one)

The first call of every search is for warming up. A search that is not done after --limit seconds
is stopped with the best so far, and the table says so. --apex runs the channel swap and stripe
groups of a checkout of NVIDIA/apex beside, on 2:4 and single matrices; its CUDA kernels are built
where there is CUDA (without them it takes minutes even for 64 x 64: try --cases tiny).
"""

import argparse
import contextlib
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from esparse_lab import (
    RIVALS,
    SEARCHES,
    BlockShuffle,
    ESparse,
    GlobalShuffle,
    Pattern,
    Run,
    collect_layer_stats,
    recoverable,
    retained_share,
    search_orders,
    search_steps,
    token_windows,
)
from esparse_lab.architectures import transformer_blocks
from esparse_lab.models import load_model
from esparse_lab.permutation import ChannelOrder

IN_STEPS = "gns+lbs in steps"
OURS = (
    SEARCHES
    | {IN_STEPS: BlockShuffle()}
    | {"whole-matrix swaps": BlockShuffle(block=1 << 20)}
    | RIVALS
    | {"gns+lbs, one swap at once": BlockShuffle(at_once=1)}
    | {"lbs after serpentine": BlockShuffle(start=GlobalShuffle(serpentine=True))}
)
CASES = ("tiny", "random1024", "random4096", "real1024", "real4096", "embedded", "llama7b")
LLAMA_7B = {
    "q, k, v": (12288, 4096),
    "o": (4096, 4096),
    "gate, up": (22016, 4096),
    "down": (4096, 11008),
}
LLAMA_BLOCKS = 32


def random_scores(rows: int, channels: int, device: str, *, scaled: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(rows, channels, generator=generator)
    if scaled:
        scores *= torch.randn(channels, generator=generator).exp()
    return scores.to(device)


def embedded_scores(device: str) -> list[Tensor]:
    """E-Sparse's scores of every group of layers that read one activation."""
    loaded = load_model("smollm2-135m", device=device)
    tokens = token_windows(
        loaded.tokenizer, "wikipedia", split="train", length=512, count=8, seed=0
    )
    stats = collect_layer_stats(loaded.model, tokens, progress=False)
    return [
        torch.cat(
            [ESparse().score(layer.weight, stats[name]) for name, layer in group.layers.items()]
        )
        for block in transformer_blocks(loaded.model)
        for group in block.groups
    ]


def real_scores(of_model: list[Tensor], size: int) -> Tensor:
    """Up to `size` rows and channels of the tallest groups' scores, side by side."""
    most = max(len(scores) for scores in of_model)
    tallest = [scores for scores in of_model if len(scores) == most]
    return torch.cat(tallest, dim=1)[:size, :size].contiguous()


def matrices(case: str, device: str, every: bool, kept: dict) -> tuple[list[Tensor], int]:
    """The matrices of a case and how often each counts."""
    if case == "tiny":
        return [random_scores(16, 32, device)], 1
    if case.startswith("random"):
        size = int(case.removeprefix("random"))
        return [random_scores(size, size, device)], 1
    if case == "llama7b":
        block = [random_scores(*shape, device, scaled=True) for shape in LLAMA_7B.values()]
        return (block * LLAMA_BLOCKS, 1) if every else (block, LLAMA_BLOCKS)
    if not kept:
        kept["scores"] = embedded_scores(device)
    if case == "embedded":
        return kept["scores"], 1
    return [real_scores(kept["scores"], int(case.removeprefix("real")))], 1


def searched(
    scores: list[Tensor], pattern: Pattern, label: str, limit: float
) -> tuple[list[ChannelOrder], bool]:
    """The orders that a search finds, and whether it was done in time with all of them.

    Block shuffles on a GPU go through their kernel, all matrices at once, and are never stopped.
    """
    search = OURS[label]
    if scores[0].is_cuda and isinstance(search, BlockShuffle) and label != IN_STEPS:
        return search_orders(scores, pattern, search), True
    end, orders, done = time.perf_counter() + limit, [], True
    for one in scores:
        left = end - time.perf_counter()
        for step in search_steps(one, pattern, search, seconds=max(left, 0)):  # noqa: B007
            pass
        orders.append(step.order)
        done &= time.perf_counter() < end
    return orders, done


def launches(call: Callable[[], object]) -> int | None:
    """CUDA kernels that a call starts; None without CUDA."""
    if not torch.cuda.is_available():
        return None
    activity = torch.profiler.ProfilerActivity.CUDA
    with torch.profiler.profile(activities=[activity]) as profile:
        call()
        torch.cuda.synchronize()
    on_device = torch.autograd.DeviceType.CUDA
    return sum(
        event.device_type == on_device and not event.name.startswith("Mem")
        for event in profile.events()
    )


class Apex:
    """apex's own searches, run as they are from a checkout."""

    def __init__(self, checkout: Path):
        folder = checkout / "apex" / "contrib" / "sparsity" / "permutation_search_kernels"
        if torch.cuda.is_available():
            from torch.utils import cpp_extension

            sys.modules["permutation_search_cuda"] = cpp_extension.load(
                "permutation_search_cuda",
                [str(folder / "CUDA_kernels" / "permutation_search_kernels.cu")],
            )
        sys.path.insert(0, str(folder.parent))
        with contextlib.redirect_stdout(io.StringIO()):
            from permutation_search_kernels import channel_swap, exhaustive_search
        channel_swap.time = exhaustive_search.time = time  # both use it without an import
        self.searches = {
            "apex channel_swap": lambda matrix: channel_swap.Channel_Swap(matrix)[2],
            "apex stripe groups of two": lambda matrix: exhaustive_search.Exhaustive_Search(
                matrix, stripe_group_size=8
            )[2],
        }
        command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
        self.commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()

    def rows(self, scores: Tensor) -> Iterator[tuple[str, list[ChannelOrder], float]]:
        """Label, order and seconds of each; the matrix is copied to NumPy off the clock."""
        for label, search in self.searches.items():
            # It keeps its lists of permutations in the folder where it is called.
            elsewhere = tempfile.TemporaryDirectory()
            quiet = contextlib.redirect_stdout(io.StringIO())
            with elsewhere as folder, contextlib.chdir(folder), quiet:
                search(random_scores(32, 32, "cpu").numpy())
                matrix = scores.cpu().numpy().copy()
                begun = time.perf_counter()
                found = search(matrix)
            seconds = time.perf_counter() - begun
            yield label, [ChannelOrder(torch.tensor(found, device=scores.device))], seconds


def clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", default="searches", help="of the table and its record")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--cases", nargs="+", default=CASES[1:], choices=CASES)
    parser.add_argument("--searches", nargs="+", default=list(OURS), choices=OURS)
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--limit", type=float, default=120, help="seconds of one search of a case")
    parser.add_argument("--seconds", type=float, default=1800, help="begin nothing after these")
    parser.add_argument("--all", action="store_true", help="search all blocks of the LLaMA-7B")
    parser.add_argument("--launches", action="store_true", help="run again and count CUDA kernels")
    parser.add_argument("--apex", type=Path, help="checkout of NVIDIA/apex")
    parser.add_argument("--apex-widest", type=int, default=1024, help="channels; it has no limit")
    args = parser.parse_args()
    run, started = Run(args.name, args.out), time.perf_counter()
    pattern, kept, rows = Pattern.parse(args.pattern), {}, []
    apex = None if args.apex is None else Apex(args.apex)

    def add(label: str, orders: list[ChannelOrder], seconds: float, done: bool, n_launches) -> None:
        shares = [retained_share(s, pattern, o) for s, o in zip(scores, orders, strict=True)]
        share = sum(w * s for w, s in zip(weights, shares, strict=True))
        stored, bound = (
            sum(w * getattr(limit, name) for w, limit in zip(weights, limits, strict=True))
            for name in ("stored", "bound")
        )
        rows.append(
            {
                "case": case,
                "matrices": len(scores) * times,
                "pattern": str(pattern),
                "search": label,
                "seconds": seconds * times,
                "done": done,
                "retained_share": share,
                "recovered_share": (share - stored) / (bound - stored),
                "launches": None if n_launches is None else n_launches * times,
            }
        )
        run.save_table("race", pd.DataFrame(rows).astype({"launches": float}))
        print(
            f"{case}, {label}: {seconds * times:.3f} s, retained {share:.5f}"
            f" ({rows[-1]['recovered_share']:.1%} recovered){'' if done else ', stopped'}",
            flush=True,
        )

    for case in args.cases:
        scores, times = matrices(case, args.device, args.all, kept)
        limits = [recoverable(one, pattern) for one in scores]
        total = sum(float(one.sum(dtype=torch.float64)) for one in scores)
        weights = [float(one.sum(dtype=torch.float64)) / total for one in scores]
        for label in args.searches:
            if time.perf_counter() - started > args.seconds:
                break
            # Every shape once: kernels are compiled and loaded off the clock.
            searched([one[:, : 8 * pattern.m] for one in scores[:4]], pattern, label, args.limit)
            begun = clock(args.device)
            orders, done = searched(scores, pattern, label, args.limit)
            seconds = clock(args.device) - begun
            n_launches = None
            if args.launches and done:
                n_launches = launches(lambda: searched(scores, pattern, label, args.limit))  # noqa: B023
            add(label, orders, seconds, done, n_launches)
        widest = max(one.shape[1] for one in scores)
        if apex and len(scores) == 1 and widest <= args.apex_widest and str(pattern) == "2:4":
            for label, orders, seconds in apex.rows(scores[0]):
                add(label, orders, seconds, True, None)
    run.finish(
        device=torch.cuda.get_device_name() if args.device == "cuda" else None,
        apex=apex.commit if apex else None,
    )


if __name__ == "__main__":
    main()
