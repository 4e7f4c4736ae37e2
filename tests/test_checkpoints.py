"""What is saved is what is loaded, takes the room it should, and tells when it was touched."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TINY_CONFIGS, random_model
from transformers import AutoModelForCausalLM
from whole_forward import layer_names, matrix

from esparse_lab import (
    SEARCHES,
    BlockShuffle,
    DaSS,
    EsparseError,
    InputError,
    Magnitude,
    Pattern,
    Recipe,
    Uniform,
    Unstructured,
    check_storage,
    fold,
    load_pruned,
    prune_model,
    save_pruned,
)

PATTERN = Pattern(2, 4)


def saved(model, path, *, orders="legal", compressed=False, folded=True, **recipe):
    """A model pruned by magnitude, folded and saved; the recipe and records."""
    recipe = {"method": Magnitude(), "pattern": PATTERN, "search": BlockShuffle(block=12)} | recipe
    recipe = Recipe(**recipe, orders=orders)
    layers = prune_model(model, None, recipe, progress=False)
    if orders != "mask" and folded:
        layers = fold(model, layers)
    facts = {"model": {"name": "tiny", "revision": "sha256:abc"}}
    save_pruned(model, recipe, layers, path, facts=facts, compressed=compressed)
    return recipe, layers


def same(ours, theirs):
    a, b = ours.state_dict(), theirs.state_dict()
    assert set(a) == set(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


@torch.no_grad()
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("orders", ["mask", "legal", "free"])
@pytest.mark.parametrize("model_type", TINY_CONFIGS)
def test_a_saved_model_comes_back_as_it_was(model_type, orders, compressed, tmp_path, tokens):
    model = random_model(model_type)
    model.generation_config.eos_token_id = 77
    saved(model, tmp_path / "a", orders=orders, compressed=compressed)
    loaded = load_pruned(tmp_path / "a", device="cpu")
    same(loaded.model, model)
    assert torch.equal(loaded.model(tokens).logits, model(tokens).logits)
    assert not loaded.model.training
    assert loaded.model.generation_config.eos_token_id == 77
    assert loaded.facts["recipe"]["orders"] == orders
    checked = check_storage(tmp_path / "a")
    assert {layer.name for layer in checked} == layer_names(model)
    if orders != "mask":
        assert not [layer for layer in checked if layer.violation]


@torch.no_grad()
@pytest.mark.parametrize("orders", ["free", "stream"])
@pytest.mark.parametrize("model_type", TINY_CONFIGS)
def test_without_gathers_plain_transformers_loads_it(model_type, orders, tmp_path, tokens):
    model = random_model(model_type)
    saved(model, tmp_path / "a", orders=orders)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert torch.equal(plain.eval()(tokens).logits, model(tokens).logits)


def test_with_gathers_plain_transformers_finds_no_weights(tiny_llama, tmp_path):
    saved(tiny_llama, tmp_path / "a")
    with pytest.raises(OSError, match="no file named"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "a")


@pytest.mark.parametrize(("dtype", "share"), [(torch.float16, 9 / 16), (torch.float32, 17 / 32)])
def test_compressed_layers_take_their_share_of_the_disk(dtype, share, tmp_path):
    model = random_model("llama", intermediate_size=48).to(dtype)
    saved(model, tmp_path / "a", compressed=True)
    layers = {n: matrix(model, n) for n in layer_names(model)}
    stored = load_file(tmp_path / "a" / "esparse.safetensors")
    taken = sum(stored[f"{name}.{part}"].nbytes for name in layers for part in ("values", "bits"))
    assert taken == share * sum(weight.nbytes for weight in layers.values())
    assert not {f"{name}.weight" for name in layers} & set(stored)


@pytest.mark.parametrize("sparsity", ["50%", "2:4 and dense", "along outputs"])
def test_what_cannot_be_compressed_is_stored_as_it_is(sparsity, tmp_path):
    model = random_model("mixtral")
    recipe = {
        "50%": Recipe(Magnitude(), Unstructured(0.5)),
        "2:4 and dense": Recipe(
            Magnitude(), PATTERN, SEARCHES["gns"], allocation=Uniform(0.8, "2:4, dense")
        ),
        "along outputs": Recipe(DaSS(), PATTERN),
    }[sparsity]
    text = torch.randint(256, (8, 20), generator=torch.Generator().manual_seed(1))
    layers = prune_model(model, text, recipe, progress=False)
    save_pruned(model, recipe, layers, tmp_path / "a", compressed=True)
    same(load_pruned(tmp_path / "a", device="cpu").model, model)
    packed = [n for n in load_file(tmp_path / "a" / "esparse.safetensors") if n.endswith(".bits")]
    along_in = [p for p in layers if isinstance(p.sparsity, Pattern) and p.group_axis == "in"]
    assert len(packed) == len(along_in)


def test_check_names_the_first_group_that_has_too_many(tiny_llama, tmp_path):
    saved(tiny_llama, tmp_path / "mask", orders="mask")
    first = next(c for c in check_storage(tmp_path / "mask") if c.violation)
    row, group, count = first.violation
    weight = matrix(tiny_llama, first.name)
    assert int((weight[row, 4 * group : 4 * group + 4] != 0).sum()) == count > 2
    before = [(weight[r, 4 * g : 4 * g + 4] != 0).sum() for r in range(row) for g in range(6)]
    assert not before or max(before) <= 2

    random_model("llama").save_pretrained(tmp_path / "dense")  # of nobody's making
    assert all(layer.violation == (0, 0, 4) for layer in check_storage(tmp_path / "dense"))
    assert not any(c.violation for c in check_storage(tmp_path / "dense", Pattern(40, 41)))


def test_check_follows_the_recipe(tiny_llama, tmp_path):
    recipe = {"search": None, "allocation": Uniform(0.8, "2:4, dense")}
    _, layers = saved(tiny_llama, tmp_path / "a", orders="mask", **recipe)
    thin = {layer.name for layer in layers if layer.sparsity is not None}
    assert 0 < len(thin) < len(layers)
    assert {c.name for c in check_storage(tmp_path / "a")} == thin
    assert len(check_storage(tmp_path / "a", PATTERN)) == len(layers)
    saved(random_model("llama"), tmp_path / "b", pattern=Unstructured(0.5), search=None)
    with pytest.raises(InputError, match="pruned to 50%, which has no groups"):
        check_storage(tmp_path / "b")


def change_weight(folder):
    path = next(folder.glob("*.safetensors"))
    tensors = load_file(path)
    name = next(n for n in tensors if n.endswith("down_proj.weight"))
    tensors[name][0, 0] += 1
    save_file(tensors, path, metadata={"format": "pt"})


DAMAGE = {
    "a weight": (change_weight, EsparseError, r"safetensors is not the file that was saved"),
    "the config": (
        lambda f: (f / "config.json").write_text((f / "config.json").read_text() + " "),
        EsparseError,
        r"config\.json is not the file that was saved",
    ),
    "lost weights": (
        lambda f: (f / "model.safetensors").unlink(),
        EsparseError,
        r"lacks model\.safetensors, which was saved with it",
    ),
    "lost orders": (
        lambda f: (f / "orders.safetensors").unlink(),
        EsparseError,
        r"lacks orders\.safetensors",
    ),
    "cut short": (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:999]
        ),
        EsparseError,
        "edited or damaged since",
    ),
    "no recipe": (
        lambda f: (f / "recipe.json").unlink(),
        InputError,
        r"holds no pruned model of esparse_lab: its recipe\.json is missing",
    ),
    "a broken recipe": (
        lambda f: (f / "recipe.json").write_text("{"),
        InputError,
        r"recipe\.json cannot be read",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_folder_that_was_touched_is_not_loaded(tiny_llama, tmp_path, damage):
    saved(tiny_llama, tmp_path / "a", orders="free")
    hurt, error, message = DAMAGE[damage]
    hurt(tmp_path / "a")
    with pytest.raises(error, match=message):
        load_pruned(tmp_path / "a", device="cpu")


def test_the_base_model_is_looked_at(tiny_llama, tmp_path):
    saved(tiny_llama, tmp_path / "a")
    for base in ("tiny", "sha256:abc", None):
        assert load_pruned(tmp_path / "a", base=base, device="cpu")
    with pytest.raises(InputError, match=r"pruned from tiny \(sha256:abc\), not from llama-7b"):
        load_pruned(tmp_path / "a", base="llama-7b", device="cpu")


def test_masks_have_one_checksum_whatever_their_form(tmp_path):
    digests = {}
    for name, orders, compressed in (
        ("plain", "free", False),
        ("small", "free", True),
        ("other", "mask", False),
    ):
        saved(random_model("llama"), tmp_path / name, orders=orders, compressed=compressed)
        facts = json.loads((tmp_path / name / "recipe.json").read_text())
        digests[name] = facts["masks_sha256"]
    assert digests["plain"] == digests["small"] != digests["other"]


def test_saving_looks_before_it_writes(tiny_llama, tmp_path):
    recipe, layers = saved(tiny_llama, tmp_path / "a")
    with pytest.raises(InputError, match="not an empty folder"):
        save_pruned(tiny_llama, recipe, layers, tmp_path / "a")
    with pytest.raises(InputError, match="records are not of this model"):
        save_pruned(tiny_llama, recipe, layers[1:], tmp_path / "b")
    tiny_llama.model.layers[0].mlp.up_proj.weight.data += 1
    with pytest.raises(InputError, match=r"up_proj has 960 nonzero weights, its record keeps 480"):
        save_pruned(tiny_llama, recipe, layers, tmp_path / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_the_config_of_another_model_is_refused(tmp_path):
    saved(random_model("llama"), tmp_path / "a")
    saved(random_model("llama", intermediate_size=48), tmp_path / "b")
    shutil.copy(tmp_path / "b" / "config.json", tmp_path / "a" / "config.json")
    with pytest.raises(EsparseError, match=r"config\.json is not the file that was saved"):
        load_pruned(tmp_path / "a", device="cpu")
    facts = json.loads((tmp_path / "a" / "recipe.json").read_text())
    facts["files"].pop("config.json")  # and somebody who hides it
    (tmp_path / "a" / "recipe.json").write_text(json.dumps(facts))
    with pytest.raises(EsparseError, match="belongs to another model"):
        load_pruned(tmp_path / "a", device="cpu")


def test_a_folded_half_model_runs_on(tiny_llama, tmp_path, tokens):
    half = copy.deepcopy(tiny_llama).to(torch.bfloat16)
    saved(half, tmp_path / "a", compressed=True)
    loaded = load_pruned(tmp_path / "a", device="cpu").model
    assert loaded.dtype == torch.bfloat16
    assert load_pruned(tmp_path / "a", device="cpu", dtype="float32").model.dtype == torch.float32
    same(loaded, half)
