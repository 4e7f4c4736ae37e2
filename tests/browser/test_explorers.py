"""Explorers as a user has them: in JupyterLab, with mouse and keyboard."""

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

MODEL = """import torch
from tiny_models import random_model
from esparse_lab import explorers
from esparse_lab.models import LoadedModel
loaded = LoadedModel(random_model("llama"), None, "tiny", "none")
tokens = torch.randint(256, (5, 12), generator=torch.Generator().manual_seed(1))"""
TITLE = "plot.layout.title.text"
CHOSEN = "plot.data[5].x.length"  # rings in panel (a)
CAPTION = "plot.layout.annotations.find(a => a.name == 'caption').text"


def test_channels(open_notebook):
    notebook = open_notebook(
        "channels.ipynb", MODEL, "explorers.Channels(loaded, tokens, role='down_proj')"
    )
    page = notebook.page
    notebook.run_all()
    notebook.wait("plot._fullLayout.width > 900")  # as wide as the page
    assert notebook.value("plot.data[0].x.length") == 40
    assert "model.layers.0.mlp.down_proj" in notebook.value(TITLE)

    # Another layer, other bins, another weight of the norm.
    notebook.control("layer").locator("select").select_option("q_proj")
    notebook.wait("plot.data[0].x.length == 24")
    notebook.key("block", "ArrowRight")
    notebook.wait(f"{TITLE}.includes('model.layers.1.self_attn.q_proj')")
    notebook.key("bins K", "ArrowLeft")
    notebook.wait("plot.data.at(-5).x.length == 99")
    notebook.control("bins span each").locator("select").select_option("layer")
    notebook.wait(f"{CAPTION}.includes('99 bins over each layer')")
    notebook.key("α (weight of the norm)", "ArrowRight")
    notebook.wait(f"{CAPTION}.includes('3.1 · norm')")

    # A box chooses what plotly itself found in it; the histograms and the settings follow.
    notebook.drag("xy", (0.02, 0.02), (0.6, 0.98))
    notebook.wait(f"plot.data[0].selectedpoints?.length == {CHOSEN}")
    chosen = notebook.value(CHOSEN)
    assert 0 < chosen < 24
    assert notebook.value("plot.data.slice(-5).filter(t => t.visible !== false).length") == min(
        chosen, 5
    )
    text = page.locator(".widget-text input").last.input_value()
    assert text.startswith("-p block=1 -p role=q_proj -p bins=99 -p bin_range=layer -p alpha=3.1")
    assert len(text.partition("channels=")[2].split(",")) == chosen
    page.locator(".widget-html button").click()
    assert page.evaluate("navigator.clipboard.readText()") == text

    # Pasted settings; what is wrong with them is said on the panel.
    notebook.paste("-p block=2 -p role=upp_proj")
    page.wait_for_selector("[role=alert]:has-text(\"Did you mean 'up_proj'\")")
    notebook.paste("-p block=2 -p role=up_proj -p channels=1,2")
    notebook.wait(f"{TITLE}.includes('model.layers.2.mlp.up_proj') && {CHOSEN} == 2")
    assert page.locator("[role=alert]").count() == 0

    # A kernel that starts anew leaves a dead panel; running the notebook again makes a live one.
    notebook.restart()
    notebook.run_all()
    notebook.wait(f"{TITLE}.includes('model.layers.0.mlp.down_proj')")
    notebook.key("block", "ArrowRight")
    notebook.wait(f"{TITLE}.includes('model.layers.1.mlp.down_proj')")


def test_the_map_opens_layers(open_notebook):
    notebook = open_notebook("map.ipynb", MODEL, "explorers.Model(loaded, tokens)")
    notebook.run_all()
    notebook.control("measure").locator("select").select_option("disagreement")
    notebook.wait(f"{TITLE}.startsWith('Where the masks of esparse and wanda differ')")
    assert notebook.value("plot.data[0].z.length") == 3
    notebook.click("xy", (0.93, 0.83))  # the last cell
    notebook.wait(f"{TITLE}.includes('model.layers.2.mlp.down_proj')", plot=1)
    assert "Marked: model.layers.2.mlp.down_proj" in notebook.value(CAPTION)
    notebook.control("open below").locator("select").select_option("masks")
    notebook.wait("plot.data[0].type == 'heatmap' && plot.data.length == 9", plot=1)


def test_masks_are_drawn_anew_where_one_zooms(open_notebook):
    notebook = open_notebook("masks.ipynb", MODEL, "explorers.Masks(loaded, tokens, role='q_proj')")
    notebook.run_all()
    assert notebook.value("[plot.data[1].z.length, plot.data[1].z[0].length]") == [24, 24]
    notebook.drag("x5y5", (0.26, 0.26), (0.74, 0.52))
    notebook.wait("plot.data[1].z.length == 7 && plot.data[1].z[0].length == 12")
    assert notebook.value("[plot.data[1].x0, plot.data[1].y0]") == [6, 6]
    text = notebook.page.locator(".widget-text input").last.input_value()
    assert "-p rows=6,13 -p channels=6,18" in text
    notebook.page.locator(".modebar-btn[data-title='Reset axes']").click()
    notebook.wait("plot.data[1].z.length == 24")
    notebook.control("compared with").locator("select").select_option("magnitude")
    notebook.wait(f"{TITLE}.includes('magnitude')")


def test_two_explorers_of_one_model(open_notebook):
    notebook = open_notebook(
        "two.ipynb",
        MODEL,
        "explorers.Channels(loaded, tokens)",
        "explorers.Channels(loaded, tokens, block=1)",
    )
    notebook.run_all()
    notebook.wait(f"{TITLE}.includes('layers.1.')", plot=1)
    notebook.key("block", "ArrowRight")
    notebook.key("block", "ArrowRight")
    notebook.wait(f"{TITLE}.includes('layers.2.')", plot=0)
    assert "layers.1." in notebook.value(TITLE, plot=1)
