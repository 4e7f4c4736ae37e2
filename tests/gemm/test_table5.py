"""Table 5 against figures worked out apart from this package, and joins of recorded tables."""

import pandas as pd
import pytest

from esparse_lab import PAPER_SHAPES
from esparse_lab.gemm import table5
from esparse_lab.tables import paper_table


@pytest.fixture(scope="module")
def audit():
    return table5.table5_audit()


def test_reductions_recomputed_from_the_printed_milliseconds(audit):
    # (1 - sparse / dense), by hand from the page.
    by_hand = [31.20, 27.18, 29.72, 21.96, 19.67, 34.78, 30.00, 31.01]
    assert audit.recomputed_percent.round(2).tolist() == by_hand
    assert audit.printed_percent.tolist() == [31.2, 27.2, 29.7, 21.9, 19.6, 34.8, 30.0, 31.0]
    assert audit.agrees.tolist() == [True, True, True, False, False, True, True, True]
    assert (audit.least_percent < audit.recomputed_percent).all()
    assert (audit.recomputed_percent < audit.most_percent).all()
    # 0.030 of 0.046 ms may be 0.0295 to 0.0305 of 0.0455 to 0.0465.
    assert audit.least_percent[5] == pytest.approx(100 * (1 - 0.0305 / 0.0455))
    assert audit.most_percent[5] == pytest.approx(100 * (1 - 0.0295 / 0.0465))
    assert audit.speedup.round(3).tolist() == [
        1.453,
        1.373,
        1.423,
        1.281,
        1.245,
        1.533,
        1.429,
        1.450,
    ]


def test_tokens_of_the_table_are_not_those_of_the_text(audit):
    assert audit.text_tokens.tolist() == [4096] * 4 + [4] * 4
    assert audit.implied_batch.tolist() == [16] * 8


def test_rates_are_arithmetic_and_bytes_over_time(audit):
    # 2 x 16384 x 14336 x 5376 operations in 8.452 ms; half of it moved as 2-byte numbers.
    assert audit.dense_tflops[0] == pytest.approx(2 * 16384 * 14336 * 5376 / 8.452e-3 / 1e12)
    assert audit.dense_peak_share[[0, 2, 3]].between(0.93, 0.96).all()
    assert audit.dense_tflops[1] == pytest.approx(241, abs=0.5)
    decode = audit[audit.stage == "Decoder"]
    assert decode.dense_gbps.between(1120, 1310).all()
    weight = 14336 * 7168
    moved = 2 * 16 * (14336 + 7168)
    assert audit.dense_gbps[6] == pytest.approx((2 * weight + moved) / 0.160e-3 / 1e9)
    assert audit.sparse_gbps[6] == pytest.approx((2 * weight * 9 / 16 + moved) / 0.112e-3 / 1e9)
    assert (audit.dense_peak_share < 1).all()
    assert (audit.dense_bandwidth_share < 1).all()


def test_the_products_of_a_stage_together(audit):
    sums = table5.stage_sums(audit).set_index("stage")
    context, decode = sums.loc["Context-stage"], sums.loc["Decoder"]
    assert (context.dense_ms, context.sparse_ms) == pytest.approx((34.905, 25.386))
    assert (decode.dense_ms, decode.sparse_ms) == pytest.approx((0.486, 0.349))
    assert (context.speedup, decode.speedup) == pytest.approx((1.375, 1.393), abs=5e-4)


def test_the_shapes_are_of_bloom_176b_over_eight_devices():
    owners = table5.shape_owners()
    assert owners[owners.matching == 4][["model", "devices"]].to_numpy().tolist() == [
        ["BLOOM-176B", 8]
    ]
    assert owners[owners.model.str.startswith("LLaMA")].matching.max() == 0
    # By hand: 14336 / 8 = 1792, 3 * 1792 = 5376, 57344 / 8 = 7168.
    assert {(s.k, s.n) for s in PAPER_SHAPES} == {
        *((14336, 5376), (1792, 14336), (14336, 7168), (7168, 14336))
    }


def test_a_measured_table_stands_beside_its_shapes():
    shapes = [(s.m, s.k, s.n) for s in PAPER_SHAPES]
    rows = [
        (*shape, dtype, "2:4", "cusparselt", "a card", 2.0, 4.0, 1.0, 0.5, 2.0, 1.25)
        for shape in [*shapes[::-1], (16, 64, 64)]
        for dtype in ("float16", "bfloat16")
    ]
    rows.append(
        (*shapes[4], "float16", "2:4", "compressed", "a card", 9.0, None, 9.0, 0.0, 1.0, 1.5)
    )
    columns = "m k n dtype pattern kernel device dense_ms default_ms sparse_ms latency_reduction"
    columns += " speedup above_floor"
    both = table5.beside_table5(pd.DataFrame(rows, columns=columns.split()))
    assert len(both) == 16
    assert list(zip(both.m, both.k, both.n, strict=True))[::2] == shapes
    assert both.paper_dense_ms[::2].tolist() == [
        float(v) for v in paper_table(5).query("column == 'Dense GEMM'").value
    ]
    assert (both.dense_ms == 2).all()
    assert (both.percent == 50).all()


def test_every_sparse_form_stands_beside_the_dense_one():
    columns = "shape form phase batch positions ms tokens_per_second peak_gib kernel"
    forms = (("cusparselt 2:4", 2.0, 7.0), ("dense", 3.0, 12.0), ("compressed 4:8", 2.5, 8.0))
    runs = [
        ("S", form, "decode", batch, 128, ms * batch, 10 / ms, gib, f"kernel {form}")
        for batch in (1, 4)
        for form, ms, gib in forms
        if (batch, form) != (4, "compressed 4:8")
    ]
    pairs = table5.end_to_end_table(pd.DataFrame(runs, columns=columns.split()))
    assert list(zip(pairs.form, pairs.batch, strict=True)) == [
        ("cusparselt 2:4", 1),
        ("compressed 4:8", 1),
        ("cusparselt 2:4", 4),
    ]
    assert pairs.speedup.tolist() == pytest.approx([1.5, 1.2, 1.5])
    assert pairs.dense_ms.tolist() == [3, 3, 12]
    assert pairs.sparse_peak_gib.tolist() == [7, 8, 7]
    assert pairs.dense_tokens_per_second.tolist() == pytest.approx([10 / 3] * 3)
    assert pairs.sparse_kernel.tolist() == [f"kernel {form}" for form in pairs.form]
