"""Device memory of a model's weights, dense and compressed, measured on the card (Table 6).

    python benchmarks/memory.py --out reports/reference [--shapes LLaMA-7B LLaMA-13B]

Weights are random at true shape, pruned 2:4 by magnitude and compressed one layer at a time by
cuSPARSELt. `allocated_gib` is what the allocator holds for tensors, `expected_gib` the accounting
of `footprint.tensor_table`; `weights_gib` sums the tensors of the model.
"""

import argparse
import gc
import time
from pathlib import Path

import pandas as pd
import torch
from end_to_end import pruned_random_model

from esparse_lab.architectures import prunable_layers
from esparse_lab.footprint import LLAMA, meta_model, tensor_table
from esparse_lab.gemm.cusparselt import Algorithm
from esparse_lab.gemm.linear import Choice, SparseLinear
from esparse_lab.run_record import Run


def held_gib(model: torch.nn.Module) -> float:
    """Of the model's parameters and buffers, tied ones once."""
    tensors = {t.data_ptr(): t for t in [*model.parameters(), *model.buffers()]}
    return sum(t.nbytes for t in tensors.values()) / 2**30


def make_sparse(model: torch.nn.Module) -> None:
    """As `sparsify` leaves it, without its search: no algorithm holds memory of its own."""
    layers = prunable_layers(model)
    for name in list(layers):
        weight = layers.pop(name).weight  # so that it goes when its layer is replaced
        model.set_submodule(name, SparseLinear(weight, choices=[Choice(16, Algorithm())]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shapes", nargs="+", default=["LLaMA-7B", "LLaMA-13B"], choices=LLAMA)
    args = parser.parse_args()
    run, rows = Run("memory_h100", args.out), []
    for shape in args.shapes:
        before = torch.cuda.memory_allocated()
        expected = tensor_table(meta_model(shape), index="hardware")
        started = time.perf_counter()
        model = pruned_random_model(shape, torch.float16)
        for form in ("dense", "sparse"):
            if form == "sparse":
                started = time.perf_counter()
                make_sparse(model)
            gc.collect()
            torch.cuda.synchronize()
            column = "dense_bytes" if form == "dense" else "compressed_bytes"
            rows.append(
                {
                    "model": shape,
                    "form": form,
                    "allocated_gib": (torch.cuda.memory_allocated() - before) / 2**30,
                    "weights_gib": held_gib(model),
                    "expected_gib": expected[column].sum() / 2**30,
                    "seconds": time.perf_counter() - started,
                }
            )
            print(rows[-1], flush=True)
            run.save_table("weights", pd.DataFrame(rows))
        del model
        gc.collect()
        torch.cuda.empty_cache()
    run.finish(device=torch.cuda.get_device_name())


if __name__ == "__main__":
    main()
