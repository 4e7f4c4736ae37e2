"""Table 5 of the paper, recomputed from its own milliseconds, and beside what was measured here."""

from collections.abc import Iterable

import pandas as pd

from esparse_lab.footprint import LLAMA
from esparse_lab.gemm.shapes import PAPER_SHAPES
from esparse_lab.tables import paper_table

A100_TFLOPS, A100_GBPS = 312.0, 1555.0
"""Peaks of the A100 40 GB: dense float16 arithmetic and memory. Source: NVIDIA's data sheet."""
TEXT_BATCH, TEXT_LENGTH = 4, 1024
"""What the paper's text says was multiplied."""
_HALF_DIGIT_MS, _HALF_DIGIT_PERCENT = 0.0005, 0.05  # Table 5 prints three and one decimals

# Hidden and feed-forward sizes. OPT: Zhang et al. 2022, arXiv 2205.01068; BLOOM: arXiv 2211.05100.
_MODELS = {
    **{name: (shape.hidden, shape.intermediate) for name, shape in LLAMA.items()},
    "OPT-6.7B": (4096, 16384),
    "OPT-30B": (7168, 28672),
    "BLOOM-176B": (14336, 57344),
}


def table5_audit(printed: pd.DataFrame | None = None) -> pd.DataFrame:
    """Each row of Table 5 and what its own figures imply.

    Args:
        printed: its cells, as of `paper_table`, which is the default.

    Columns: stage, layer, m, k, n, dense_ms, sparse_ms, printed_percent, recomputed_percent,
    least_percent and most_percent (what the milliseconds allow before they were rounded), agrees
    (the printed figure is the recomputed one, rounded), speedup, text_tokens (what batch 4 and 1024
    positions would be), implied_batch, and for "dense" and "sparse" each: tflops, gbps and their
    shares of the A100's peaks. The sparse product is counted with the dense one's arithmetic, and
    its weight with 9/16 of the bytes.
    """
    printed = paper_table(5) if printed is None else printed
    keys = ["stage", "layer", "m", "k", "n"]
    times = printed[printed.unit != "shape"]
    wide = times.assign(value=times.value.astype(float)).pivot_table(
        index=keys, columns="column", values="value", sort=False
    )
    frame = wide.rename(
        columns={
            "Dense GEMM": "dense_ms",
            "E-Sparse GEMM": "sparse_ms",
            "Latency Reduction": "printed_percent",
        }
    ).reset_index()
    frame.columns.name = None
    frame = frame[[*keys, "dense_ms", "sparse_ms", "printed_percent"]]
    dense, sparse, half = frame.dense_ms, frame.sparse_ms, _HALF_DIGIT_MS
    frame["recomputed_percent"] = 100 * (1 - sparse / dense)
    frame["least_percent"] = 100 * (1 - (sparse + half) / (dense - half))
    frame["most_percent"] = 100 * (1 - (sparse - half) / (dense + half))
    off = (frame.recomputed_percent - frame.printed_percent).abs()
    frame["agrees"] = off <= _HALF_DIGIT_PERCENT + 1e-9
    frame["speedup"] = dense / sparse
    positions = frame.stage.map({"Context-stage": TEXT_LENGTH, "Decoder": 1})
    frame["text_tokens"] = TEXT_BATCH * positions
    frame["implied_batch"] = frame.m // positions
    flops = 2.0 * frame.m * frame.k * frame.n
    moved = 2 * frame.m * (frame.k + frame.n)
    for form, ms, share in (("dense", dense, 1), ("sparse", sparse, 9 / 16)):
        frame[f"{form}_tflops"] = flops / ms / 1e9
        frame[f"{form}_gbps"] = (2 * share * frame.k * frame.n + moved) / ms / 1e6
        frame[f"{form}_peak_share"] = frame[f"{form}_tflops"] / A100_TFLOPS
        frame[f"{form}_bandwidth_share"] = frame[f"{form}_gbps"] / A100_GBPS
    return frame


def stage_sums(audit: pd.DataFrame) -> pd.DataFrame:
    """The four products of each stage together; takes a `table5_audit`.

    Columns: stage, dense_ms, sparse_ms, speedup, least_speedup, most_speedup (of one product).
    """
    sums = audit.groupby("stage", sort=False).agg(
        dense_ms=("dense_ms", "sum"),
        sparse_ms=("sparse_ms", "sum"),
        least_speedup=("speedup", "min"),
        most_speedup=("speedup", "max"),
    )
    sums.insert(2, "speedup", sums.dense_ms / sums.sparse_ms)
    return sums.reset_index()


def shape_owners(devices: Iterable[int] = (1, 2, 4, 8, 16)) -> pd.DataFrame:
    """Which models' layers, split over so many devices, have Table 5's weights.

    A layer is split as Megatron does (Shoeybi et al. 2019, arXiv 1909.08053): Q/K/V and FFN-1 along
    their outputs, Att_Out and FFN-2 along their inputs.

    Columns: model, devices, hidden, intermediate, matching (how many of the four weights).
    """
    weights = {(shape.k, shape.n) for shape in PAPER_SHAPES}
    rows = []
    for model, (hidden, inner) in _MODELS.items():
        for n in devices:
            split = {
                (hidden, 3 * hidden // n),
                (hidden // n, hidden),
                (hidden, inner // n),
                (inner // n, hidden),
            }
            rows.append((model, n, hidden, inner, len(weights & split)))
    return pd.DataFrame(rows, columns=["model", "devices", "hidden", "intermediate", "matching"])


def beside_table5(measured: pd.DataFrame) -> pd.DataFrame:
    """The paper's times beside measured ones of the same shapes.

    Args:
        measured: a `gemm_table`, with any other shapes besides.

    Returns:
        One row a shape of the paper and dtype; columns stage, layer, m, k, n, dtype, device,
        paper_dense_ms, paper_sparse_ms, paper_percent (recomputed), dense_ms, default_ms,
        sparse_ms, percent, paper_speedup, speedup, above_floor.
    """
    paper = table5_audit().rename(
        columns={
            "dense_ms": "paper_dense_ms",
            "sparse_ms": "paper_sparse_ms",
            "recomputed_percent": "paper_percent",
            "speedup": "paper_speedup",
        }
    )
    ours = measured[(measured.kernel == "cusparselt") & (measured.pattern == "2:4")]
    both = paper.merge(ours, on=["m", "k", "n"])
    both["percent"] = 100 * both.latency_reduction
    return both[
        [
            *("stage", "layer", "m", "k", "n", "dtype", "device"),
            *("paper_dense_ms", "paper_sparse_ms", "paper_percent"),
            *("dense_ms", "default_ms", "sparse_ms", "percent", "paper_speedup", "speedup"),
            "above_floor",
        ]
    ]


def end_to_end_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Every sparse form of a model beside its dense one.

    Args:
        runs: columns shape, form ("dense", or kernel and pattern), phase ("prefill" or "decode"),
            batch, positions, ms, tokens_per_second, peak_gib, kernel.

    Columns: shape, form, phase, batch, positions, dense_ms, sparse_ms, speedup,
    dense_tokens_per_second, sparse_tokens_per_second, dense_peak_gib, sparse_peak_gib,
    sparse_kernel.
    """
    keys, measured = (
        ["shape", "phase", "batch", "positions"],
        ["ms", "tokens_per_second", "peak_gib"],
    )
    is_dense = runs.form == "dense"
    dense = runs[is_dense].rename(columns={name: f"dense_{name}" for name in measured})
    sparse = runs[~is_dense].rename(
        columns={name: f"sparse_{name}" for name in [*measured, "kernel"]}
    )
    both = sparse.merge(dense.drop(columns=["form", "kernel"]), on=keys)
    both["speedup"] = both.dense_ms / both.sparse_ms
    pairs = [f"{form}_{name}" for name in measured for form in ("dense", "sparse")]
    return both[["shape", "form", *keys[1:], *pairs[:2], "speedup", *pairs[2:], "sparse_kernel"]]
