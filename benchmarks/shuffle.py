"""How long the channel orders of a whole model take, and how much score each search keeps.

    python benchmarks/shuffle.py [--device cuda] [--pattern 2:4] [--sequences 8] [--length 512]

Scores are E-Sparse's on the embedded model; layers that read one activation are ordered together
(120 searches for 210 layers). Statistics are gathered before the clock starts.
"""

import argparse
import time

import pandas as pd
import torch

from esparse_lab import BlockShuffle, ESparse, GlobalShuffle, Pattern, collect_layer_stats
from esparse_lab.architectures import transformer_blocks
from esparse_lab.corpora import token_windows
from esparse_lab.models import load_model
from esparse_lab.permutation import retained_share, search_orders

SEARCHES = {
    "none": None,
    "gns": GlobalShuffle(),
    "gns+lbs": BlockShuffle(),
    "gns+lbs, one swap at once (Algorithm 1 to the letter)": BlockShuffle(at_once=1),
    "lbs alone": BlockShuffle(start=None),
    "gns + swaps over the whole matrix": BlockShuffle(block=1 << 20),
}


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory_mib(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--searches", nargs="*", default=list(SEARCHES))
    parser.add_argument("--csv")
    args = parser.parse_args()
    loaded = load_model(args.model, device=args.device)
    tokens = token_windows(
        loaded.tokenizer,
        "wikipedia",
        split="train",
        length=args.length,
        count=args.sequences,
        seed=0,
    )
    method, pattern = ESparse(), Pattern.parse(args.pattern)
    stats = collect_layer_stats(loaded.model, tokens)
    groups = [
        {n: method.score(layer.weight, stats[n]) for n, layer in group.layers.items()}
        for block in transformer_blocks(loaded.model)
        for group in block.groups
    ]
    search_orders([torch.cat(list(groups[0].values()))], pattern, BlockShuffle())  # warm up
    rows = []
    for label in args.searches:
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        synchronize(args.device)
        started = time.perf_counter()
        matrices = [torch.cat(list(group.values())) for group in groups]
        orders = search_orders(matrices, pattern, SEARCHES[label])
        synchronize(args.device)
        seconds = time.perf_counter() - started
        shares = [
            retained_share(s, pattern, o)
            for g, o in zip(groups, orders, strict=True)
            for s in g.values()
        ]
        rows.append((label, seconds, sum(shares) / len(shares), peak_memory_mib(args.device)))
        print(f"{label}: {seconds:.2f} s, retained {rows[-1][2]:.5f}", flush=True)
    frame = pd.DataFrame(rows, columns=["search", "seconds", "retained_share", "peak_memory_mib"])
    frame.insert(0, "pattern", args.pattern)
    frame["device"] = (
        torch.cuda.get_device_name()
        if args.device == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    print(frame.to_string(index=False))
    if args.csv:
        frame.to_csv(args.csv, index=False)


if __name__ == "__main__":
    main()
