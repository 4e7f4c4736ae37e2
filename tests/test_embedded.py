"""The embedded model and the notebooks, for real: what a newcomer's first command does."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import esparse_lab as el
from esparse_lab.models import embedded_model_folder

HOME = Path(__file__).parent.parent
WIKITEXT = HOME.parent / "shared" / "data" / "wiki.test.raw"
SMALL = {
    "n_sequences": "1",
    "length": "64",
    "n_windows": "2",
    "window_length": "64",
    "methods": "wanda,esparse",
    "patterns": "2:4",
    "searches": "none,gns",
}

pytestmark = [
    pytest.mark.embedded,
    pytest.mark.slow,
    pytest.mark.skipif(
        not embedded_model_folder().is_dir(), reason="needs the model that `esparse fetch` brings"
    ),
]


@pytest.mark.skipif(not WIKITEXT.is_file(), reason="needs WikiText-2's raw test file beside us")
def test_perplexity_in_wandas_convention():
    loaded = el.load_model("smollm2-135m", device="cpu")
    windows = el.token_windows(loaded.tokenizer, WIKITEXT, split="test", length=2048, count=6)
    found = el.perplexity(loaded.model, windows, progress=False)
    # Measured by an independent script before this code was written.
    assert found.value == pytest.approx(22.060, abs=0.01)


@torch.no_grad()
def test_a_folded_model_is_nm_in_memory_and_computes_the_same(tmp_path):
    loaded = el.load_model("smollm2-135m", device="cpu")
    text = el.load_corpus("wikipedia", "train")
    tokens = el.token_windows(loaded.tokenizer, text, split="train", length=64, count=2, seed=0)
    recipe = el.Recipe(el.Wanda(), el.Pattern(2, 4), el.GlobalShuffle(), orders="legal")
    layers = el.prune_model(loaded.model, tokens, recipe, progress=False)
    masked = loaded.model(tokens).logits
    written = loaded.model.generate(tokens[:1, :16], max_new_tokens=8, do_sample=False)
    layers = el.fold(loaded.model, layers)
    assert float((loaded.model(tokens).logits - masked).abs().max()) < 1e-4 * float(
        masked.abs().max()
    )
    assert torch.equal(
        loaded.model.generate(tokens[:1, :16], max_new_tokens=8, do_sample=False), written
    )
    el.save_pruned(loaded.model.half(), recipe, layers, tmp_path / "a", compressed=True)
    assert not [c for c in el.check_storage(tmp_path / "a") if c.violation]
    weights = sum(layer.mask.numel() for layer in layers)
    left = 2 * (loaded.model.num_parameters() - weights)  # embedding and norms, float16
    size = (tmp_path / "a" / "esparse.safetensors").stat().st_size
    assert size == pytest.approx(2 * 9 / 16 * weights + left, rel=0.003)  # and indices, header
    back = el.load_pruned(tmp_path / "a", device="cpu").model.state_dict()
    assert all(torch.equal(t, back[name]) for name, t in loaded.model.state_dict().items())


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """Every notebook on the embedded model, with small parameters."""
    out = tmp_path_factory.mktemp("reports")
    command = [str(Path(sys.executable).with_name("esparse")), "report", "--out", str(out)]
    for name, value in SMALL.items():
        command += ["-p", f"{name}={value}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HOME)
    assert done.returncode == 0, done.stderr[-2000:]
    return out / "smollm2-135m"


def test_every_notebook_ran(report):
    run = json.loads((report / "run.json").read_text())
    names = sorted(p.stem for p in (HOME / "notebooks").glob("[0-9]*.ipynb"))
    for name in names:
        least = 50_000 if name == "05_zero_shot" else 100_000  # without task files it draws nothing
        assert (report / f"{name}.html").stat().st_size > least
        assert name in json.dumps(run)


def test_tables_hold_what_the_parameters_say(report):
    ladder = pd.read_parquet(report / "tables" / "04_perplexity.perplexity.parquet")
    found = [tuple(row) for row in ladder[["method", "pattern", "search"]].to_numpy()]
    assert found == [
        ("dense", "", "none"),
        ("wanda", "2:4", "none"),
        ("esparse", "2:4", "none"),
        ("esparse", "2:4", "gns"),
    ]
    assert (ladder.perplexity[1:] > ladder.perplexity[0]).all()
    retained = pd.read_parquet(report / "tables" / "03_channel_permutation.retained.parquet")
    mean = retained.groupby("search").retained_share.mean()
    assert retained.layer.nunique() == 210
    assert mean["none"] < mean["gns"] < mean["gns+lbs"] < 1
