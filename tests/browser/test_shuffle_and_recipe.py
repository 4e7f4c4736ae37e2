"""Searches played step by step and recipes measured, in JupyterLab, with mouse and keyboard."""

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

MODEL = """import torch
from tiny_models import random_model
from esparse_lab import explorers
from esparse_lab.models import LoadedModel
loaded = LoadedModel(random_model("llama", num_hidden_layers=24), None, "tiny", "none")
tokens = torch.randint(256, (5, 12), generator=torch.Generator().manual_seed(1))
test = torch.randint(256, (3000, 24), generator=torch.Generator().manual_seed(2))"""
TITLE = "plot.layout.title.text.replaceAll('<br>', ' ')"
ROWS = "plot.data.find(t => t.type == 'table').cells.values"


def test_a_search_is_played_and_scrubbed(open_notebook):
    notebook = open_notebook("shuffle.ipynb", MODEL, "explorers.Shuffle(loaded, tokens)")
    notebook.run_all()
    cell = notebook.cell(1)
    assert "step 2 of gns+lbs" not in cell.value(TITLE)  # it begins with the last one
    last = int(cell.value(f"{TITLE}.match(/step (\\d+)/)[1]"))
    assert last > 2
    cell.key("step", "ArrowLeft")
    cell.wait(f"{TITLE}.includes('at step {last - 1} of gns+lbs')")
    ring = "plot.data.find(t => t.marker?.symbol == 'circle-open').x[0]"
    assert cell.value(ring) == last - 1
    cell.control("search").locator("select").select_option("gns")
    cell.wait(f"{TITLE}.includes('step 1 of gns ')")
    cell.paste("-p step=0")
    cell.wait(f"{TITLE}.includes('step 0 of gns ')")
    cell.output.locator(".widget-play button").first.click()
    cell.wait(f"{TITLE}.includes('step 1 of gns ')")
    cell.paste("-p rows=0,8 -p channels=4,12")
    cell.wait("plot.data.filter(t => t.type == 'heatmap')[1].z.length == 8")
    cell.control("pattern").locator("input").fill("4:9")
    cell.control("pattern").locator("input").press("Enter")
    cell.wait(f"{TITLE}.includes('the 4:9 mask')")
    assert cell.value(f"{ROWS}[0]") == ["none", "gns"]  # blocks of 256 hold no groups of 9
    cell.control("search").locator("select").select_option("gns+lbs")
    notebook.page.wait_for_selector("[role=alert]:has-text('does not hold whole groups of 9')")
    assert "-p search=gns " in cell.settings()


def test_recipes_are_measured_compared_and_cancelled(open_notebook):
    notebook = open_notebook(
        "recipe.ipynb",
        MODEL,
        "recipe = explorers.Recipe(loaded, tokens, test)\nrecipe",
        "explorers.Recipe(recipe.reading, None, test, method='wanda')",
    )
    notebook.run_all()
    page, one, other = notebook.page, notebook.cell(1), notebook.cell(2)
    one.control("alpha").locator("input").fill("1.5")
    one.control("alpha").locator("input").press("Enter")
    one.wait(f"{TITLE}.startsWith('esparse (alpha=1.5) 2:4: keeps about')")
    one.output.locator("button:has-text('Measure perplexity')").click()
    one.wait(f"{TITLE}.includes('(measured)') && {ROWS}[1].length == 2")
    assert one.value(f"{ROWS}[1][0]") == "esparse alpha=1.5"

    # The other is busy while one runs, and may cancel it.
    one.control("method").locator("select").select_option("sparsegpt")
    one.wait("JSON.stringify(plot.layout.annotations).includes('prune to see')")
    one.output.locator("button:has-text('Measure perplexity')").click()
    page.wait_for_selector("text=/sparsegpt 2:4: pruning, block/")
    other.output.locator("button:has-text('Measure perplexity')").click()
    page.wait_for_selector("[role=alert]:has-text('Busy')")
    other.output.locator("button:has-text('Cancel')").click()
    page.wait_for_selector("text=cancelled: sparsegpt 2:4; the weights are as they were")
    assert one.value(f"{ROWS}[1].length") == 2
    other.output.locator("button:has-text('Measure perplexity')").click()
    other.wait(f"{TITLE}.includes('(measured)')")
    assert page.locator("[role=alert]").count() == 0
