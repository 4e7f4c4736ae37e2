"""`esparse gemm` where nothing can be timed, and what it refuses before it looks for a device."""

import pytest
import torch
from typer.testing import CliRunner

from esparse_lab.cli import app
from esparse_lab.gemm.shapes import PAPER_SHAPES
from esparse_lab.gemm.timing import GemmTiming, gemm_table, summary


def esparse(*arguments):
    return CliRunner().invoke(app, ["gemm", *map(str, arguments)], prog_name="esparse")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["1,2"], "Cannot read the shape '1,2': expected M,K,N"),
        (["0,16,16"], "at least 1"),
        (["16,40,16"], "multiples of 16"),
        (["16,16,16", "--dtype", "int8"], "multiples of 32"),
        (["16,64,64", "--dtype", "float61"], "Unknown dtype 'float61'. Did you mean"),
        (["16,64,64", "--pattern", "4:8"], "kernel='compressed'"),
        (["16,64,64", "--pattern", "4:2"], "Pattern 4:2 is not possible"),
        (["16,64,64", "--pattern", "50%"], "Cannot read the pattern"),
        (["16,64,64", "--kernel", "cutlass"], "Unknown kernel 'cutlass'"),
        (["33,64,64", "--kernel", "compressed"], "at most 32 tokens, got 33"),
        (["16,64,64", "--kernel", "compressed", "--dtype", "int8"], "float16 and bfloat16"),
        (["16,64,64", "--kernel", "compressed", "--pattern", "3:4"], "not 3:4"),
        (["16,64,64", "--model", "LLaMA-7B"], "not both"),
        (["--tokens", "16"], "--tokens belongs to --model"),
        (["--model", "LLaMA-7B", "--tokens", "16,b"], "--tokens got '16,b'"),
        (["--model", "LLaMA-7B", "--tokens", "-1"], "at least 1"),
    ],
)
def test_what_cannot_be_timed_anywhere_exits_with_2(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = esparse(*arguments, "--out", "out")
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a device says")
@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--model", "LLaMA-7B", "--tokens", "16"],
        ["16,64,64", "4096,64,64", "--dtype", "float8_e4m3fn"],
        ["1,64,64", "--kernel", "compressed", "--pattern", "1:4"],
    ],
)
def test_without_a_device_one_line_says_what_is_missing(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = esparse(*arguments, "--out", "out")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "esparse: Nothing can be timed here: no CUDA device is present. Notebook 06_sparse_gemm "
        "shows the tables that were recorded on a GPU.\n"
    )
    assert list(tmp_path.iterdir()) == []


def timing(shape, **changes):
    """Round numbers, to be recomputed below; no device made them."""
    values = {
        "name": shape.name,
        "m": shape.m,
        "k": shape.k,
        "n": shape.n,
        "dtype": "float16",
        "pattern": "2:4",
        "kernel": "cusparselt",
        "device": "a card",
        "dense_ms": 2.0,
        "dense_least": 1.9,
        "dense_most": 2.1,
        "default_ms": 5.0,
        "sparse_ms": 1.25,
        "sparse_least": 1.2,
        "sparse_most": 1.3,
        "floor_ms": 1.0,
        "dense_floor_ms": 1.5,
        "dense_bytes": 2 * shape.k * shape.n,
        "sparse_bytes": 9 * shape.k * shape.n // 8,
        "relative_error": 2e-4,
        "algorithm": "Algorithm(3)",
        "kernel_name": "some_sptensorop_kernel",
        "sparse_kernel": True,
    }
    return GemmTiming(**values | changes)


def test_the_table_adds_what_follows_from_the_times():
    shape = PAPER_SHAPES[0]
    row = gemm_table([timing(shape)]).iloc[0]
    assert row.speedup == 1.6
    assert row.latency_reduction == pytest.approx(0.375)
    assert row.tflops == pytest.approx(2 * shape.m * shape.k * shape.n / 1.25e-3 / 1e12)
    moved = 9 / 8 * shape.k * shape.n + 2 * shape.m * (shape.k + shape.n)
    assert row.gbps == pytest.approx(moved / 1.25e-3 / 1e9)
    assert row.above_floor == 1.25


def test_what_is_printed_says_all_that_was_measured():
    timings = [
        timing(PAPER_SHAPES[0]),
        timing(PAPER_SHAPES[5], default_ms=None, sparse_kernel=False, kernel_name=""),
    ]
    heading, names, first, second, _, ran, silent = summary(gemm_table(timings)).splitlines()
    assert heading == "cusparselt, 2:4, float16, a card"
    for word in ("default ms", "reduction", "TFLOP/s", "GB/s", "x floor", "sparse kernel"):
        assert word in names
    for word in ("16384,14336,5376", "2.0000", "5.0000", "1.2500", "37.5%", "1.25", "2.0e-04"):
        assert word in first
    assert (first.split()[-1], second.split()[-1]) == ("yes", "no")
    assert "none" in second
    assert ran == "context Q/K/V: Algorithm(3), some_sptensorop_kernel"
    assert silent.endswith("no kernel seen")
