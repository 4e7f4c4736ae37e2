"""Explorers as a user has them: in JupyterLab, with mouse and keyboard."""

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
    "explorers.Channels(loaded, tokens, block=1)",
    "explorers.Masks(loaded, tokens, role='q_proj')",
    "explorers.Model(loaded, tokens)",
)
TITLE = "(plot.layout.title?.text ?? '')"
CHOSEN = "plot.data[5]?.x.length"  # rings in panel (a)
CAPTION = "((plot.layout.annotations ?? []).find(a => a.name == 'caption')?.text ?? '')"


@pytest.fixture(scope="module")
def notebook(open_notebook):
    notebook = open_notebook("explorers.ipynb", *CELLS)
    notebook.run_all()
    return notebook


def test_channels(notebook):
    cell, page = notebook.cell(1), notebook.page
    cell.wait("plot.data[0]?.x.length == 40")
    cell.wait("plot._fullLayout.width > 900")  # as wide as the page
    assert "model.layers.0.mlp.down_proj" in cell.value(TITLE)

    # Another layer, other bins, another weight of the norm.
    cell.control("layer").locator("select").select_option("q_proj")
    cell.wait("plot.data[0]?.x.length == 24")
    cell.key("block", "ArrowRight")
    cell.wait(f"{TITLE}.includes('model.layers.1.self_attn.q_proj')")
    cell.key("bins K", "ArrowLeft")
    cell.wait("plot.data.at(-5).x.length == 99")
    cell.control("bins span each").locator("select").select_option("layer")
    cell.wait(f"{CAPTION}.includes('99 bins over each layer')")
    cell.key("α (weight of the norm)", "ArrowRight")
    cell.wait(f"{CAPTION}.includes('3.1 · norm')")

    # A box chooses what plotly itself found in it; the histograms and the settings follow.
    cell.drag("xy", (0.02, 0.02), (0.6, 0.98))
    cell.wait(f"plot.data[0].selectedpoints?.length == {CHOSEN}")
    chosen = cell.value(CHOSEN)
    assert 0 < chosen < 24
    curves = "plot.data.slice(-5).filter(t => t.visible !== false).length"
    assert cell.value(curves) == min(chosen, 5)
    text = cell.settings()
    assert text.startswith("-p block=1 -p role=q_proj -p bins=99 -p bin_range=layer -p alpha=3.1")
    assert len(text.partition("channels=")[2].split(",")) == chosen
    cell.output.locator(".widget-html button").click()
    assert page.evaluate("navigator.clipboard.readText()") == text

    # Pasted settings; what is wrong with them is said on the panel.
    cell.paste("-p block=2 -p role=upp_proj")
    page.wait_for_selector("[role=alert]:has-text(\"Did you mean 'up_proj'\")")
    cell.paste("-p block=2 -p role=up_proj -p channels=1,2")
    cell.wait(f"{TITLE}.includes('model.layers.2.mlp.up_proj') && {CHOSEN} == 2")
    assert page.locator("[role=alert]").count() == 0

    # The other explorer of the same model stays where it was.
    assert "model.layers.1.self_attn.q_proj" in notebook.cell(2).value(TITLE)


def test_masks_are_drawn_anew_where_one_zooms(notebook):
    cell = notebook.cell(3)
    cell.wait("plot.data.length == 9 && plot._fullLayout.width > 900")
    assert cell.value("[plot.data[1].z.length, plot.data[1].z[0].length]") == [24, 24]
    cell.drag("x5y5", (0.26, 0.26), (0.74, 0.52))
    cell.wait("plot.data[1].z.length == 7 && plot.data[1].z[0].length == 12")
    assert cell.value("[plot.data[1].x0, plot.data[1].y0]") == [6, 6]
    assert cell.settings().endswith("-p rows=6,13 -p channels=6,18")
    cell.output.locator(".modebar-btn[data-title='Reset axes']").click()
    cell.wait("plot.data[1].z.length == 24")
    cell.control("compared with").locator("select").select_option("magnitude")
    cell.wait(f"{TITLE}.includes('magnitude')")


def test_the_map_opens_layers(notebook):
    cell = notebook.cell(4)
    cell.control("measure").locator("select").select_option("disagreement")
    cell.wait(f"{TITLE}.startsWith('Where the masks of esparse and wanda differ')")
    assert cell.value("plot.data[0].z.length") == 3
    cell.click("xy", (0.93, 0.83))  # the last cell
    cell.wait(f"{TITLE}.includes('model.layers.2.mlp.down_proj')", plot=1)
    assert "Marked: model.layers.2.mlp.down_proj" in cell.value(CAPTION)
    cell.control("open below").locator("select").select_option("masks")
    cell.wait("plot.data[0]?.type == 'heatmap' && plot.data.length == 9", plot=2)


def test_a_notebook_runs_again_after_its_kernel_was_restarted(notebook):
    notebook.restart()
    notebook.run_all()
    cell = notebook.cell(1)
    cell.wait(f"{TITLE}.includes('model.layers.0.mlp.down_proj')")
    cell.key("block", "ArrowRight")
    cell.wait(f"{TITLE}.includes('model.layers.1.mlp.down_proj')")
