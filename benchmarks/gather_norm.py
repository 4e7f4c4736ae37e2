"""What a gather after a norm costs: PyTorch's norm, the norm and index_select, and our kernel.

    python benchmarks/gather_norm.py --out reports/reference [--seconds 45]

Device time in a CUDA graph, float16. Activations are cold where `copies_for_cold` makes them so:
those of a few tokens lie in the L2 cache, as they do in a model, and so do weights and the order.
The floor is one read and one write of the activations at the bandwidth that was measured.
"""

import argparse
import time
from pathlib import Path

import pandas as pd
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from esparse_lab.gathered_norm import GatheredNorm
from esparse_lab.gemm.clock import copies_for_cold, device_ms
from esparse_lab.gemm.roofline import roofline
from esparse_lab.run_record import Run

WIDTHS, TOKENS = (576, 4096, 5120, 8192), (1, 16, 4096)
NORMS = {"rms": LlamaRMSNorm, "layer": torch.nn.LayerNorm}


class Apart(torch.nn.Module):
    """A norm, and its gather as an operation of its own."""

    def __init__(self, fused: GatheredNorm):
        super().__init__()
        self.norm, self.index = fused.norm, fused.index

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What GatheredNorm gives, in two operations."""
        return self.norm(x).index_select(-1, self.index)


@torch.no_grad()
def measured(name: str, width: int, tokens: int, *, compiled: bool) -> list[dict]:
    """A row for each form of one norm; the compiled forms, or those that are not."""
    norm = NORMS[name](width).cuda().half()
    norm.weight.copy_(1 + 0.5 * torch.randn(width))
    ours = GatheredNorm(norm, torch.randperm(width).cuda())
    n_bytes = 2 * 2 * tokens * width
    copies = range(copies_for_cold(n_bytes // 2))
    xs = [torch.randn(tokens, width, device="cuda", dtype=torch.float16) for _ in copies]
    exact = xs[0].double()
    exact -= exact.mean(-1, keepdim=True) if name == "layer" else 0
    exact *= (exact.square().mean(-1, keepdim=True) + ours.eps).rsqrt()
    exact *= norm.weight.double()
    forms = {"norm": norm, "norm + index_select": Apart(ours)}
    if compiled:
        torch._dynamo.reset()  # every shape gets kernels of its own
        forms = {
            f"{form}, compiled": torch.compile(call, fullgraph=True, dynamic=False)
            for form, call in forms.items()
        }
    else:
        forms["ours"] = ours
    rows = []
    for form, call in forms.items():
        ms = device_ms([lambda x=x, call=call: call(x) for x in xs], least_ms=3.0, replays=7)
        right = exact if form.startswith("norm") and "index" not in form else exact[:, ours.index]
        rows.append(
            {
                "norm": name,
                "width": width,
                "tokens": tokens,
                "form": form,
                "microseconds": 1e3 * ms.median,
                "least": 1e3 * ms.least,
                "most": 1e3 * ms.most,
                "floor_microseconds": 1e3 * n_bytes / (roofline(0).gbps * 1e6),
                "relative_error": float((call(xs[0]) - right).norm() / right.norm()),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300, help="no new cell after these")
    args = parser.parse_args()
    run, rows, started = Run("gather_norm_h100", args.out), [], time.perf_counter()
    cells = [  # what PyTorch takes seconds to compile comes last, and LayerNorm's last of that
        (name, width, tokens, compiled)
        for compiled, name in ((0, "rms"), (0, "layer"), (1, "rms"), (1, "layer"))
        for tokens in reversed(TOKENS)
        for width in WIDTHS
    ]
    for name, width, tokens, compiled in cells:
        if time.perf_counter() - started > args.seconds:
            print(f"No time is left for {name}, {width}, {tokens}, compiled: {compiled}")
            continue
        rows += measured(name, width, tokens, compiled=bool(compiled))
        run.save_table("times", pd.DataFrame(rows))
    print(pd.DataFrame(rows).round(6).to_string(index=False))
    run.finish(device=torch.cuda.get_device_name(), bandwidth_gbps=roofline(0).gbps)


if __name__ == "__main__":
    main()
