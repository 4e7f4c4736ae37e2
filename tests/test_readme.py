"""The README says what is so: its links lead somewhere and its figures are the kept ones."""

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from esparse_lab.cli import app
from esparse_lab.tables import REFERENCE, over_seeds, reference_ladder

HOME = Path(__file__).parent.parent
README = (HOME / "README.md").read_text()


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
        assert link.startswith("https://") or (HOME / link).exists(), link


def test_notebooks_are_all_listed():
    listed = re.findall(r"\(notebooks/(\S+)\.ipynb\)", README)
    assert listed == sorted(p.stem for p in (HOME / "notebooks").glob("[0-9]*.ipynb"))


@pytest.mark.parametrize("line", re.findall(r"^esparse (prune .*?) *(?:#|$)", README, re.MULTILINE))
def test_commands_that_prune_are_understood(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # A name that is refused at once, after the recipe was understood.
    result = CliRunner().invoke(app, shlex.split(line.replace("MODEL", "smolm2-135m")))
    assert "Did you mean 'smollm2-135m'?" in result.stderr


def test_the_ladder_is_the_kept_one():
    kept = over_seeds(reference_ladder()[0]).set_index(["method", "pattern", "search"])
    rows = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in README.splitlines()
        if re.match(r"\| (magnitude|wanda|esparse) ", line)
    ]
    header = ["none", "gns", "gns+lbs"]
    found = {
        (method, pattern, search): value
        for method, pattern, *values in rows
        for search, value in zip(header, values, strict=True)
        if value != "–"
    }
    assert found == {
        key: f"{cell.perplexity:.1f} ({cell.lowest:.1f} to {cell.highest:.1f})"
        for key, cell in kept.iterrows()
        if key[0] != "dense"
    }
    assert f"Dense: {kept.perplexity['dense', '', 'none']:.1f}." in README


def test_every_method_is_the_kept_one():
    kept = over_seeds(reference_ladder("methods_seed")[0])
    kept = kept[~kept.dense].set_index(["pattern", "search", "method"])
    columns = [
        ("2:4", "none"),
        ("2:4", "gns"),
        ("2:4", "gns+lbs"),
        ("4:8", "none"),
        ("4:8", "gns+lbs"),
        ("50%", "none"),
    ]
    rows = rows_of_readme(r"`\w+` \| [\d.]+ \|")
    assert [row[0].strip("`") for row in rows] == list(dict.fromkeys(r[0].strip("`") for r in rows))
    assert {row[0].strip("`") for row in rows} == set(kept.index.get_level_values("method"))
    for name, *cells, cost in rows:
        of_method = kept.xs(name.strip("`"), level="method")
        assert cells == [f"{of_method.perplexity[column]:.1f}" for column in columns]
        plain = of_method.loc["2:4", "none"]
        assert cost == f"{plain.prune_seconds:.1f} s, {plain.peak_memory_gib:.1f} GiB"


def rows_of_readme(pattern: str) -> list[list[str]]:
    """The cells of the table rows that begin so."""
    found = [line for line in README.splitlines() if re.match(rf"\| {pattern}", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found]


def test_sizes_are_the_kept_ones():
    kept = pd.read_csv(REFERENCE / "tables" / "size_h100.csv")
    for shape, method, time, gpu, cpu in rows_of_readme("Llama-.*block"):
        key = shape.split(",")[0].lower().replace("llama-2-", "llama2-")
        run = kept[(kept["shape"] == key) & (kept.method == method)]
        assert len(run) == int(re.search(r", (\d+) ", shape)[1])
        wanted = run.seconds.median() if "a block" in time else run.seconds.sum()
        assert float(time.split()[0]) == pytest.approx(wanted, rel=0.02)
        assert float(gpu.split()[0]) == pytest.approx(run.peak_gpu_gib.max(), abs=0.05)
        ends = run.resident_cpu_gib
        said = [float(x) for x in re.findall(r"[\d.]+", cpu)]
        assert said[0] == pytest.approx(ends.iloc[0], abs=0.06)
        assert said[-1] == pytest.approx(ends.max(), abs=0.06)


def test_the_comparison_with_the_authors_code_is_the_kept_one():
    kept = pd.read_csv(REFERENCE / "tables" / "peers_h100.csv").set_index("method")
    for name, theirs, ours, ratio, perplexities in rows_of_readme(r"(Wanda|SparseGPT) \| [\d.]+ s"):
        row = kept.loc[name.lower()]
        assert theirs == f"{row.seconds_theirs:.1f} s"
        assert ours == f"{row.seconds_ours:.1f} s"
        assert ratio == f"{row.times_as_fast:.1f}"
        assert perplexities == f"{row.perplexity_theirs:.1f}, {row.perplexity_ours:.1f}"
