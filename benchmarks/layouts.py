"""Would tensors that lie transposed be worth it? cuSPARSELt's four layouts of x and y, searched.

    python benchmarks/layouts.py --out reports/reference [--tokens 16 4096] [--seconds 300]

A model's tensors lie token by token. The library may have faster kernels for tensors that lie
feature by feature; a layer that used them would have to transpose x before and y after. The table
gives the fastest product of each layout and what the transposes cost beside it.
"""

import argparse
import itertools
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from esparse_lab.errors import EsparseError
from esparse_lab.gemm.algorithms import AlgorithmStore
from esparse_lab.gemm.clock import device_ms
from esparse_lab.gemm.cusparselt import Product
from esparse_lab.gemm.search import found
from esparse_lab.gemm.shapes import model_shapes
from esparse_lab.run_record import Run


def transpose_ms(rows: int, columns: int, dtype: torch.dtype) -> float:
    """Device time of laying a matrix out anew."""
    matrices = [torch.randn(rows, columns, device="cuda").to(dtype) for _ in range(8)]
    out = torch.empty(columns, rows, dtype=dtype, device="cuda")
    return device_ms([lambda m=m: out.copy_(m.t()) for m in matrices], least_ms=2).median


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 4096])
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--seconds", type=float, default=300, help="begin no search after these")
    args = parser.parse_args()
    run, device, end = Run("gemm_layouts_h100", args.out), torch.device("cuda", 0), time.monotonic()
    end, dtype, rows = end + args.seconds, getattr(torch, args.dtype), []
    products = [
        Product(shape.n, shape.k, shape.m, dtype, x_by_feature=x, y_by_feature=y)
        for shape in model_shapes("LLaMA-7B", args.tokens)
        for x, y in itertools.product((False, True), repeat=2)
    ]
    store = AlgorithmStore(device)
    for product in tqdm(products, unit="product"):
        if time.monotonic() > end:
            break
        try:
            best = found([product], device, store)[product]
        except EsparseError as error:
            print(error, flush=True)
            continue
        tokens, n, k = product.tokens, product.rows, product.columns
        moved = product.x_by_feature and transpose_ms(tokens, k, dtype)
        moved += product.y_by_feature and transpose_ms(n, tokens, dtype)
        natural = store.get(replace(product, x_by_feature=False, y_by_feature=False))
        rows.append(
            {
                "tokens": tokens,
                "columns": k,
                "rows": n,
                "x_by_feature": product.x_by_feature,
                "y_by_feature": product.y_by_feature,
                "dense_ms": best.dense_ms,
                "product_ms": best.ms,
                "transposes_ms": float(moved),
                "natural_ms": natural.ms if natural else None,
                "algorithm": str(best.algorithm),
            }
        )
        print(rows[-1], flush=True)
        run.save_table("times", pd.DataFrame(rows))
    run.finish(device=torch.cuda.get_device_name())


if __name__ == "__main__":
    main()
