"""How often a figure is drawn in the browser for one thing that a user does."""

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CELLS = (
    """import torch
from tiny_models import random_model
from esparse_lab import explorers
from esparse_lab.models import LoadedModel
loaded = LoadedModel(random_model("llama"), None, "tiny", "none")
tokens = torch.randint(256, (5, 12), generator=torch.Generator().manual_seed(1))""",
    "explorers.Channels(loaded, tokens, role='down_proj')",
)


@pytest.fixture(scope="module")
def cell(open_notebook):
    notebook = open_notebook("redraws.ipynb", *CELLS)
    notebook.run_all()
    cell = notebook.cell(1)
    cell.wait("plot.data[0]?.x.length == 40 && plot._fullLayout.width > 900")
    cell.page.wait_for_timeout(1000)
    cell.value("(plot.on('plotly_afterplot', () => window.drawn++), 0)")
    return cell


def drawn(cell, act) -> int:
    """How many times the figure was drawn for what `act` does."""
    cell.page.evaluate("() => { window.drawn = 0 }")
    act()
    cell.page.wait_for_function("window.drawn > 0")
    cell.page.wait_for_timeout(1500)
    return cell.page.evaluate("window.drawn")


def test_a_slider_draws_once(cell):
    assert drawn(cell, lambda: cell.key("block", "ArrowRight")) == 1
    assert drawn(cell, lambda: cell.key("α (weight of the norm)", "ArrowRight")) == 1


def test_a_selection_and_leaving_it_draw_a_few_times_not_once_a_trace(cell):
    # Plotly's own outlines, the points it found, and what follows from the choice.
    assert drawn(cell, lambda: cell.drag("xy", (0.02, 0.02), (0.6, 0.98))) <= 4
    assert cell.value("plot.data[0].selectedpoints.length") > 0
    assert drawn(cell, lambda: cell.key("block", "ArrowRight")) <= 4
