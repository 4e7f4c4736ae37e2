"""Floors that nothing beats, worked out by hand; and the kept tables under them."""

import pandas as pd
import pytest
import torch

from esparse_lab.gemm.roofline import least_bytes, roofline_table, unbeaten
from esparse_lab.masks import Pattern
from esparse_lab.tables import recorded


def test_the_smaller_index_counts():
    # 64 x 64 of 16 bits: half of the values, and a bit a weight; 4:8 by places would take 1.5.
    assert least_bytes(64, 64, Pattern(4, 8), torch.float16) == 64 * 64 + 64 * 8
    assert least_bytes(64, 64, Pattern(2, 4), torch.float16) == 64 * 64 + 64 * 8
    # 1:4 by places: 2 bits for every fourth weight.
    assert least_bytes(64, 64, Pattern(1, 4), torch.float16) == 64 * 16 * 2 + 64 * 16 // 4
    assert least_bytes(64, 64, Pattern(2, 4), torch.int8) == 64 * 32 + 64 * 8


def measured(m, *, dense_ms, sparse_ms, dense_floor_ms, floor_ms, kernel="cusparselt"):
    """A product with a weight of 1024 x 1024."""
    return {
        **{"name": "p", "m": m, "k": 1024, "n": 1024, "dtype": "float16", "pattern": "2:4"},
        **{"kernel": kernel, "dense_bytes": 2 * 1024**2, "dense_ms": dense_ms},
        **{"sparse_ms": sparse_ms, "dense_floor_ms": dense_floor_ms, "floor_ms": floor_ms},
        "above_floor": sparse_ms / floor_ms,
    }


def test_floors_that_were_beaten_sink_and_others_stay():
    dense_bytes = 2 * 1024**2 + 2 * 8 * 2048
    sparse_bytes = 1024**2 * 9 / 8 + 2 * 8 * 2048
    few = measured(8, dense_ms=1.0, sparse_ms=0.5, dense_floor_ms=2.0, floor_ms=0.25)
    many = measured(10**6, dense_ms=1e4, sparse_ms=9e3, dense_floor_ms=8e3, floor_ms=4e3)
    before = pd.DataFrame([few, many], index=[7, 3])
    after = unbeaten(before)
    # The sparse floor, the fastest flow of bytes of all, was of a quarter of a millisecond.
    assert after.floor_ms[7] == pytest.approx(0.25)
    assert after.dense_floor_ms[7] == pytest.approx(0.25 * dense_bytes / sparse_bytes)
    assert after.floor_ms[3] == pytest.approx(4e3)
    assert after.dense_floor_ms[3] == pytest.approx(8e3)
    assert after.above_floor.tolist() == pytest.approx([2, 2.25])
    beaten = unbeaten(before.assign(sparse_ms=[0.125, 9e3]))
    assert beaten.floor_ms[7] == pytest.approx(0.125)
    assert beaten.above_floor[7] == pytest.approx(1)
    assert beaten.dense_floor_ms[7] == pytest.approx(0.125 * dense_bytes / sparse_bytes)
    assert before.floor_ms[7] == 0.25  # its argument stays as it was


@pytest.mark.parametrize(("kernel", "skipped"), [("cusparselt", 2), ("compressed", 1)])
def test_arithmetic_that_was_faster_lowers_both_forms(kernel, skipped):
    floors = {"dense_floor_ms": 8e3, "floor_ms": 8e3 / skipped}
    few = measured(8, dense_ms=1.0, sparse_ms=0.5, dense_floor_ms=0.5, floor_ms=0.25)
    many = measured(10**6, dense_ms=5e3, sparse_ms=9e3, **floors, kernel=kernel)
    after = unbeaten(pd.DataFrame([few, many])).iloc[1]
    assert (after.dense_floor_ms, after.floor_ms) == pytest.approx((5e3, 5e3 / skipped))


@pytest.mark.parametrize("name", ["gemm_h100", "gemm_few_tokens_h100"])
def test_no_kept_product_beats_its_floor(name):
    kept, _ = recorded(name, "times")
    after = unbeaten(kept)
    assert (after.above_floor >= 1 - 1e-12).all()
    assert (after.dense_ms >= after.dense_floor_ms * (1 - 1e-12)).all()
    assert (after.floor_ms <= kept.floor_ms * (1 + 1e-12)).all()
    assert (after.dense_floor_ms <= kept.dense_floor_ms * (1 + 1e-12)).all()
    points = roofline_table(after)
    assert (points.tflops <= points.roof_tflops * (1 + 1e-12)).all()
    assert len(points) == 2 * len(kept)
