"""What one call of a layer costs the CPU: ours, PyTorch's dense one and PyTorch's own sparse one.

    python benchmarks/call_overhead.py --out reports/reference

Small layers are called many times without waiting for the device, which ends each before the next
is sent, so the time of a call is the CPU's. Microseconds, the median of several runs.
"""

import argparse
import statistics
import time
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch.sparse import to_sparse_semi_structured

from esparse_lab.gemm.cusparselt import Algorithm
from esparse_lab.gemm.linear import Choice, SparseLinear
from esparse_lab.masks import Pattern, nm_mask
from esparse_lab.run_record import Run

CALLS, RUNS = 1000, 9


def microseconds(call) -> float:
    """CPU time of a call."""
    times = []
    for _ in range(RUNS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(CALLS):
            call()
        times.append((time.perf_counter() - started) / CALLS * 1e6)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    run, rows = Run("call_overhead_h100", args.out), []
    weight = torch.randn(256, 256, device="cuda")
    weight = (weight * nm_mask(weight.abs(), Pattern(2, 4))).half()
    ours = SparseLinear(weight, choices=[Choice(4096, Algorithm())])
    theirs = to_sparse_semi_structured(weight)
    for tokens in (16, 64):
        x = torch.randn(tokens, 256, device="cuda", dtype=torch.float16)
        forms = {
            "dense": lambda x=x: F.linear(x, weight),
            "SparseLinear": lambda x=x: ours(x),
            "torch.sparse": lambda x=x: F.linear(x, theirs),
        }
        for form, call in forms.items():
            with torch.inference_mode():
                exact = F.linear(x.float(), weight.float())
                error = float((call().float() - exact).norm() / exact.norm())
                row = {"tokens": tokens, "form": form, "microseconds": microseconds(call)}
            rows.append(row | {"relative_error": error})
            print(rows[-1], flush=True)
            run.save_table("calls", pd.DataFrame(rows))
    run.finish(device=torch.cuda.get_device_name())


if __name__ == "__main__":
    main()
