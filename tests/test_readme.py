"""The README says what is so: its links lead somewhere and its figures are the kept ones."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esparse_lab.cli import app
from esparse_lab.tables import over_seeds, reference_ladder

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
