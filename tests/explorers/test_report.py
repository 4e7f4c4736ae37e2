"""What a headless run leaves of an explorer: its figure, in the page and in the notebook."""

import json
from pathlib import Path

import nbformat
import pytest

from esparse_lab.reports import render_report

CELL = """import torch
from tiny_models import random_model
from esparse_lab import explorers
from esparse_lab.models import LoadedModel
loaded = LoadedModel(random_model("llama"), None, "tiny", "none")
tokens = torch.randint(256, (5, 12), generator=torch.Generator().manual_seed(1))
explorers.Channels(loaded, tokens, block=1, role="down_proj")"""


@pytest.mark.slow
def test_a_report_keeps_the_figure_and_no_dead_widget(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    cells = [
        nbformat.v4.new_code_cell(
            'model: str = "tiny"\nout_dir: str = ""', metadata={"tags": ["parameters"]}
        ),
        nbformat.v4.new_code_cell(CELL),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {
        **{"name": "python3", "display_name": "Python 3"},
        "language": "python",
    }
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook, tmp_path / "notebooks" / "00_explore.ipynb")
    report = render_report("tiny", out=tmp_path / "out", notebooks_dir=tmp_path / "notebooks")
    assert report.failed == []
    executed = json.loads((report.folder / "00_explore.ipynb").read_text())
    assert "widgets" not in executed["metadata"]
    shown = [o for cell in executed["cells"] for o in cell.get("outputs", []) if "data" in o]
    assert [sorted(o["data"]) for o in shown] == [["application/vnd.plotly.v1+json", "text/plain"]]
    page = (report.folder / "00_explore.html").read_text()
    assert "model.layers.1.mlp.down_proj: the entropy lifts channel" in page
    assert "A control that works in JupyterLab" not in page
