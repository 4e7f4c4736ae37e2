"""The notebooks of the checkout and the profiles fit each other."""

import json
import re

import pytest

from esparse_lab.reports import NOTEBOOKS, plan_report
from esparse_lab.reports.html import NOTICED
from esparse_lab.reports.parameters import notebook_parameters
from esparse_lab.reports.profiles import PROFILES

pytestmark = pytest.mark.skipif(
    not list(NOTEBOOKS.glob("*.ipynb")), reason="there are no notebooks in this checkout"
)


@pytest.mark.parametrize("profile", PROFILES)
def test_each_value_of_a_profile_reaches_a_notebook_as_declared(profile):
    sources, values = plan_report("m", profile=profile)
    declared = {source.stem: notebook_parameters(source) for source in sources}
    for name, value in PROFILES[profile].items():
        takers = [notebook for notebook in declared if name in declared[notebook]]
        assert takers, f"no notebook declares {name}"
        for notebook in takers:
            assert declared[notebook][name].kind == type(value).__name__
            assert values[notebook][name] == value


def test_every_notebook_that_draws_text_takes_a_seed():
    drawing = [s for s in plan_report("m")[0] if "n_sequences" in notebook_parameters(s)]
    assert drawing
    for source in drawing:
        assert "seed" in notebook_parameters(source), source.name


@pytest.mark.parametrize("source", sorted(NOTEBOOKS.glob("[0-9]*.ipynb")), ids=lambda p: p.stem)
def test_every_notebook_opens_with_its_question_and_run_time_then_its_parameters(source):
    first, second = json.loads(source.read_text())["cells"][:2]
    text = "".join(first["source"])
    assert text.startswith("# ")
    assert "\n**Question.** " in text
    assert "\n**Run time** about " in text
    assert "parameters" in second["metadata"]["tags"]


def test_every_notebook_says_what_its_numbers_say():
    for source in plan_report("m")[0]:
        cells = json.loads(source.read_text())["cells"]
        assert f"## {NOTICED}" in ["".join(cell["source"]).strip() for cell in cells], source.name


def test_the_index_leads_to_every_notebook_in_order():
    cells = json.loads((NOTEBOOKS / "index.ipynb").read_text())["cells"]
    text = "".join(line for cell in cells for line in cell["source"])
    linked = re.findall(r"\]\((\d\d_\w+\.ipynb)\)", text)
    assert linked == [source.name for source in plan_report("m")[0]]
