"""The published tables in data/paper: every cell there, as printed."""

import csv
from collections import Counter
from pathlib import Path

import pytest

PAPER = Path(__file__).parent.parent / "data" / "paper"
# table: rows, columns as counted on the printed page
SIZES = {1: (9, 4), 2: (20, 6), 3: (4, 4), 4: (4, 4), 5: (8, 5), 6: (4, 3)}


def read(table):
    with (PAPER / f"table{table}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def cell(table, row, column):
    (found,) = (c for c in read(table) if (c["row"], c["column"]) == (row, column))
    return found


@pytest.mark.parametrize("table", SIZES)
def test_every_row_has_every_column_once(table):
    cells = read(table)
    rows, columns = {c["row"] for c in cells}, {c["column"] for c in cells}
    assert (len(rows), len(columns)) == SIZES[table]
    assert Counter((c["row"], c["column"]) for c in cells) == {
        (r, c): 1 for r in rows for c in columns
    }
    assert {c["table"] for c in cells} == {str(table)}


@pytest.mark.parametrize("table", SIZES)
def test_values_are_numbers_except_shapes(table):
    for c in read(table):
        if c["unit"] == "shape":
            assert c["value"] in (f"{c['m']} × {c['k']}", f"{c['k']} × {c['n']}")
        else:
            assert c["unit"] in ("perplexity", "%", "ms", "GB")
            assert float(c["value"]) > 0


@pytest.mark.parametrize(
    ("table", "row", "column", "value", "unit"),
    [
        (1, "FP16", "LLaMA-7B", "5.68", "perplexity"),
        (1, "E-Sparse 2:4", "LLaMA-13B", "8.26", "perplexity"),
        (1, "SparseGPT 2:4", "LLaMA-7B", "11.00", "perplexity"),
        (1, "Magnitude 4:8", "LLaMA-30B", "9.11", "perplexity"),
        (2, "13B Magnitude", "Avg.", "57.71", "%"),  # wrong in the paper: its row means 49.63
        (2, "7B FP16", "SciQ", "89.6", "%"),
        (2, "65B E-Sparse", "LogiQA", "23.04", "%"),
        (3, "Magnitude", "OPT-30b(2:4)", "1980.71", "perplexity"),
        (4, "Norm + Entropy", "LLaMA-13B", "8.82", "perplexity"),
        (5, "Decoder Att_Out", "Latency Reduction", "34.8", "%"),
        (5, "Context-stage FFN-2", "E-Sparse GEMM", "8.958", "ms"),
        (5, "Decoder FFN-1", "Weights", "14336 × 7168", "shape"),
        (6, "LLaMA-65B", "Sparse (FP16)", "54.50", "GB"),
    ],
)
def test_cells_are_as_printed(table, row, column, value, unit):
    found = cell(table, row, column)
    assert (found["value"], found["unit"]) == (value, unit)


def test_keys_join_with_measured_tables():
    full = cell(4, "Norm + Entropy + GNS + LBS", "LLaMA-7B")
    assert (full["method"], full["pattern"], full["search"]) == ("esparse", "2:4", "gns+lbs")
    assert (full["norm"], full["entropy"], full["gns"], full["lbs"]) == ("true",) * 4
    # The ablation's ends are Wanda and E-Sparse of Table 1.
    table1 = {(c["method"], c["pattern"], c["model"]): c["value"] for c in read(1)}
    ends = [c for c in read(4) if c["row"] in ("Norm", full["row"])]
    assert len(ends) == 8
    for c in ends:
        assert table1[c["method"], "2:4", c["model"]] == c["value"]
    assert cell(1, "FP16", "LLaMA-7B")["pattern"] == ""


def test_printed_latency_reductions_agree_with_the_printed_latencies():
    for row in {c["row"] for c in read(5)}:
        dense, sparse, saved = (
            float(cell(5, row, column)["value"])
            for column in ("Dense GEMM", "E-Sparse GEMM", "Latency Reduction")
        )
        assert 100 * (1 - sparse / dense) == pytest.approx(
            saved, abs=0.1
        )  # two are cut, not rounded
