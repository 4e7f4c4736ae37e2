import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import get_args

import nbformat
import pytest
import torch
from tiny_models import byte_tokenizer
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig
from typer.testing import CliRunner

import esparse_lab.reports
from esparse_lab import ALLOCATIONS, METHODS, RIVALS, SEARCHES
from esparse_lab.cli import app
from esparse_lab.gemm.cusparselt import unavailable
from esparse_lab.pruning import Calibration

PARAMETERS = 'model: str = ""\nout_dir: str = ""\nseed: int = 0\n'


OTHER_GROUPS = ["--allocation", "uniform", "--pattern", "2:4", "--menu", "4:8, dense"]


def esparse(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="esparse")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama with a byte tokenizer, and a text."""
    folder = tmp_path_factory.mktemp("cli")
    byte_tokenizer().save_pretrained(folder / "tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "tiny")
    (folder / "text.txt").write_text("What a model reads is a row of numbers. " * 40)
    return folder


@pytest.fixture
def notebooks(tmp_path):
    """A function that makes a folder with one notebook of one cell."""

    def write(cell):
        v4 = nbformat.v4
        tagged = v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
        notebook = v4.new_notebook(cells=[tagged, v4.new_code_cell(cell)])
        spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook.metadata["kernelspec"] = spec
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        nbformat.write(notebook, tmp_path / "notebooks" / "00_a.ipynb")
        return tmp_path / "notebooks"

    return write


def test_help_lists_every_command_and_version_names_the_package():
    result = esparse("--help")
    assert result.exit_code == 0
    for command in ("fetch", "doctor", "models", "prune", "eval", "gemm", "report", "lab"):
        assert f"\n  {command} " in result.output
        assert esparse(command, "--help").exit_code == 0
    assert esparse("--version").output == f"esparse_lab {metadata.version('esparse_lab')}\n"


def test_help_names_what_can_be_chosen():
    shown = " ".join(esparse("prune", "--help").output.split())
    for table in (METHODS, SEARCHES, RIVALS, ALLOCATIONS):
        assert ", ".join(table) in shown
    for calibration in get_args(Calibration):
        assert f"({calibration})" in shown


def test_help_loads_no_torch():
    # A bare module in place of the package: its own imports are not the command line's.
    program = (
        "import sys, types; package = types.ModuleType('esparse_lab'); "
        "package.__path__ = sys.argv[1:]; sys.modules['esparse_lab'] = package; "
        "import esparse_lab.cli; print({'torch', 'transformers', 'pandas'} & {*sys.modules})"
    )
    command = [sys.executable, "-c", program, *esparse_lab.__path__]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["prun"], "No such command 'prun'. Did you mean 'prune'?"),
        (["prune"], "MODEL"),
        (["prune", "m"], "--out"),
        (["prune", "m", "--out", "o", "--method", "wonda"], "Did you mean 'wanda'?"),
        (["prune", "m", "--out", "o", "--pattern", "4:2"], "4:2"),
        (["prune", "m", "--out", "o", "--search", "lsb"], "Unknown search 'lsb'"),
        (["prune", "m", "--out", "o", "--method", "wanda", "--alpha", "1"], "no settings"),
        (["prune", "m", "--out", "o", "--alpha", "x"], "Invalid value for '--alpha'"),
        (["prune", "m", "--out", "o", "--alpha", "-1"], "at least 0"),
        (["prune", "m", "--out", "o", "--alpha", "nan"], "at least 0, got nan"),
        (["prune", "m", "--out", "o", "--set", "alpha=1", "--alpha", "1"], "given twice"),
        (["prune", "m", "--out", "o", "--set", "alpha"], "--set got 'alpha', expected name=value"),
        (["prune", "m", "--out", "o", "--set", "alpha=x"], "of type float"),
        (["prune", "m", "--out", "o", "--pattern", "50%", "--search", "gns"], "has none such"),
        (["prune", "m", "--out", "o", *OTHER_GROUPS, "--search", "gns"], "has none such"),
        (["prune", "m", "--out", "o", "--target", "0.5"], "belong to an allocation"),
        (["prune", "m", "--out", "o", "--sequences", "0"], "Invalid value for '--sequences'"),
        (["prune", "m", "--out", "o", "--ahead", "1"], "--ahead belongs to --tune"),
        (["prune", "m", "--out", "o", "--tune", "--ahead", "-1"], "Invalid value for '--ahead'"),
        (["eval", "smolm2-135m"], "Did you mean 'smollm2-135m'?"),
        (["report", "--profile", "ful"], "Did you mean 'full'?"),
        (["report", "-p", "seed"], "expected name=value"),
        (["report", "--name", "A b"], "use up to 41 lower-case letters"),
    ],
)
def test_bad_usage_says_what_is_wrong_and_exits_with_2(tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    result = esparse(*arguments)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_found_before_pruning(folder, tmp_path):
    (tmp_path / "file").write_text("")
    options = ["--corpus", folder / "text.txt", "--sequences", 2, "--length", 32]
    result = esparse("prune", folder / "tiny", *options, "--out", tmp_path / "file" / "x")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"esparse: Cannot write {tmp_path / 'file' / 'x'}")


def test_a_full_output_folder_is_refused_and_kept(folder, tmp_path):
    (tmp_path / "mine").write_text("precious")
    for out in (tmp_path, tmp_path / "mine"):
        result = esparse("prune", folder / "tiny", "--out", out)
        assert result.exit_code == 2
        assert "exists already and is not an empty folder" in result.stderr
    assert (tmp_path / "mine").read_text() == "precious"


def test_pruning_saves_a_model_that_transformers_loads(folder, tmp_path):
    out = tmp_path / "pruned" / "tiny"
    text = folder / "text.txt"
    options = ["--method", "wanda", "--search", "none", "--device", "cpu"]
    options += ["--corpus", text, "--sequences", 2, "--length", 32, "--out", out]
    result = esparse("prune", folder / "tiny", *options)
    assert result.exit_code == 0, result.output
    assert [p.name for p in out.parent.iterdir()] == ["tiny"]
    model = AutoModelForCausalLM.from_pretrained(out)
    layers = [m for n, m in model.named_modules() if n.endswith("_proj")]
    assert len(layers) == 14
    for layer in layers:
        kept = (layer.weight.reshape(-1, 4) != 0).sum(dim=1)
        assert (kept == 2).all()
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["recipe"]["pattern"] == "2:4"
    assert recipe["recipe"]["method"] == "Wanda()"
    assert recipe["calibration"]["tokens"]["shape"] == [2, 32]
    assert recipe["model"]["revision"].startswith("sha256:")
    shares = [layer["retained_share"] for layer in recipe["layers"]]
    assert "14 layers pruned to 2:4 in" in result.stdout
    assert "50.00% of their weights kept" in result.stdout
    assert f"retained share of the score {sum(shares) / len(shares):.4f}" in result.stdout

    measured = ["eval", out, "--corpus", text, "--length", 64, "--windows", 3, "--device", "cpu"]
    result = esparse(*measured, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    ids = torch.tensor(list(text.read_bytes()[: 3 * 64])).reshape(3, 64)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = ids.apply_(lambda byte: alphabet.index("Ġ" if byte == 32 else chr(byte)))
    with torch.no_grad():
        nll = [model(input_ids=row[None], labels=row[None]).loss for row in ids]
    assert found["perplexity"] == pytest.approx(torch.stack(nll).mean().exp().item(), rel=1e-5)
    assert (found["windows"], found["length"], found["n_tokens"]) == (3, 64, 3 * 63)
    assert f"perplexity {found['perplexity']:.3f} on text.txt" in esparse(*measured).stdout


def pruned(folder, out, *options):
    """The saved model, its recipe.json and what was printed."""
    text = ["--corpus", folder / "text.txt", "--sequences", 2, "--length", 32, "--device", "cpu"]
    result = esparse("prune", folder / "tiny", *text, "--out", out, *options)
    assert result.exit_code == 0, result.output
    model = AutoModelForCausalLM.from_pretrained(out)
    return model, json.loads((out / "recipe.json").read_text()), result.stdout


def test_tuning_and_the_look_ahead_reach_the_recipe_and_the_weights(folder, tmp_path):
    plain = ["--method", "wanda", "--search", "none"]
    options = {"a": plain, "b": [*plain, "--tune"], "c": [*plain, "--tune", "--ahead", "1"]}
    made = {name: pruned(folder, tmp_path / name, *given) for name, given in options.items()}
    said = [facts["recipe"]["tuning"] for _, facts, _ in made.values()]
    assert said[0] == "None"
    assert [text.rpartition("ahead=")[2] for text in said[1:]] == ["0)", "1)"]
    first = [model.model.layers[0].mlp.down_proj.weight for model, *_ in made.values()]
    assert torch.equal(first[0] != 0, first[1] != 0)  # masks stay
    assert torch.equal(first[0] != 0, first[2] != 0)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])


def test_settings_and_solving_reach_the_recipe_and_the_weights(folder, tmp_path):
    options = ["--method", "sparsegpt", "--set", "damping=0.1", "--set", "block=16"]
    options += ["--pattern", "25%", "--calibration", "layerwise", "--reconstruct"]
    model, facts, printed = pruned(folder, tmp_path / "a", *options)
    assert facts["recipe"]["method"] == "SparseGPT(damping=0.1, block=16)"
    assert facts["recipe"]["pattern"] == "25%"
    assert facts["recipe"]["search"] == "None"  # no groups, so the default changes to no search
    assert facts["recipe"]["reconstruct"].startswith("Reconstruction(")
    assert facts["recipe"]["allocation"] == "None"
    assert facts["recipe"]["calibration"] == "layerwise"
    assert "14 layers pruned to 25%" in printed
    for name, layer in model.named_modules():
        if name.endswith("_proj"):
            assert (layer.weight != 0).sum() == layer.weight.numel() // 4
    plain, facts, _ = pruned(folder, tmp_path / "b", *options[:-1])
    assert facts["recipe"]["reconstruct"] == "None"
    layers = [m.model.layers[0].self_attn.q_proj.weight for m in (model, plain)]
    assert torch.equal(layers[0] != 0, layers[1] != 0)
    assert not torch.equal(*layers)


def test_an_allocation_keeps_its_share_of_all_weights(folder, tmp_path):
    options = ["--method", "magnitude", "--allocation", "outliers", "--target", "0.5"]
    options += ["--menu", "3:8, 4:8, 5:8"]
    model, facts, printed = pruned(folder, tmp_path / "a", *options)
    assert facts["recipe"]["allocation"].startswith("OutlierShare(target=0.5, menu='3:8, 4:8, 5:8'")
    assert facts["recipe"]["search"].startswith("BlockShuffle")
    assert "14 layers pruned to shares of their own" in printed
    assert "50.00% of their weights kept" in printed
    weights = [m.weight for n, m in model.named_modules() if n.endswith("_proj")]
    kept, size = sum(int((w != 0).sum()) for w in weights), sum(w.numel() for w in weights)
    assert kept == size // 2
    shares = {"3:8": 3 / 8, "4:8": 4 / 8, "5:8": 5 / 8}
    assert len({layer["sparsity"] for layer in facts["layers"]}) > 1
    for layer in facts["layers"]:
        weight = model.get_submodule(layer["name"]).weight
        assert (
            int((weight != 0).sum())
            == layer["kept"]
            == shares[layer["sparsity"]] * len(weight.flatten())
        )


def test_streamed_and_whole_are_the_same_model(folder, tmp_path):
    options = ["--method", "wanda", "--search", "gns"]
    whole, facts, _ = pruned(folder, tmp_path / "a", *options)
    streamed, streamed_facts, _ = pruned(
        folder, tmp_path / "b", *options, "--stream", "--activations", "disk"
    )
    for (name, one), other in zip(whole.named_parameters(), streamed.parameters(), strict=True):
        assert torch.equal(one, other), name
    for key in ("model", "recipe", "calibration"):
        assert facts[key] == streamed_facts[key]
    result = esparse("eval", tmp_path / "b", "--corpus", folder / "text.txt", "--length", "16")
    assert result.exit_code == 0, result.output


@pytest.mark.filterwarnings("default:.*no calibration token")
def test_a_warning_is_one_line_without_a_place_in_the_source(folder, tmp_path):
    config = MixtralConfig(
        vocab_size=256,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=1,
    )
    shutil.copytree(folder / "tiny", tmp_path / "mixtral")
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "mixtral")
    options = ["--corpus", folder / "text.txt", "--sequences", 1, "--length", 2]
    result = esparse("prune", tmp_path / "mixtral", "--out", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    lines = re.split("[\r\n]+", result.stderr)
    told = [line for line in lines if "no calibration token was sent here" in line]
    assert len(told) == 2  # one a block, though most of its experts saw nothing
    for number, line in enumerate(told):
        assert line.startswith(f"esparse: model.layers.{number}.")
    assert "UserWarning" not in result.stderr
    assert ".py" not in result.stderr


def test_activations_without_streaming_are_refused(folder, tmp_path):
    result = esparse("prune", folder / "tiny", "--out", tmp_path / "a", "--activations", "cpu")
    assert result.exit_code == 2
    assert "belongs to --stream" in result.output


def test_a_report_ends_with_0_or_with_1_when_a_notebook_failed(folder, tmp_path, notebooks):
    options = ["--out", tmp_path / "reports", "-p", "seed=3"]
    result = esparse("report", folder / "tiny", *options, "--notebooks", notebooks("x = 1 / seed"))
    assert result.exit_code == 0, result.output
    assert "index.html" in result.stdout
    options[-1] = "seed=0"
    result = esparse("report", folder / "tiny", *options, "--notebooks", notebooks("x = 1 / seed"))
    assert result.exit_code == 1
    assert "esparse: 1 notebooks failed: 00_a" in result.stderr
    assert "ZeroDivisionError" in (tmp_path / "reports" / "index.html").read_text()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("patterns=2:4,4:2", "patterns=4:2: Pattern 4:2 is not possible"),
        ("patterns=2:4,150%", "patterns=150%: Cannot read the share of kept weights"),
        ("pattern=50%", "pattern=50%: Cannot read the pattern '50%'"),
        ("method=wonda", "method=wonda: Unknown method 'wonda'. Did you mean 'wanda'?"),
        ("shuffled=esparce", "Did you mean 'esparse'"),
        ("searches=none,lsb", "searches=lsb: Unknown search"),
        ("alpha=-1", "alpha=-1.0: alpha must be"),
        ("bins=1", "bins=1: bins must be"),
        ("bin_range=layr", "Did you mean 'layer'?"),
        ("block=2", "block=2 role=down_proj: The model has blocks 0 to 1"),
        ("roles=q_proj,down", "block=0 roles=down: Unknown layer"),
        ("n_sequences=0", "n_sequences=0: count must be"),
        ("length=1", "length=1 n_sequences=8: A window needs"),
        ("corpus=no.txt", "Cannot read no.txt"),
        ("window_length=5000", "tokens, one window needs 5000"),
        ("n_windows=99", "text.txt (test) has 50 windows of 32 tokens, 99 were asked for"),
    ],
)
def test_a_value_that_no_notebook_can_use_is_found_before_any_runs(folder, tmp_path, given, says):
    sizes = {"block": 0, "length": 32, "window_length": 32}
    sizes |= {"corpus": folder / "text.txt", "test_corpus": folder / "text.txt"}
    sizes.pop(given.partition("=")[0], None)
    assignments = [f"{name}={value}" for name, value in sizes.items()]
    options = [part for each in [*assignments, given] for part in ("-p", each)]
    result = esparse("report", folder / "tiny", "--out", tmp_path / "out", *options)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (RuntimeError("odd"), 1, "esparse: unexpected RuntimeError: odd. Run `esparse --debug"),
        (KeyboardInterrupt(), 130, "esparse: interrupted; nothing half-written has the name"),
    ],
)
def test_other_ends_are_one_line_unless_debugging(monkeypatch, error, code, says):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(esparse_lab.reports, "plan_report", fail)
    result = esparse("report")
    assert result.exit_code == code
    assert result.stderr.startswith(says)
    assert result.stderr.count("\n") == 1
    result = esparse("--debug", "report")
    assert result.exit_code == code
    assert "Traceback (most recent call last)" in result.stderr


def test_models_names_the_embedded_model_and_the_families():
    output = esparse("models").stdout
    assert "smollm2-135m" in output
    assert "  Mixtral, Qwen 2 and 3 with experts: mixtral, qwen2_moe, qwen3_moe\n" in output
    assert "Other decoders are traced" in output


def test_the_doctor_says_what_is_missing(monkeypatch):
    result = esparse("doctor")
    assert result.exit_code == 0, result.output
    for what in ("python", "torch", "memory", "disk", "model smollm2-135m", "corpus wikipedia"):
        assert f"  {what} " in result.stdout
    reason = unavailable()
    products = re.search(r"^(..)  sparse products +(.+)$", result.stdout, re.MULTILINE).groups()
    assert products == (("--", reason) if reason else ("ok", "cuSPARSELt runs"))
    wanted = ["torch>=999", "esparse-no-such-package>=1"]
    wanted.append("other-missing; sys_platform == 'linux' and extra == 'hub'")
    monkeypatch.setattr(metadata, "requires", lambda _: wanted)
    result = esparse("doctor")
    assert result.exit_code == 1
    marks = {line.split()[1]: line.split()[0] for line in result.stdout.splitlines()}
    assert (marks["torch"], marks["esparse-no-such-package"]) == ("NO", "NO")
    assert marks["other-missing"] == "--"
    assert "not installed, for the extra 'hub': pip install 'other-missing'" in result.stdout


def test_the_lab_listens_on_this_machine_alone_and_keeps_its_token(monkeypatch):
    started = []
    monkeypatch.setattr(os, "execve", lambda *call: started.append(call))
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "mine")
    assert esparse("lab", "--no-browser", "--port", "8899").exit_code == 0
    ((program, command, variables),) = started
    assert program == sys.executable
    assert "--ServerApp.ip=127.0.0.1" in command
    options = dict(part.partition("=")[::2] for part in command)
    root, first = options["--ServerApp.root_dir"], options["--LabApp.default_url"]
    assert (Path(root) / first.removeprefix("/lab/tree/")).is_file()
    assert command[-3:] == ["--no-browser", "--port", "8899"]
    assert not [part for part in command if "token" in part or "password" in part]

    from jupyterlab_server.config import ConfigManager

    places = variables["JUPYTER_CONFIG_PATH"].split(os.pathsep)
    assert places[1] == "mine"
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", places[0])
    found = ConfigManager(config_dir_name="labconfig").get("default_setting_overrides")
    news = found["@jupyterlab/apputils-extension:notification"]
    assert news == {"fetchNews": "false", "checkForUpdates": False}


def test_the_program_itself_ends_with_these_codes():
    for arguments, code in ((["--version"], 0), (["prun"], 2)):
        command = [sys.executable, "-c", "from esparse_lab.cli import main; main()", *arguments]
        assert subprocess.run(command, capture_output=True).returncode == code


def test_a_folded_model_passes_the_check_and_a_masked_one_does_not(folder, tmp_path):
    options = ["--method", "wanda", "--orders"]
    pruned(folder, tmp_path / "free", *options, "free")
    result = esparse("check", tmp_path / "free")
    assert (result.exit_code, result.stdout) == (0, "14 of 14 layers are 2:4 in memory\n")

    pruned(folder, tmp_path / "mask", *options, "mask")
    result = esparse("check", tmp_path / "mask")
    assert result.exit_code == 1
    assert result.stderr.startswith("esparse: model.layers.0.self_attn.q_proj is not 2:4: row ")
    assert esparse("check", tmp_path / "mask", "--pattern", "3:4").exit_code == 1
    assert esparse("check", folder).exit_code == 2
    assert esparse("check", tmp_path / "mask", "--pattern", "2-4").exit_code == 2


def test_a_model_behind_gathers_is_evaluated_in_both_forms(folder, tmp_path):
    text = ["--corpus", folder / "text.txt", "--sequences", 2, "--length", 32, "--device", "cpu"]
    corpus = ["--corpus", folder / "text.txt", "--length", 64, "--windows", 2, "--device", "cpu"]
    perplexities, sizes = [], []
    for form in ("compress", "no-compress"):
        options = ["--method", "wanda", "--orders", "legal", f"--{form}"]
        result = esparse("prune", folder / "tiny", *text, "--out", tmp_path / form, *options)
        assert result.exit_code == 0, result.output
        assert esparse("check", tmp_path / form).exit_code == 0
        assert not (tmp_path / form / "model.safetensors").exists()
        found = esparse("eval", tmp_path / form, *corpus, "--json")
        assert found.exit_code == 0, found.output
        perplexities.append(json.loads(found.stdout)["perplexity"])
        sizes.append((tmp_path / form / "esparse.safetensors").stat().st_size)
    assert perplexities[0] == perplexities[1] > 1
    assert sizes[0] < 0.9 * sizes[1]

    (tmp_path / "compress").rename(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text("{}")
    assert "edited or damaged" in esparse("eval", tmp_path / "a", *corpus).stderr
    result = esparse("prune", folder / "tiny", *text, "--out", tmp_path / "b", "--orders", "leagl")
    assert result.exit_code == 2
    assert "Did you mean 'legal'" in result.stderr
    streamed = ["--stream", "--out", tmp_path / "b"]
    for options in (["--orders", "free"], ["--compress"]):
        assert esparse("prune", folder / "tiny", *text, *streamed, *options).exit_code == 2


def test_a_streamed_folder_is_described_like_any_other(folder, tmp_path):
    from esparse_lab import load_pruned

    options = ["--method", "wanda", "--search", "none", "--dtype", "float32"]
    _, plain, _ = pruned(folder, tmp_path / "plain", *options)
    _, streamed, _ = pruned(folder, tmp_path / "streamed", *options, "--stream")
    assert streamed["masks_sha256"] == plain["masks_sha256"]
    assert streamed["recipe"] == plain["recipe"]
    assert esparse("check", tmp_path / "streamed").exit_code == 0
    loaded = load_pruned(tmp_path / "streamed", device="cpu", base=plain["model"]["name"])
    assert loaded.tokenizer is not None
    (tmp_path / "streamed" / "block-00001.safetensors").unlink()
    result = esparse("check", tmp_path / "streamed")
    assert result.exit_code == 1
    assert "lacks block-00001.safetensors, which was saved with it" in result.stderr
