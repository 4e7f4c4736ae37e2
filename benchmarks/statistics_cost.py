"""What the entropy costs: statistics of every layer with and without it, forwards included.

    python benchmarks/statistics_cost.py [--device cuda] [--sequences 8] [--length 512]

The two variants take turns in one process; medians and their ratio are printed, with the peak
memory of the process. The bar is a ratio of at most 1.5.
"""

import argparse
import resource
import statistics
import time

import torch

from esparse_lab import Histogram, collect_layer_stats
from esparse_lab.corpora import token_windows
from esparse_lab.models import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    loaded = load_model("smollm2-135m", device=args.device)
    tokens = token_windows(
        loaded.tokenizer,
        "wikipedia",
        split="train",
        length=args.length,
        count=args.sequences,
        seed=0,
    )

    def seconds(histogram: Histogram | None) -> float:
        started = time.perf_counter()
        collect_layer_stats(loaded.model, tokens, histogram=histogram, progress=False)
        if args.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    variants = {"norms": None, "norms and entropies": Histogram()}
    times = {label: [] for label in variants}
    seconds(Histogram())  # warm up
    for _ in range(args.repeats):
        for label, histogram in variants.items():
            times[label].append(seconds(histogram))
    medians = {label: statistics.median(t) for label, t in times.items()}
    for label, median in medians.items():
        print(
            f"{label}: {median:.3f} s (median of {args.repeats}, {min(times[label]):.3f} to "
            f"{max(times[label]):.3f})"
        )
    ratio = medians["norms and entropies"] / medians["norms"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"ratio {ratio:.2f}; peak memory {peak} MiB")
    if args.device == "cuda":
        print(f"peak GPU memory {torch.cuda.max_memory_allocated() >> 20} MiB")


if __name__ == "__main__":
    main()
