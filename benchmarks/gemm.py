"""Times of products, dense and sparse, as tables that notebook 06_sparse_gemm shows.

    python benchmarks/gemm.py table5 --out reports/reference    # the paper's eight shapes
    python benchmarks/gemm.py few_tokens --out ...              # 2:4, 4:8, 1:4 and few tokens
    python benchmarks/gemm.py atlas --out ...                   # tokens x shapes
    python benchmarks/gemm.py dtypes --out ...                  # fp16, bf16, int8, fp8

The table is on disk after every product; a product that cannot be measured is named and left out.
"""

import argparse
import time
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from esparse_lab import PAPER_SHAPES, GemmShape, model_shapes
from esparse_lab.errors import EsparseError
from esparse_lab.gemm.algorithms import AlgorithmStore
from esparse_lab.gemm.cusparselt import Product, library_version, padded_tokens
from esparse_lab.gemm.search import found
from esparse_lab.gemm.timing import gemm_table, time_gemm
from esparse_lab.masks import Pattern
from esparse_lab.run_record import Run

NAMES = {
    "table5": "gemm_h100",
    "few_tokens": "gemm_few_tokens_h100",
    "atlas": "gemm_atlas_h100",
    "dtypes": "gemm_dtypes_h100",
}


def cells(what: str) -> list[tuple[GemmShape, dict]]:
    """The products to time and how."""
    two_four = {"pattern": Pattern(2, 4), "kernel": "cusparselt"}
    if what == "table5":
        return [
            (shape, {**two_four, "dtype": dtype})
            for shape in PAPER_SHAPES
            for dtype in ("float16", "bfloat16")
        ]
    if what == "few_tokens":
        return [
            (shape, {"pattern": Pattern.parse(pattern), "kernel": kernel, "dtype": "float16"})
            for shape in model_shapes("LLaMA-7B", [1, 4, 16])
            for pattern, kernel in [
                ("2:4", "cusparselt"),
                ("2:4", "compressed"),
                ("4:8", "compressed"),
                ("1:4", "compressed"),
            ]
        ]
    if what == "atlas":
        tokens = [8, 32, 128, 512, 2048, 8192]
        return [
            (shape, {**two_four, "dtype": "float16"})
            for name in ("LLaMA-7B", "LLaMA-13B")
            for shape in model_shapes(name, tokens)
        ]
    return [
        (shape, {**two_four, "dtype": dtype})
        for shape in model_shapes("LLaMA-7B", [16, 4096])
        for dtype in ("int8", "float8_e4m3fn")
    ]


def search(what: list[tuple[GemmShape, dict]], seconds: float) -> None:
    """Search the algorithms of all products in one process; they are kept for `time_gemm`."""
    end, device = time.perf_counter() + seconds, torch.device("cuda", 0)
    products = (
        Product(shape.n, shape.k, padded_tokens(shape.m, dtype), dtype)
        for shape, settings in what
        for dtype in [getattr(torch, settings["dtype"])]
        if settings["kernel"] == "cusparselt" and time.perf_counter() < end
    )
    found(tqdm(products, "searching", unit="product"), device, AlgorithmStore(device))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=NAMES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=3600, help="start no product after these")
    args = parser.parse_args()
    run, started = Run(NAMES[args.what], args.out), time.perf_counter()
    search(cells(args.what), args.seconds)
    timings, left_out = [], []
    for shape, settings in cells(args.what):
        label = f"{shape.name} {shape.m}x{shape.k}x{shape.n} {settings['dtype']}"
        label += f" {settings['pattern']} {settings['kernel']}"
        if time.perf_counter() - started > args.seconds:
            left_out.append(f"{label}: no time left")
            continue
        before = time.perf_counter()
        try:
            timing = time_gemm(shape.m, shape.k, shape.n, name=shape.name, **settings)
        except (EsparseError, RuntimeError) as error:
            left_out.append(f"{label}: {error}")
            print(left_out[-1], flush=True)
            continue
        timings.append(timing)
        run.save_table("times", gemm_table(timings))
        default = "" if timing.default_ms is None else f", default {timing.default_ms:.4f}"
        print(
            f"{label}: dense {timing.dense_ms:.4f} ms{default}, sparse {timing.sparse_ms:.4f} = "
            f"{timing.speedup:.2f}x, {timing.sparse_ms / timing.floor_ms:.2f} x floor, error "
            f"{timing.relative_error:.1e}, {timing.algorithm}, {timing.kernel_name[:60]} "
            f"({'sparse' if timing.sparse_kernel else 'NOT SPARSE'}), "
            f"{time.perf_counter() - before:.0f} s",
            flush=True,
        )
    run.finish(
        device=timings[0].device if timings else None,
        left_out=left_out,
        cusparselt=library_version(torch.device("cuda", 0)),
    )
    if timings:
        frame = pd.DataFrame(gemm_table(timings))
        print(frame.groupby(["m", "dtype", "pattern", "kernel"]).speedup.agg(["mean", "min"]))


if __name__ == "__main__":
    main()
