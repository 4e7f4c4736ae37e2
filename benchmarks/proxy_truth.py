"""Retained score against output error against perplexity, over many channel orders of one model.

    python benchmarks/proxy_truth.py --out DIR [--device cuda] [--method wanda] [--random 20]
        [--error-rounds 0 20] [--seeds 0 1 2] [--seconds 600]

Statistics are those of the dense model, gathered once a seed. Each row is a set of orders, one for
every activation: as stored, random, dealt, and searches cut off after some steps; searches whose
objective is the score (Eq. 5), its square (for Wanda's score the diagonal of the output error) or
its root; and with --error-rounds the exact output error (Eq. 4), by `error_search.py`. The mask is
always that of the method's own scores. Rows are kept as they are measured; --seconds ends the run.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
from error_search import reduce_error
from torch import Tensor

from esparse_lab import Needs, Pattern, Run, collect_layer_stats, make_method, perplexity
from esparse_lab.architectures import transformer_blocks
from esparse_lab.channel_stats import LayerStats
from esparse_lab.corpora import load_corpus, token_windows
from esparse_lab.experiments import weights_restored
from esparse_lab.models import load_model
from esparse_lab.permutation import (
    BlockShuffle,
    ChannelOrder,
    GlobalShuffle,
    OrderSearch,
    ordered_mask,
    search_order,
    search_steps,
)
from esparse_lab.rivals import RandomOrders, SlotAssignment

FindOrder = Callable[[Tensor, Tensor, LayerStats], ChannelOrder]
WHOLE = BlockShuffle(block=1 << 20)


def searched(
    pattern: Pattern, search: OrderSearch | None, *, power: float = 1, steps: int | None = None
) -> FindOrder:
    """Orders by a search of the score to a power, cut off after so many steps."""

    def find(_weight: Tensor, scores: Tensor, _stats: LayerStats) -> ChannelOrder:
        found = search_steps(scores if power == 1 else scores**power, pattern, search)
        for step in itertools.islice(found, steps):  # noqa: B007
            pass
        return step.order

    return find


def by_error(pattern: Pattern, start: OrderSearch | None, rounds: int) -> FindOrder:
    """Orders by a search of the output error that begins where another search ends."""

    def find(weight: Tensor, scores: Tensor, stats: LayerStats) -> ChannelOrder:
        order = search_order(scores, pattern, start)
        return reduce_error(weight, scores, stats.gram, pattern, order, rounds=rounds)

    return find


def order_sets(
    pattern: Pattern, n_random: int, error_rounds: list[int]
) -> Iterator[tuple[str, str, FindOrder]]:
    """Kind, label and finder of each set of orders; what matters most comes first."""
    assigned = SlotAssignment(rounds=10)
    yield "stored", "stored", searched(pattern, None)
    for label, search in {
        "gns+lbs": BlockShuffle(),
        "assignment, repeated": assigned,
        "whole-matrix swaps": WHOLE,
    }.items():
        yield "score", label, searched(pattern, search)
        yield "score squared", f"{label}, squared", searched(pattern, search, power=2)
    for rounds in error_rounds:
        if rounds:
            yield "output error", f"error, {rounds} rounds", by_error(pattern, assigned, rounds)
    yield "score", "gns", searched(pattern, GlobalShuffle())
    yield "score", "assignment", searched(pattern, SlotAssignment())
    yield "root of the score", "gns+lbs, root", searched(pattern, BlockShuffle(), power=0.5)
    yield "root of the score", "assignment, root", searched(pattern, assigned, power=0.5)
    for steps in (2, 4, 6, 9):
        yield "cut off", f"lbs, {steps} steps", searched(pattern, BlockShuffle(), steps=steps)
    for steps in (2, 3, 4):
        alone = BlockShuffle(start=None)
        yield "cut off", f"lbs alone, {steps} steps", searched(pattern, alone, steps=steps)
    for seed in range(n_random):
        yield "random", f"random {seed}", searched(pattern, RandomOrders(1, seed, stored=False))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", default="proxy_truth", help="of the table and its record")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--method", default="wanda")
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--random", type=int, default=3, help="random orders")
    parser.add_argument("--error-rounds", type=int, nargs="*", default=[], help="0: none")
    parser.add_argument("--corpus", default="wikipedia", help="calibration text: a name or a path")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--test", default="wikipedia", help="test text: a name or a path")
    parser.add_argument("--test-windows", type=int, default=8)
    parser.add_argument("--seconds", type=float, help="begin no row after this time")
    args = parser.parse_args()
    run, started = Run(args.name, args.out), time.perf_counter()
    loaded = load_model(args.model, dtype=args.dtype, device=args.device)
    texts = {
        "calibration": load_corpus(args.corpus, "train"),
        "test": load_corpus(args.test, "test"),
    }
    windows = {"length": args.length}
    test = token_windows(
        loaded.tokenizer, texts["test"], split="test", count=args.test_windows, **windows
    )
    method, pattern = make_method(args.method), Pattern.parse(args.pattern)
    needs = Needs(getattr(method.needs, "histogram", None), gram=True)
    groups = [g for block in transformer_blocks(loaded.model) for g in block.groups]
    tokens, rows = {"test": test}, []
    for seed in args.seeds:
        tokens[f"calibration, seed {seed}"] = calibration = token_windows(
            loaded.tokenizer,
            texts["calibration"],
            split="train",
            count=args.sequences,
            seed=seed,
            **windows,
        )
        stats = collect_layer_stats(loaded.model, calibration, needs=needs, progress=False)
        for kind, label, find in order_sets(pattern, args.random, args.error_rounds):
            if args.seconds and time.perf_counter() - started > args.seconds:
                break
            with weights_restored(loaded.model):
                row = {"seed": seed, "kind": kind, "orders": label}
                row |= masked(groups, stats, method, pattern, find)
                row["perplexity"] = perplexity(loaded.model, test, progress=False).value
            rows.append(row)
            run.save_table("orders", pd.DataFrame(rows))
            print(
                " ".join(
                    f"{k}={v:.5g}" if isinstance(v, float) else f"{v}," for k, v in row.items()
                ),
                flush=True,
            )
    run.finish(model=loaded, tokens=tokens, corpora=texts, seed=args.seeds[0], method=repr(method))


def masked(groups, stats: dict, method, pattern: Pattern, find: FindOrder) -> dict[str, float]:
    """Mask every layer under the orders that `find` gives; what that keeps, loses and costs."""
    kept, lost, seconds = [], [], 0.0
    for group in groups:
        seen = stats[group.name]
        weights = [layer.weight for layer in group.layers.values()]
        weight = torch.cat([w.float() for w in weights])
        scores = torch.cat([method.score(w, seen) for w in weights])
        begun = clock(scores)
        order = find(weight, scores, seen)
        seconds += clock(scores) - begun
        mask = ordered_mask(scores, pattern, order)
        lengths = [len(w) for w in weights]
        for w, s, k in zip(weights, scores.split(lengths), mask.split(lengths), strict=True):
            gone = w.float() * ~k
            lost.append(energy(gone, seen.gram) / energy(w.float(), seen.gram))
            kept.append(float((s * k).sum(dtype=torch.float64) / s.sum(dtype=torch.float64)))
            w.mul_(k)
    return {
        "retained_share": sum(kept) / len(kept),
        "output_error": sum(lost) / len(lost),
        "search_seconds": seconds,
    }


def energy(weight: Tensor, gram: Tensor) -> float:
    """|W X|^2 from the Gram matrix of X."""
    return float(((weight @ gram).double() * weight).sum())


def clock(x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
