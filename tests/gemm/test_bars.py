"""Verdicts against bars, on figures made up for it and on the kept tables."""

import numpy as np
import pandas as pd
import pytest

from esparse_lab import PAPER_SHAPES
from esparse_lab.gemm import bars, table5
from esparse_lab.tables import measured_on, recorded


def beside(ratios):
    """Table 5 in two dtypes with these ratios of the eight shapes; bfloat16 is worse by 0.1."""
    rows = [
        ("Context-stage" if s.m > 16 else "Decoder", s.m, s.k, s.n, dtype, ratio - less)
        for s, ratio in zip(PAPER_SHAPES, ratios, strict=True)
        for dtype, less in (("bfloat16", 0.1), ("float16", 0.0))
    ]
    return pd.DataFrame(rows, columns=["stage", "m", "k", "n", "dtype", "speedup"])


def few(ratios, pattern="4:8", kernel="compressed"):
    rows = [
        (m, 64, n, "float16", kernel, pattern, 2.0 * ratio, 2.0, 1.0)
        for n in (32, 96)
        for m, ratio in zip((1, 4), ratios[n], strict=True)
    ]
    columns = ["m", "k", "n", "dtype", "kernel", "pattern", "dense_ms", "sparse_ms", "floor_ms"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(speedup=frame.dense_ms / frame.sparse_ms)


def test_the_better_dtype_counts():
    best = bars.best_dtypes(beside([1.5] * 4 + [1.7] * 4))
    assert best.dtype.tolist() == ["float16"] * 8
    assert [(o.m, o.k, o.n) for o in best.itertuples()] == [(s.m, s.k, s.n) for s in PAPER_SHAPES]
    assert best.speedup.tolist() == [1.5] * 4 + [1.7] * 4


def test_each_bar_is_decided_by_its_least_or_its_mean():
    found = bars.speed_bars(beside([1.3, 1.5, 1.6, 1.8, 0.9, 2.5, 2.5, 2.5]), None, None)
    table = found.set_index(["what", "over"])
    assert table.reached["Table 5, context", "each product"] == 1.3
    assert table.met["Table 5, context", "each product"] == "no"
    first = PAPER_SHAPES[0]
    assert table.decided_by["Table 5, context", "each product"] == (
        f"{first.m:,} × {first.k:,} × {first.n:,}, float16"
    )
    assert table.reached["Table 5, context", "average"] == pytest.approx(1.55)
    assert table.met["Table 5, context", "average"] == "yes"
    assert table.reached["Table 5, decode", "average"] == pytest.approx(2.1)
    assert (table.reached["Table 5", "each product"], table.met["Table 5", "each product"]) == (
        *(0.9, "no"),
    )
    others = found[~found.what.str.startswith("Table 5")]
    assert len(others) == 6
    assert (others.met == "not measured yet").all()
    assert others.reached.isna().all()


def test_a_bar_that_is_just_touched_is_reached():
    found = bars.speed_bars(None, few({32: (1.3, 1.5), 96: (1.6, 1.7)}), None).dropna()
    assert found.what.tolist() == ["1 to 16 tokens, compressed 4:8"] * 2
    assert found.reached.tolist() == pytest.approx([1.3, 1.525])
    assert found.met.tolist() == ["yes", "yes"]
    assert found.decided_by.tolist() == ["1 × 64 × 32, float16", "4 products"]
    other = few({32: (1.3, 1.5), 96: (1.6, 1.7)}, kernel="cusparselt")
    assert bars.speed_bars(None, other, None).reached.isna().all()


def test_whole_models_are_judged_by_the_library_alone():
    rows = [
        ("S", form, phase, batch, 128, ms, 1.0, 1.0, "k")
        for phase, batch, times in (("decode", 16, (2.8, 2.0, 1.0)), ("prefill", 4, (1.2, 1.0, 1)))
        for form, ms in zip(("dense", "cusparselt 2:4", "compressed 2:4"), times, strict=True)
    ]
    columns = [
        "shape",
        "form",
        "phase",
        "batch",
        "positions",
        "ms",
        "tokens_per_second",
        "peak_gib",
        "kernel",
    ]
    found = bars.speed_bars(None, None, pd.DataFrame(rows, columns=columns)).dropna()
    assert found.reached.tolist() == pytest.approx([1.4, 1.2])
    assert found.met.tolist() == ["yes", "no"]
    assert found.decided_by.tolist() == ["S, cusparselt 2:4"] * 2


def test_the_fastest_dense_time_of_a_weight_is_that_of_any_number_of_tokens():
    table = bars.few_token_table(few({32: (1.5, 1.25), 96: (1.75, 2.0)}))
    assert table.dense_best_ms.tolist() == [2.5, 2.5, 3.5, 3.5]
    assert table.speedup_of_best.tolist() == [1.25, 1.25, 1.75, 1.75]
    assert table.most_speedup.tolist() == [3.0, 2.5, 3.5, 4.0]


def test_the_kept_tables_and_their_verdicts():
    # By another way: numpy over the columns of the tables, in the order of the bars.
    times, record = recorded("gemm_h100", "times")
    tokens = recorded("gemm_few_tokens_h100", "times")[0]
    steps = recorded("end_to_end_h100", "steps")[0]
    ratio = (times.dense_ms / times.sparse_ms).to_numpy().reshape(8, 2).max(1)
    ours = tokens[tokens.kernel == "compressed"]
    ends = [
        end(part.dense_ms.to_numpy() / part.sparse_ms.to_numpy())
        for pattern in ("4:8", "2:4")
        for part in [ours[ours.pattern == pattern]]
        for end in (np.min, np.mean)
    ]
    ms = steps.set_index(["form", "phase", "batch"]).ms
    whole = [
        ms["dense", phase, batch] / ms["cusparselt 2:4", phase, batch]
        for phase, batch in (("decode", 16), ("prefill", 4))
    ]
    wanted = [ratio[:4].min(), ratio[:4].mean(), ratio[4:].mean(), ratio.min(), *ends, *whole]
    found = bars.speed_bars(table5.beside_table5(times), bars.few_token_table(tokens), steps)
    assert found.reached.tolist() == pytest.approx(wanted)
    asked = [1.35, 1.45, 1.6, 1.0, 1.3, 1.3, 1.6, 1.6, 1.35, 1.25]
    assert found.asked.tolist() == asked
    assert (found.met == "yes").tolist() == [r >= a for r, a in zip(wanted, asked, strict=True)]
    assert measured_on(record).startswith(f"{record['device']}, {record['started'][:10]}, PyTorch")
