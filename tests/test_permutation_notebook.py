"""Notebook 03 on a model that is N:M already: no order can win anything, and the page says so."""

import json

import nbformat
import torch
from tiny_models import byte_tokenizer, random_model

from esparse_lab import Magnitude, Pattern, Recipe, prune_model
from esparse_lab.reports import NOTEBOOKS
from esparse_lab.reports.execute import run_notebook
from esparse_lab.reports.parameters import notebook_parameters


def test_the_notebook_of_a_model_that_is_pruned_already(tmp_path, monkeypatch):
    monkeypatch.setenv("ESPARSE_CACHE", str(tmp_path / "cache"))
    model = random_model("llama")
    prune_model(model, None, Recipe(Magnitude(), Pattern(2, 4)), progress=False)
    model.save_pretrained(tmp_path / "tiny")
    byte_tokenizer().save_pretrained(tmp_path / "tiny")
    (tmp_path / "text.txt").write_text("What a model reads is a row of numbers. " * 20)
    source = NOTEBOOKS / "03_channel_permutation.ipynb"
    values = {name: each.default for name, each in notebook_parameters(source).items()} | {
        "model": str(tmp_path / "tiny"),
        "corpus": str(tmp_path / "text.txt"),
        "n_sequences": 3,
        "length": 32,
        "race_seconds": 0.2,
        "out_dir": str(tmp_path / "out"),
    }
    ran = run_notebook(source, tmp_path / "ran.ipynb", values, label="")
    assert ran.error is None, ran
    cells = nbformat.read(tmp_path / "ran.ipynb", as_version=4).cells
    shown = json.dumps([cell.get("outputs") for cell in cells])
    assert "The stored order keeps all that any order can" in shown
    assert "The stored order keeps more than what these searches" in shown
    assert "nan%" not in shown
    assert "inf%" not in shown
    for layer in model.model.layers:  # it was 2:4 indeed
        kept = (layer.mlp.gate_proj.weight.reshape(-1, 4) != 0).sum(dim=1)
        assert torch.equal(kept, torch.full_like(kept, 2))
