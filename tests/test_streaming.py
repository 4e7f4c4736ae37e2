"""Streaming gives, bit for bit, what pruning in memory gives, also after a kill."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import random_model
from transformers import AutoModelForCausalLM

from esparse_lab import (
    BlockTuning,
    ESparse,
    EsparseError,
    GlobalShuffle,
    HessianSensitivity,
    InputError,
    Magnitude,
    MaskDescent,
    OutlierShare,
    Pattern,
    Recipe,
    Reconstruction,
    Uniform,
    Unstructured,
    Wanda,
    prune_checkpoint,
    prune_model,
)

PATTERN = Pattern(2, 4)
RECIPE = Recipe(ESparse(), PATTERN, GlobalShuffle())
TUNED = Recipe(Wanda(), PATTERN, tuning=BlockTuning(epochs=2))
MATCHED = Recipe(MaskDescent(), PATTERN, calibration="matched", reconstruct=Reconstruction())


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "dense"
    random_model("llama").save_pretrained(folder)
    return folder


def stream(source, out, tokens, recipe=RECIPE, **settings):
    return prune_checkpoint(
        source, out, tokens, recipe, dtype=torch.float32, progress=False, **settings
    )


def assert_same_weights(folder, model):
    there = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, there[name]), name


@pytest.mark.parametrize(
    "model_type", ["llama", "gemma2", "phi3", "opt", "gpt2", "bloom", "mixtral", "qwen2_moe"]
)
def test_streamed_equals_in_memory(model_type, tokens, tmp_path):
    model = random_model(model_type)
    model.save_pretrained(tmp_path / "dense")
    records = stream(tmp_path / "dense", tmp_path / "out", tokens)
    layers = prune_model(model, tokens, RECIPE, progress=False)
    assert_same_weights(tmp_path / "out", model)
    assert [r["name"] for r in records] == [layer.name for layer in layers]
    assert json.loads((tmp_path / "out" / "pruned.json").read_text()) == records
    orders = load_file(tmp_path / "out" / "orders.safetensors")
    assert all(torch.equal(orders[layer.name], layer.order.index) for layer in layers)
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("recipe", [RECIPE, MATCHED, TUNED], ids=["sequential", "matched", "tuned"])
@pytest.mark.parametrize("activations", ["cpu", "disk"])
def test_where_activations_live_changes_nothing(source, tokens, tmp_path, activations, recipe):
    stream(source, tmp_path / "here", tokens, recipe)
    stream(source, tmp_path / "there", tokens, recipe, activations=activations)
    names = sorted(p.name for p in (tmp_path / "here").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "there").iterdir())
    for name in names:
        if name.endswith(".safetensors"):
            ours, theirs = load_file(tmp_path / "here" / name), load_file(tmp_path / "there" / name)
            assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        Recipe(Wanda(), PATTERN, calibration="dense"),
        MATCHED,
        TUNED,
        Recipe(Magnitude(), PATTERN),
    ],
)
@pytest.mark.parametrize("killed_after", [0, 1])
def test_a_killed_run_goes_on_with_the_same_bits(source, tokens, tmp_path, recipe, killed_after):
    def kill(index):
        if index == killed_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream(source, tmp_path / "out", tokens, recipe, after_block=kill)
    assert not (tmp_path / "out").exists()
    done = tmp_path / "out.partial" / f"block-{killed_after:05}.safetensors"
    written = done.stat().st_mtime_ns
    finished = []
    stream(source, tmp_path / "out", tokens, recipe, after_block=finished.append)
    assert (tmp_path / "out" / done.name).stat().st_mtime_ns == written
    model = AutoModelForCausalLM.from_pretrained(source)
    prune_model(model, tokens, recipe, progress=False)
    assert_same_weights(tmp_path / "out", model)


def test_a_half_written_block_is_made_again(source, tokens, tmp_path):
    def kill(index):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream(source, tmp_path / "out", tokens, after_block=kill)
    (tmp_path / "out.partial" / "block-00001.safetensors").write_bytes(b"half")
    stream(source, tmp_path / "out", tokens)
    model = AutoModelForCausalLM.from_pretrained(source)
    prune_model(model, tokens, RECIPE, progress=False)
    assert_same_weights(tmp_path / "out", model)


def test_the_unfinished_run_of_another_recipe_is_kept_apart(source, tokens, tmp_path):
    def kill(index):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream(source, tmp_path / "out", tokens, after_block=kill)
    with pytest.raises(InputError, match="unfinished run of another recipe"):
        stream(source, tmp_path / "out", tokens, Recipe(Wanda(), PATTERN))
    other = [
        {"tokens": tokens.flip(0)},
        {"recipe": Recipe(ESparse(), Pattern(1, 4), GlobalShuffle())},
        {"dtype": torch.bfloat16},
    ]
    for change in other:
        call = {"tokens": tokens, "recipe": RECIPE, "dtype": torch.float32} | change
        with pytest.raises(InputError, match="unfinished run of another recipe"):
            prune_checkpoint(source, tmp_path / "out", progress=False, **call)
    os.utime(source / "model.safetensors", (1, 1))
    with pytest.raises(InputError, match="unfinished run of another recipe"):
        stream(source, tmp_path / "out", tokens)


def test_an_index_does_not_lead_out_of_its_folder(source, tokens, tmp_path):
    (source / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    names = load_file(tmp_path / "elsewhere.safetensors")
    index = {"weight_map": dict.fromkeys(names, "../elsewhere.safetensors")}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"lacks elsewhere\.safetensors"):
        stream(source, tmp_path / "out", tokens)


def test_the_record_of_an_earlier_pruning_is_left_behind(source, tokens, tmp_path):
    (source / "recipe.json").write_text("{}")
    (source / "tokenizer.json").write_text("{}")
    stream(source, tmp_path / "out", tokens)
    assert not (tmp_path / "out" / "recipe.json").exists()
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


def test_a_run_that_finished_no_block_stands_in_nobodys_way(source, tokens, tmp_path):
    with pytest.raises(InputError, match="Token ids run from"):
        stream(source, tmp_path / "out", tokens + 1000)
    assert (tmp_path / "out.partial" / "run.json").is_file()
    stream(source, tmp_path / "out", tokens)
    model = AutoModelForCausalLM.from_pretrained(source)
    prune_model(model, tokens, RECIPE, progress=False)
    assert_same_weights(tmp_path / "out", model)


def test_only_one_block_has_weights_at_a_time(source, tokens, tmp_path, monkeypatch):
    from esparse_lab import streaming

    seen = []
    inner = streaming.prune_block

    def watch(block, walk, *rest):
        real = [
            number
            for number, other in enumerate(walk.blocks)
            if any(p.device.type != "meta" for p in other.module.parameters())
        ]
        seen.append(real)
        return inner(block, walk, *rest)

    monkeypatch.setattr(streaming, "prune_block", watch)
    stream(source, tmp_path / "out", tokens)
    assert seen == [[0], [1], [2]]


def test_two_runs_do_not_share_a_partial_folder(source, tokens, tmp_path):
    def second(index):
        with pytest.raises(InputError, match="is in use"):
            stream(source, tmp_path / "out", tokens)

    stream(source, tmp_path / "out", tokens, after_block=second)
    assert (tmp_path / "out" / "pruned.json").is_file()


def test_the_unfinished_run_of_another_version_is_kept_apart(source, tokens, tmp_path):
    def kill(index):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream(source, tmp_path / "out", tokens, activations="disk", after_block=kill)
    assert not list((tmp_path / "out.partial").glob("hidden*"))
    path = tmp_path / "out.partial" / "run.json"
    run = json.loads(path.read_text())
    path.write_text(json.dumps(run | {"versions": ["0.0.1", *run["versions"][1:]]}))
    with pytest.raises(InputError, match="version of a package"):
        stream(source, tmp_path / "out", tokens)


@pytest.mark.parametrize("step", ["describe", "after_block"])
def test_killed_at_the_end_it_only_ends_once_more(source, tokens, tmp_path, step):
    def kill(*args):
        if args[0] in (2, tmp_path / "out.partial"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream(source, tmp_path / "out", tokens, **{step: kill})
    records = stream(source, tmp_path / "out", tokens)
    assert json.loads((tmp_path / "out" / "pruned.json").read_text()) == records
    left = {p.name for p in (tmp_path / "out").iterdir() if p.suffix == ".json"}
    assert left == {
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "pruned.json",
    }


def test_a_place_that_vanishes_is_an_error_that_says_so(source, tokens, tmp_path):
    def remove(index):
        shutil.rmtree(tmp_path / "out.partial")

    with pytest.raises(EsparseError, match=r"Cannot write .*block-00001"):
        stream(source, tmp_path / "out", tokens, after_block=remove)


def test_what_cannot_be_streamed_is_found_before_anything_is_made(source, tokens, tmp_path):
    half = Unstructured(0.5)
    for allocation in (HessianSensitivity(0.5), OutlierShare(0.5)):
        with pytest.raises(InputError, match="measures the whole model"):
            stream(source, tmp_path / "out", tokens, Recipe(Wanda(), half, allocation=allocation))
    ahead = Recipe(Wanda(), PATTERN, tuning=BlockTuning(ahead=1))
    with pytest.raises(InputError, match="streaming holds one at a time"):
        stream(source, tmp_path / "out", tokens, ahead)
    solved = Recipe(Magnitude(), half, reconstruct=Reconstruction())
    with pytest.raises(InputError, match=r"Recipe\(.* needs calibration tokens"):
        stream(source, tmp_path / "out", None, solved)
    random_model("llama").save_pretrained(source, max_shard_size="20KB")
    (source / "model.safetensors").unlink()
    (source / "model-00002-of-00005.safetensors").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="lacks model-00002-of-00005"):
        stream(source, tmp_path / "out", tokens)
    (source / "model.safetensors.index.json").write_text("{")
    with pytest.raises(EsparseError, match="cannot be read"):
        stream(source, tmp_path / "out", tokens)
    (source / "model.safetensors.index.json").unlink()
    (source / "model.safetensors").write_bytes(b"half")
    with pytest.raises(EsparseError, match="cannot be read"):
        stream(source, tmp_path / "out", tokens)
    assert not (tmp_path / "out.partial").exists()
    random_model("llama").save_pretrained(source)
    uniform = Recipe(Magnitude(), half, allocation=Uniform(0.5))
    assert len(stream(source, tmp_path / "out", None, uniform)) == 21


@pytest.mark.parametrize(("model_type", "says"), [("t5", "T5Config"), ("lama", "type `lama`")])
def test_a_config_of_no_decoder_is_refused_in_one_line(source, tokens, tmp_path, model_type, says):
    (source / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(InputError, match=rf"config\.json cannot be used: .*{says}") as raised:
        stream(source, tmp_path / "out", tokens)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out.partial").exists()


def test_folders_that_cannot_be_used_say_why(source, tokens, tmp_path):
    with pytest.raises(InputError, match="exists already"):
        stream(source, source, tokens)
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        stream(tmp_path / "nowhere", tmp_path / "out", tokens)
    with pytest.raises(InputError, match="Did you mean 'disk'"):
        stream(source, tmp_path / "out", tokens, activations="disc")
    weights = load_file(source / "model.safetensors")
    missing = {n: t for n, t in weights.items() if "layers.1.mlp.up_proj" not in n}
    save_file(missing, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EsparseError, match=r"no tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        stream(source, tmp_path / "out", tokens)
    shutil.rmtree(tmp_path / "out.partial")
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EsparseError, match=r"is \[3, 3\] in .*expects \[40, 24\]"):
        stream(source, tmp_path / "out", tokens)
