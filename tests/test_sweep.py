"""Sweeps: cells are measured once, survive deaths of processes, and are compared on equal terms."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import psutil
import pytest
from scipy import stats
from tiny_models import byte_tokenizer, random_model
from typer.testing import CliRunner

from esparse_lab import InputError, Pattern, Recipe, Wanda, perplexity, prune_model, token_windows
from esparse_lab.cli import app
from esparse_lab.errors import EsparseError
from esparse_lab.models import embedded_model_folder, load_model
from esparse_lab.sweep import (
    SweepOutcome,
    ablation_table,
    kept_cells,
    load_cells,
    load_failures,
    missing_jobs,
    paired_bootstrap,
    paired_table,
    parts_table,
    read_sweep,
    recorded,
    recorded_cells,
    run_sweep,
    summary_table,
    unmeasured,
)
from esparse_lab.sweep.execution import DeadWorker, call_each, cores, processes_that_fit
from esparse_lab.sweep.plan import hashed, planned_draws
from esparse_lab.tables import HOME, REFERENCE, reference_ladder

pytest.importorskip("distributed")

SWEEP = """
models: [tiny]
recipes:
  - dense
  - {method: [magnitude, wanda], pattern: ["2:4", "4:8"]}
calibrations: [{corpus: text.txt, sequences: 4, length: 16}]
seeds: [0, 1]
evaluations: [{corpus: text.txt, length: 16, windows: 6}]
baseline: wanda
device: cpu
"""
N_CELLS = 1 + 2 + 2 * 2  # dense, magnitude without seeds, Wanda with them


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny model with a byte tokenizer, and a text."""
    home = tmp_path_factory.mktemp("sweep")
    byte_tokenizer().save_pretrained(home / "tiny")
    random_model("llama").save_pretrained(home / "tiny")
    (home / "text.txt").write_text("What a model reads is a row of numbers. " * 20)
    return home


@pytest.fixture
def planned(home, tmp_path, monkeypatch):
    """Writes a sweep file, changed as told, and reads it."""
    monkeypatch.chdir(home)

    def plan(*changes, name="tiny_sweep"):
        text = SWEEP
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / f"{name}.yaml").write_text(text)
        return read_sweep(tmp_path / f"{name}.yaml")

    return plan


def esparse(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="esparse")


def figures(folder) -> dict[str, float]:
    cells = load_cells(folder)
    assert cells.key.is_unique
    return dict(zip(cells.key, cells.perplexity, strict=True))


def test_a_cell_is_what_pruning_and_measuring_by_hand_gives(planned, tmp_path):
    assert run_sweep(planned(), tmp_path / "out", workers=0) == SweepOutcome(0, N_CELLS, 0)
    cells = load_cells(tmp_path / "out")
    for seed in (0, 1):
        loaded = load_model("tiny", device="cpu")
        drawn = {"split": "train", "length": 16, "count": 4, "seed": seed}
        tokens = token_windows(loaded.tokenizer, "text.txt", **drawn)
        test = token_windows(loaded.tokenizer, "text.txt", split="test", length=16, count=6)
        prune_model(loaded.model, tokens, Recipe(Wanda(), Pattern(4, 8)), progress=False)
        found = perplexity(loaded.model, test, progress=False)
        (row,) = cells[(cells.recipe == "wanda 4:8") & (cells.seed == seed)].itertuples()
        assert row.perplexity == found.value
        assert list(row.nll) == found.nll.tolist()
        assert (row.sequences, row.calibration_length, row.windows) == (4, 16, 6)
    assert list(cells[cells.seed.isna()].recipe) == ["dense", "magnitude 2:4", "magnitude 4:8"]


def test_what_exists_is_skipped_and_machines_merge_by_copying(planned, tmp_path):
    one, other, both = (tmp_path / name for name in ("one", "other", "both"))
    run_sweep(planned(("seeds: [0, 1]", "seeds: [0]")), one, workers=0)
    run_sweep(planned(("seeds: [0, 1]", "seeds: [1]"), ("dense", "ria")), other, workers=0)
    for folder in (one, other):
        shutil.copytree(folder, both, dirs_exist_ok=True)
    assert run_sweep(planned(), both, workers=0) == SweepOutcome(N_CELLS, 0, 0)
    assert len(figures(both)) == N_CELLS + 1  # RIA's
    cells = sorted((both / "cells").iterdir())
    other_name = cells[1].read_bytes(), cells[1].with_name("0" * 64 + ".parquet")
    other_name[1].write_bytes(other_name[0])  # no cell of that key
    with pytest.warns(RuntimeWarning, match="000.parquet is damaged"):
        assert len(load_cells(both)) == N_CELLS + 1
    other_name[1].unlink()
    damaged = min((both / "cells").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.warns(RuntimeWarning, match="damaged"):
        assert len(load_cells(both)) == N_CELLS
    jobs = missing_jobs(planned(("dense", "ria")), both) + missing_jobs(planned(), both)
    assert damaged.stem in {cell.key for job in jobs for cell in job.cells}


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (("seeds: [0, 1]", "seeds: [0, 2]"), 1 + 2 + 2),
        (("sequences: 4", "sequences: 5"), 1 + 2),
        (("windows: 6", "windows: 7"), 0),
        (("models: [tiny]", "models: [{model: tiny, dtype: bfloat16}]"), 0),
        (("magnitude, wanda", "wanda, magnitude"), N_CELLS),
        (("dense", "{method: wanda, pattern: '2:4', calibration: dense}"), N_CELLS - 1),
    ],
)
def test_a_cell_is_measured_anew_when_anything_it_depends_on_changes(planned, change, kept):
    before = {cell.key for cell in planned().cells}
    after = {cell.key for cell in planned(change).cells}
    assert len(before & after) == kept


def test_other_weights_are_another_model(planned, home):
    before = {cell.key for cell in planned().cells}
    shutil.copytree(home / "tiny", home / "same" / "tiny")
    assert {c.key for c in planned(("[tiny]", "[same/tiny]")).cells} == before
    random_model("llama", seed=1).save_pretrained(home / "same" / "tiny")
    assert not {c.key for c in planned(("[tiny]", "[same/tiny]")).cells} & before


def test_lists_multiply_and_searches_are_tried_where_there_are_groups(planned):
    recipes = '{method: [wanda, esparse], pattern: ["2:4", 50%], search: [none, gns]}'
    sweep = planned(
        ('{method: [magnitude, wanda], pattern: ["2:4", "4:8"]}', recipes),
        ("baseline: wanda\n", "baseline: wanda 50%\n"),
        ("length: 16, windows", "length: [8, 16], windows"),
    )
    labels = list(dict.fromkeys(job.label for job in sweep.jobs))
    of = [f"{m} {rest}" for m in ("wanda", "esparse") for rest in ("2:4", "2:4, gns", "50%")]
    assert labels == ["dense", *of]
    assert len(sweep.cells) == (1 + 6 * 2) * 2
    again = planned(("- dense", "- dense\n  - {method: esparse, set: {alpha: [1, 3.0]}}"))
    assert [j.label for j in again.jobs][1:4:2] == ["esparse 2:4, alpha=1.0", "esparse 2:4"]
    tuned = planned(("- dense", "- dense\n  - {method: wanda, tune: {epochs: [2, 10]}}"))
    assert [j.label for j in tuned.jobs][1:4:2] == ["wanda 2:4, tuned epochs=2", "wanda 2:4, tuned"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("seeds:", "seds:"), "Did you mean 'seeds'?"),
        (("sequences: 4", "sequence: 4"), "Did you mean 'sequences'?"),
        (("- dense", "- {method: wanda, tune: {epoch: 2}}"), "Did you mean 'epochs'?"),
        (("windows: 6", "window: 6"), "evaluations, entry 1: Unknown key"),
        (("pattern:", "patern:"), "Did you mean 'pattern'?"),
        (("magnitude, wanda", "magnitude, wonda"), "recipes, entry 2: Unknown method 'wonda'. Did"),
        (('"4:8"', "4:8"), "the pattern 4:8 needs quotes, '4:8': YAML reads it as 248"),
        (('"4:8"', '"8:4"'), "8:4"),
        (('"4:8"', '"4:8"], search: [gnss'), "Did you mean 'gns'"),
        (('"2:4", "4:8"', '"50%"], search: [gns'), "no recipe is left"),
        (("[magnitude, wanda]", "[]"), "baseline 'wanda'"),
        (("corpus: text.txt, seq", "corpus: wikipedio, seq"), "Did you mean 'wikipedia'?"),
        (("models: [tiny]", "models: []"), "has no models"),
        (("models: [tiny]", "models: tiny"), "models: expected a list"),
        (("models: [tiny]", "models: [{name: tiny}]"), "Unknown key of a model 'name'"),
        (("models: [tiny]", "models: [tiny"), "is not YAML"),
        (("[0, 1]", "[]"), "seeds is empty"),
        (("[0, 1]", "[a]"), "seeds: expected whole numbers, got 'a'"),
        (("sequences: 4", "sequences: four"), "sequences got 'four', expected a whole number"),
        (("length: 16, windows: 6", "length: 16, windows: 999"), "999 were asked for"),
        (("baseline: wanda", "baseline: wonda"), "Did you mean 'wanda'"),
        (("- dense", "- {method: dense, pattern: '4:8'}"), "takes nothing else"),
        (("- dense", "- {method: dense, objective: output}"), "takes nothing else"),
        (("- dense", "- {method: wanda, objective: output}"), "Take the search 'best-of'"),
        (("device: cpu", "device: gpu"), "Unknown device 'gpu'"),
    ],
)
def test_a_bad_file_is_refused_with_what_to_do(planned, tmp_path, change, says):
    with pytest.raises(InputError) as error:
        planned(change)
    assert says in str(error.value)
    result = esparse("sweep", tmp_path / "tiny_sweep.yaml", "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_syntax_error_has_its_line(planned, tmp_path):
    with pytest.raises(InputError, match=r"line 4, column \d+ is not YAML"):
        planned(("- dense", "- dense: [}"))
    with pytest.raises(InputError, match="Cannot read"):
        read_sweep(tmp_path / "nowhere.yaml")


def test_a_failing_cell_keeps_its_error_and_the_others_go_on(planned, home, tmp_path):
    late = home / "late.txt"  # a text that changes after the sweep was planned
    late.write_text("One text. " * 40)
    tested = planned(("text.txt, length", "[text.txt, late.txt], length"))
    calibrated = planned(("text.txt, seq", "late.txt, seq"))
    late.write_text("Other text. " * 40)
    out = tmp_path / "tested"
    assert run_sweep(tested, out, workers=0) == SweepOutcome(0, N_CELLS, N_CELLS)
    assert set(load_cells(out).evaluation) == {"text.txt test, 6 × 16"}
    failed = load_failures(out)
    assert set(failed.evaluation) == {"late.txt test, 6 × 16"}
    assert set(failed.error_kind) == {"EsparseError"}
    assert failed.error.str.contains("the tokens of late.txt is not what the sweep was").all()
    out = tmp_path / "calibrated"
    assert run_sweep(calibrated, out, workers=0) == SweepOutcome(0, 3, 4)
    assert set(load_failures(out).recipe) == {"wanda 2:4", "wanda 4:8"}
    # What was wrong is mended: the next run tries again.
    late.write_text("One text. " * 40)
    assert run_sweep(calibrated, out, workers=0) == SweepOutcome(3, 4, 0)
    assert load_failures(out).empty


def kill_one_worker(folder, cells_then):
    """SIGKILL one process of the cluster once the first cell is there."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        done = len(list((folder / "cells").glob("*.parquet")))
        family = psutil.Process().children(recursive=True) if done else []
        workers = [p for p in family if "spawn_main" in " ".join(p.cmdline())]
        if workers:
            os.kill(workers[0].pid, signal.SIGKILL)
            cells_then.append(done)
            return
        time.sleep(0.01)


def test_a_worker_that_is_killed_costs_nothing_and_all_equals_a_serial_run(planned, tmp_path):
    sweep = planned(("seeds: [0, 1]", f"seeds: {list(range(12))}"))
    n_cells = 1 + 2 + 2 * 12
    cells_then = []
    killer = threading.Thread(target=kill_one_worker, args=(tmp_path / "out", cells_then))
    killer.start()
    outcome = run_sweep(sweep, tmp_path / "out", workers=2)
    killer.join()
    assert cells_then, load_failures(tmp_path / "out").error.unique()
    assert 1 <= cells_then[0] < n_cells / 2
    assert outcome == SweepOutcome(0, n_cells, 0)
    run_sweep(sweep, tmp_path / "serial", workers=0)
    assert figures(tmp_path / "out") == pytest.approx(figures(tmp_path / "serial"), rel=1e-12)
    assert len(figures(tmp_path / "out")) == n_cells


def test_a_call_that_kills_every_worker_is_given_up_and_the_others_are_made(tmp_path):
    deadly = f"(open({str(tmp_path / 'deaths')!r}, 'a').write('x'), __import__('os')._exit(9))"
    calls = ["6 * 7", deadly, "1 / 0", *(f"{i} + 1" for i in range(5))]
    found = list(call_each(eval, calls, workers=2))
    assert len(found) == len(calls)
    found = dict(found)
    assert isinstance(found[1], DeadWorker)
    assert str(found[1]).startswith(f"The process died {(tmp_path / 'deaths').stat().st_size} t")
    assert isinstance(found[2], ZeroDivisionError)
    assert [found[i] for i in (0, 3, 4, 5, 6, 7)] == [42, 1, 2, 3, 4, 5]


def test_a_cluster_by_its_address_does_the_work(planned, tmp_path):
    from distributed import LocalCluster

    sweep = planned()
    with LocalCluster(
        n_workers=1,
        threads_per_worker=3,
        processes=False,
        protocol="tcp",
        dashboard_address=None,
        host="127.0.0.1",
    ) as cluster:
        address = cluster.scheduler_address
        outcome = run_sweep(sweep, tmp_path / "a", cluster=address)
    assert outcome == SweepOutcome(0, N_CELLS, 0), load_failures(tmp_path / "a").error.to_list()
    with pytest.raises(EsparseError, match="No Dask scheduler answers"):
        list(call_each(eval, ["1"], cluster="nowhere"))
    with pytest.raises(InputError, match="none with a cluster"):
        list(call_each(eval, ["1"], cluster="nowhere", workers=2))


def test_a_scheduler_that_goes_away_fails_no_cell(tmp_path):
    file = tmp_path / "scheduler.json"
    command = ["dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", file]
    with subprocess.Popen(
        [sys.executable, "-m", *command, "--no-dashboard"], stderr=-3
    ) as scheduler:
        end = time.monotonic() + 30
        while not (file.exists() and file.read_text()) and time.monotonic() < end:
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"]
        threading.Timer(1, scheduler.kill).start()
        with pytest.raises(EsparseError, match="The Dask scheduler went away"):
            list(call_each(eval, ["1"], cluster=address))  # it has no worker yet


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_run_that_is_stopped_keeps_what_is_done_and_goes_on(planned, home, tmp_path, stop, code):
    sweep = planned(("seeds: [0, 1]", f"seeds: {list(range(40))}"))
    program = (  # where a script runs the tests in the background, they ignore SIGINT
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from esparse_lab.cli import main; main()"
    )
    arguments = ["sweep", tmp_path / "tiny_sweep.yaml", "--out", tmp_path / "out", "--workers", "0"]
    run = subprocess.Popen([sys.executable, "-c", program, *arguments], cwd=home, stderr=-1)
    while len(list((tmp_path / "out").glob("cells/*.parquet"))) < 4:
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(stop)
    said = run.communicate()[1].decode()
    assert run.returncode == code
    assert ("goes on where it was" in said) == (stop == signal.SIGINT)
    done = len(figures(tmp_path / "out"))
    n_cells = 1 + 2 + 2 * 40
    assert 4 <= done < n_cells
    assert run_sweep(sweep, tmp_path / "out", workers=0) == SweepOutcome(done, n_cells - done, 0)


def test_a_full_disk_is_an_error_and_leaves_no_half_file(planned, tmp_path, monkeypatch):
    planned()
    command = ["sweep", tmp_path / "tiny_sweep.yaml", "--out", tmp_path / "out", "--workers", 0]
    calls = []

    def full(_):
        calls.append(1)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        result = esparse(*command)
    assert result.exit_code == 1
    assert "No space left on device. Make room" in result.stderr
    assert len(list((tmp_path / "out").rglob("*.parquet"))) == 3
    assert [p for p in (tmp_path / "out" / "cells").iterdir() if p.suffix != ".parquet"] == []
    result = esparse(*command)
    assert f"{N_CELLS - 3} cells measured, 3 were there, 0 failed" in result.stdout


def test_the_command_lists_measures_and_tabulates(planned, tmp_path):
    planned()
    file, out = tmp_path / "tiny_sweep.yaml", tmp_path / "out"
    listed = esparse("sweep", file, "--out", out, "--dry-run")
    assert listed.exit_code == 0
    assert listed.stdout.count("missing") == N_CELLS
    assert (
        "tiny | wanda 4:8 | text.txt train, 4 × 16, seed 1 | text.txt test, 6 × 16" in listed.stdout
    )
    assert not out.exists()
    done = esparse("sweep", file, "--out", out, "--workers", 0)
    assert done.exit_code == 0, done.stderr
    summary = pd.read_csv(out / "tables" / "tiny_sweep.summary.csv")
    assert list(summary.seeds) == [1, 1, 1, 2, 2]
    paired = pd.read_csv(out / "tables" / "tiny_sweep.paired.csv")
    assert list(paired.recipe + " - " + paired.baseline) == [
        "magnitude 2:4 - wanda 2:4",
        "magnitude 4:8 - wanda 4:8",
    ]
    record = json.loads((out / "records" / "tiny_sweep.json").read_text())
    assert record["facts"]["baseline"] == "wanda"
    assert esparse("sweep", file, "--out", out, "--dry-run").stdout.count("exists") == N_CELLS
    bad = esparse("sweep", file, "--workers", 1, "--cluster", "tcp://x")
    assert (bad.exit_code, "give one of them" in bad.stderr) == (2, True)


def test_one_recipe_alone_has_no_table_of_differences(planned, tmp_path):
    planned(('  - {method: [magnitude, wanda], pattern: ["2:4", "4:8"]}', "  - wanda"))
    out = tmp_path / "out"
    done = esparse("sweep", tmp_path / "tiny_sweep.yaml", "--out", out, "--workers", 0)
    assert done.exit_code == 0, done.stderr
    assert "Empty" not in done.stdout
    assert not (out / "tables" / "tiny_sweep.paired.csv").exists()


def test_differences_are_paired_by_seed_and_window(planned, tmp_path):
    run_sweep(planned(), tmp_path, workers=0)
    cells = load_cells(tmp_path)
    pick = {(r.recipe, r.seed if pd.notna(r.seed) else None): r for r in cells.itertuples()}
    summary = summary_table(cells).set_index("recipe")
    each = [pick["wanda 2:4", seed].perplexity for seed in (0, 1)]
    assert summary.perplexity["wanda 2:4"] == pytest.approx(sum(each) / 2)
    assert summary.spread["wanda 2:4"] == pytest.approx(abs(each[0] - each[1]) / 2**0.5)
    assert summary.seeds["wanda 2:4"] == 2
    assert np.isnan(summary.spread["dense"])

    paired = paired_table(cells, "dense").set_index("recipe")
    dense = pick["dense", None].perplexity
    assert paired.difference["wanda 2:4"] == pytest.approx(sum(each) / 2 - dense)
    assert paired.lowest["wanda 2:4"] == pytest.approx(min(each) - dense)
    assert "dense" not in paired.index

    assert paired.ratio["wanda 2:4"] == pytest.approx((each[0] * each[1]) ** 0.5 / dense)
    assert paired.ratio_highest["wanda 2:4"] == pytest.approx(max(each) / dense)

    row = paired_table(cells, "wanda 2:4").set_index("recipe").loc["wanda 4:8"]
    apart = [pick["wanda 4:8", s].perplexity - pick["wanda 2:4", s].perplexity for s in (0, 1)]
    assert (row.lowest, row.highest, row.seeds) == (min(apart), max(apart), 2)

    one = cells[cells.seed.isna() | (cells.seed == 0)]
    row = paired_table(one, "wanda 2:4").set_index("recipe").loc["wanda 4:8"]
    a, b = pick["wanda 4:8", 0].nll, pick["wanda 2:4", 0].nll
    oracle = stats.bootstrap(
        (a, b),
        lambda x, y, axis=-1: np.exp(x.mean(axis)) - np.exp(y.mean(axis)),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(5),
    ).confidence_interval
    width = oracle.high - oracle.low
    assert row.difference == pytest.approx(np.exp(a.mean()) - np.exp(b.mean()))
    assert (row.low, row.high) == pytest.approx((oracle.low, oracle.high), abs=0.05 * width)


def test_what_is_hard_for_both_models_is_no_uncertainty():
    hard = np.array([1.0, 5.0, 2.0, 4.0])
    assert set(paired_bootstrap(hard, hard).values()) == {0, 1}
    twice = paired_bootstrap(hard + np.log(2), hard)  # at twice the perplexity on every window
    assert (twice["ratio_low"], twice["ratio_high"]) == pytest.approx((2, 2))
    assert np.e < twice["low"] < np.exp(3) < twice["high"] < np.exp(5)
    with pytest.raises(InputError, match="the same windows"):
        paired_bootstrap(hard, hard[:3])
    with pytest.raises(InputError, match="between 0 and 1"):
        paired_bootstrap(hard, hard, confidence=95)


def test_cells_of_other_conditions_are_never_compared_or_averaged(planned, tmp_path):
    short = ("length: 16, windows: 6", "length: 8, windows: 6")
    run_sweep(planned(), tmp_path, workers=0)
    run_sweep(planned(short), tmp_path, workers=0)
    cells = load_cells(tmp_path)
    assert cells.provenance.nunique() == 2
    summary = summary_table(cells)
    assert set(summary[summary.recipe == "wanda 2:4"].seeds) == {2}
    paired = paired_table(cells, "dense").set_index(["provenance", "recipe"])
    assert len(paired) == 2 * 4
    for row in cells[cells.recipe == "magnitude 2:4"].itertuples():
        dense = cells[(cells.recipe == "dense") & (cells.provenance == row.provenance)].perplexity
        of_one = paired.loc[row.provenance, "magnitude 2:4"]
        assert (of_one.difference, of_one.seeds) == (row.perplexity - dense.item(), 1)

    apart = cells[(cells.recipe != "dense") | (cells.window_length == 8)]
    with pytest.raises(InputError) as error:
        paired_table(apart, "dense")
    assert "evaluation.length 16 against 8" in str(error.value)
    assert "Measure both in one sweep" in str(error.value)

    other_seeds = cells[(cells.recipe != "wanda 2:4") | (cells.seed == 0)]
    other_seeds = other_seeds[(other_seeds.recipe != "wanda 4:8") | (other_seeds.seed == 1)]
    with pytest.raises(InputError, match=r"seeds 1 against .*seeds 0"):
        paired_table(other_seeds, "wanda 2:4")
    with pytest.raises(InputError, match="Did you mean 'wanda'"):
        paired_table(cells, "wonda")


def test_recorded_ladders_are_cells_without_losses():
    cells = recorded_cells()
    kept, _ = reference_ladder("methods_seed")
    row = kept[(kept.method == "ria") & (kept.pattern == "2:4") & (kept.search == "gns")]
    cell = cells[cells.recipe == "ria 2:4, gns"]
    assert list(cell.perplexity) == list(row.perplexity[~row.reconstruct])
    assert set(cell.calibration_text) == {"c4_sample.jsonl train, 128 × 2048"}
    assert (cells.recipe == "dense").sum() == 1
    paired = paired_table(cells, "wanda").set_index("recipe")
    wanda = cells[cells.recipe == "wanda 2:4"].set_index("seed").perplexity
    apart = cell.set_index("seed").perplexity - wanda
    assert paired.difference["ria 2:4, gns"] == pytest.approx(apart.mean())
    assert (paired.lowest["ria 2:4, gns"], paired.seeds["ria 2:4, gns"]) == (apart.min(), 3)
    assert paired[["low", "high", "ratio_low", "ratio_high"]].isna().all(axis=None)
    assert recorded_cells("nothing").empty


def test_kept_sweeps_are_cells_with_losses(planned, monkeypatch, tmp_path):
    cells = kept_cells()
    assert cells.key.is_unique
    run_sweep(planned(), tmp_path / "out", workers=0)
    assert set(cells) == set(load_cells(tmp_path / "out"))
    assert not cells.duplicated(["provenance", "recipe", "calibration_text", "seed"]).any()
    for cell in cells.itertuples():
        about = json.loads(cell.about)
        assert hashed(about) == cell.key
        assert np.exp(np.asarray(cell.nll, float).mean()) == pytest.approx(cell.perplexity)
    of_sweeps = [record.stem for record in REFERENCE.glob("records/sweep_*.json")]
    assert {"sweep_seeds", "sweep_ablation", "sweep_sensitivity"} <= {*of_sweeps}
    shown = set()
    for name in of_sweeps:
        kept = pd.read_csv(REFERENCE / "tables" / f"{name}.summary.csv").set_index("recipe")
        of_one = kept_cells(name.removeprefix("sweep_"))
        assert of_one.provenance.nunique() == 1
        shown |= {*of_one.key}
        found = summary_table(of_one).set_index("recipe")
        columns = ["perplexity", "spread", "seeds"]
        pd.testing.assert_frame_equal(found[columns], kept[columns], check_index_type=False)
    assert shown == {*cells.key}
    assert {*kept_cells("seeds", "objective").key} == {
        *kept_cells("seeds").key,
        *kept_cells("objective").key,
    }
    assert kept_cells("nothing").empty
    monkeypatch.setattr(recorded, "REFERENCE", tmp_path)
    pd.testing.assert_frame_equal(kept_cells(), recorded_cells())


def test_what_a_sweep_still_lacks(planned, tmp_path):
    run_sweep(planned(("seeds: [0, 1]", "seeds: [0]"), ("dense", "ria")), tmp_path, workers=0)
    planned()
    lacking = unmeasured(tmp_path / "tiny_sweep.yaml", load_cells(tmp_path))
    # Dense was not asked for there, and Wanda on the first seed alone.
    assert dict(zip(lacking.recipe, lacking.seeds, strict=True)) == {
        "dense": "",
        "wanda 2:4": "1",
        "wanda 4:8": "1",
    }
    run_sweep(planned(), tmp_path, workers=0)
    assert unmeasured(tmp_path / "tiny_sweep.yaml", load_cells(tmp_path)).empty


def parts_cells():
    """Perplexities that are products of what each part does, on two seeds and one window."""
    factor = {"esparse": 0.9, "wanda": 1.0}
    search = {"none": 1.0, "gns": 0.8, "lbs": 0.7, "gns+lbs": 0.5}
    about = json.dumps(dict.fromkeys(("model", "evaluation", "versions", "source")))
    rows = (
        {
            **{"model": "m", "evaluation": "e", "calibration_text": "c", "provenance": "p"},
            **{"recipe": f"{m} 2:4" + f", {s}" * (s != "none"), "pattern": "2:4", "about": about},
            **{"seed": seed, "perplexity": 100 * (seed + 1) * factor[m] * search[s]},
            **{"nll": [np.log(100 * (seed + 1) * factor[m] * search[s])]},
            **{"retained_share": 0.5, "prune_seconds": 1.0, "peak_memory_gib": 1.0},
        }
        for m in factor
        for s in search
        for seed in (0, 1)
    )
    return pd.DataFrame(rows)


def test_parts_stand_alone_and_are_left_out():
    table = ablation_table(parts_cells()).set_index("parts")
    assert dict(zip(table.index, table.perplexity, strict=True)) == pytest.approx(
        {
            "norm alone (Wanda)": 150,
            "entropy alone": 135,
            "GNS alone": 120,
            "LBS alone": 105,
            "all but LBS": 108,
            "all but GNS": 94.5,
            "all but entropy": 75,
            "all (E-Sparse)": 67.5,
        }
    )
    cells = parts_cells()
    assert len(ablation_table(cells[cells.recipe.str.contains("wanda")])) == 4
    assert ablation_table(cells.assign(recipe="dense", pattern="")).empty


def test_each_part_is_compared_with_the_same_without_it():
    parts = parts_table(parts_cells(), draws=10)
    ratios = parts.set_index(["part", "beside"]).ratio
    assert len(ratios) == 12
    assert ratios["entropy"].tolist() == pytest.approx([0.9] * 4)
    assert ratios["GNS"].to_dict() == pytest.approx(
        {"norm": 0.8, "entropy": 0.8, "LBS": 5 / 7, "entropy + LBS": 5 / 7}
    )
    assert ratios["LBS", "entropy + GNS"] == pytest.approx(5 / 8)
    one = parts[(parts.part == "LBS") & (parts.beside == "norm")].iloc[0]
    assert (one.baseline, one.recipe) == ("wanda 2:4", "wanda 2:4, lbs")
    assert (one.lowest, one.highest) == pytest.approx((-60, -30))
    cells = parts_cells()
    none = parts_table(cells[cells.recipe == "wanda 2:4"])
    assert (len(none), *none) == (0, *parts)  # no row, the same columns


def test_without_dask_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(EsparseError, match=r"pip install 'esparse_lab\[sweep\]'.*--workers 0"):
        list(call_each(eval, ["1"], workers=1))
    assert list(call_each(eval, ["1 + 1", "1 + 2"], workers=0)) == [(0, 2), (1, 3)]


def test_processes_share_cores_and_memory():
    threads = "__import__('os').environ['OMP_NUM_THREADS']"
    share = str(max(1, cores() // 2))
    assert dict(call_each(eval, [threads] * 2, workers=8)) == {0: share, 1: share}
    assert processes_that_fit(0) >= 1
    assert processes_that_fit(1e6) == 1
    free = psutil.virtual_memory().available / 2**30
    assert processes_that_fit(free / 1.5) == 1


@pytest.mark.embedded
@pytest.mark.slow
@pytest.mark.skipif(not embedded_model_folder().is_dir(), reason="needs `esparse fetch`")
def test_the_examples_name_what_is_there(monkeypatch):
    for file in sorted((HOME / "data" / "sweeps").glob("*.yaml")):
        if "wikitext2" in file.read_text():  # is fetched
            assert planned_draws(file), file
        else:
            assert read_sweep(file).cells, file


def test_a_local_cluster_listens_on_this_machine_alone():
    psutil = pytest.importorskip("psutil")
    pytest.importorskip("distributed")
    from esparse_lab.sweep.execution import _local_cluster

    def listening():
        me = psutil.Process()
        sockets = [c for p in (me, *me.children(recursive=True)) for c in p.net_connections("inet")]
        return {c.laddr for c in sockets if c.status == psutil.CONN_LISTEN}

    before = listening()
    with _local_cluster(1, 1, "cpu", 0.1) as cluster, cluster.get_client() as client:
        client.wait_for_workers(1, timeout=60)
        opened = listening() - before
    assert len(opened) >= 3
    assert {address.ip for address in opened} == {"127.0.0.1"}
