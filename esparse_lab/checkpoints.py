"""Pruned models on disk: what was saved is what is loaded, and says how it was made.

A folder holds config.json, the weights, recipe.json (the recipe, every layer's record and whatever
the caller knows of the run, with checksums) and, where channels were ordered, orders.safetensors.
Weights that plain transformers would misread (compressed ones, or those behind a norm that gathers)
are in esparse.safetensors, so that it finds no weights rather than wrong ones.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from esparse_lab.architectures import prunable_layers
from esparse_lab.atomic import building_folder, cannot_write, write_atomically
from esparse_lab.downloads import sha256_of
from esparse_lab.errors import EsparseError, InputError
from esparse_lab.folding import gather_after, gathered_norms
from esparse_lab.masks import Pattern, parse_sparsity
from esparse_lab.models import device_of, dtype_of
from esparse_lab.pruning import PrunedLayer, Recipe
from esparse_lab.run_record import git_state, versions
from esparse_lab.storage import Compressed, compress, first_violation
from esparse_lab.streaming import Checkpoint, skeleton

FACTS, ORDERS, PACKED = "recipe.json", "orders.safetensors", "esparse.safetensors"


@dataclass(frozen=True)
class PrunedModel:
    """A pruned model that was saved.

    Attributes:
        model: in eval mode, ready to run.
        tokenizer: its tokenizer, or None if none was saved with it.
        name: of the folder.
        revision: "sha256:<hex>" over the checksums of its files.
        facts: what recipe.json holds.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    name: str
    revision: str
    facts: dict


def save_pruned(
    model: PreTrainedModel,
    recipe: Recipe,
    layers: Iterable[PrunedLayer],
    path: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    facts: Mapping[str, object] | None = None,
    compressed: bool = False,
) -> None:
    """Save a pruned model, folded or not, as a new folder.

    Without `compressed`, and where no norm gathers, `from_pretrained` of transformers loads it.

    Args:
        model: the model as `prune_model` or `fold` left it.
        recipe: what it was pruned by.
        layers: the records that they returned.
        path: the folder to make; it must not exist, or be empty.
        tokenizer: saved with it.
        facts: more to write down, such as `{"model": {"name": ..., "revision": ...}}`.
        compressed: store N:M layers as kept values and a bit a weight: 9/16 of float16 at 2:4.

    Raises:
        InputError: if the folder is taken, the records are not of this model or a weight that they
            call removed is not zero.
        EsparseError: if it cannot be written.
    """
    path = Path(path)
    refuse_full_folder(path)
    with building_folder(path) as folder:
        write_pruned(
            folder, model, recipe, layers, tokenizer=tokenizer, facts=facts, compressed=compressed
        )
        refuse_full_folder(path)


def refuse_full_folder(path: Path) -> None:
    """Raise `InputError` unless `path` may become a new folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} exists already and is not an empty folder. Choose another.")


@torch.no_grad()
def write_pruned(
    folder: Path,
    model: PreTrainedModel,
    recipe: Recipe,
    layers: Iterable[PrunedLayer],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    facts: Mapping[str, object] | None = None,
    compressed: bool = False,
) -> None:
    """Fill an empty folder as `save_pruned` does, whose arguments and errors it has."""
    layers = list(layers)
    _check_layers(model, layers)
    try:
        if compressed or gathered_norms(model):
            model.config.save_pretrained(folder)
            model.generation_config.save_pretrained(folder)
            _save_packed(model, layers, folder, compressed=compressed)
        else:
            model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        orders = {p.name: p.order.index.cpu().clone() for p in layers if p.order is not None}
        if orders:
            save_file(orders, folder / ORDERS)
    except OSError as error:
        raise cannot_write(folder, error) from error
    how = {"compressed": compressed, "folded": any(layer.folded for layer in layers)}
    describe(folder, recipe, [p.record() for p in layers], {**(facts or {}), **how})


def describe(
    folder: Path, recipe: Recipe, records: list[dict], facts: Mapping[str, object]
) -> None:
    """Write recipe.json: the last file of a folder, with checksums of the others.

    Args:
        folder: holds a pruned model.
        recipe: what it was pruned by.
        records: of its layers.
        facts: more to write down.
    """
    words = {
        "method": repr(recipe.method),
        "pattern": str(recipe.pattern),
        "search": repr(recipe.search),
        "calibration": recipe.calibration,
        "reconstruct": repr(recipe.reconstruct),
        "tuning": repr(recipe.tuning),
        "objective": recipe.objective,
        "allocation": repr(recipe.allocation),
        "orders": recipe.orders,
    }
    beside = ("config.json", "generation_config.json", "model.safetensors.index.json", ORDERS)
    kept = [name for name in beside if (folder / name).is_file()]
    files = sorted({file.name for file in _checkpoint(folder).files.values()}) + kept
    written = {
        **facts,
        "recipe": words,
        "layers": records,
        "masks_sha256": masks_sha256(stored_layers(folder)),
        "files": {name: sha256_of(folder / name) for name in files},
        "versions": versions(),
        "git": git_state(),
    }
    write_atomically(folder / FACTS, json.dumps(written, indent=2) + "\n")


def masks_sha256(layers: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over the names of layers and the places of their weights that are not zero."""
    digest = hashlib.sha256()
    for name, weight in layers:
        digest.update(f"{name} {tuple(weight.shape)}\n".encode())
        digest.update(np.packbits((weight != 0).numpy()).tobytes())
    return digest.hexdigest()


def is_packed(folder: str | Path) -> bool:
    """Whether a folder holds weights that only `load_pruned` reads."""
    return (Path(folder) / PACKED).is_file()


@torch.no_grad()
def load_pruned(
    path: str | Path,
    *,
    base: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "auto",
) -> PrunedModel:
    """Load what `save_pruned` or `esparse prune` saved, after a look at its checksums.

    Args:
        path: the folder.
        base: name or revision of the model that it must have been pruned from; None for any.
        dtype: of the weights; None for the one they were saved in.
        device: "auto" is cuda when there is one, else cpu.

    Raises:
        InputError: if the folder is no such folder, or of another base model.
        EsparseError: if a file is missing, damaged or was edited since.
    """
    path = Path(path)
    facts = read_facts(path)
    verify_files(path, facts)
    source = facts.get("model") or {}
    if base is not None and base not in (source.get("name"), source.get("revision")):
        found = f"{source['name']} ({source['revision']})" if source else "a model it does not name"
        raise InputError(f"{path} was pruned from {found}, not from {base}.")
    if is_packed(path):
        model = _load_packed(path, _checkpoint(path), dtype_of(dtype or _header(path)["dtype"]))
    else:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype="auto" if dtype is None else dtype_of(dtype),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    tokenizer = None
    if (path / "tokenizer_config.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(facts["files"].items()))
    revision = f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"
    model = model.to(device_of(device)).eval()
    return PrunedModel(model, tokenizer, path.resolve().name, revision, facts)


def read_facts(folder: Path) -> dict:
    """What recipe.json of a folder holds.

    Raises:
        InputError: if the folder has none that is of this version of esparse_lab.
    """
    try:
        facts = json.loads((folder / FACTS).read_text())
        if isinstance(facts["files"], dict) and isinstance(facts["layers"], list):
            return facts
        found = "holds other things than expected"
    except FileNotFoundError:
        found = "is missing"
    except (OSError, ValueError, LookupError, TypeError) as error:
        found = f"cannot be read ({error!r})"
    raise InputError(
        f"{folder} holds no pruned model of esparse_lab: its {FACTS} {found}. `esparse prune` and "
        "save_pruned write one; other folders are for load_model."
    )


def verify_files(folder: Path, facts: Mapping) -> None:
    """Raise `EsparseError` if a file of a saved model is missing or was edited since."""
    for name, digest in facts["files"].items():
        file = folder / Path(name).name  # never out of the folder
        if not file.is_file():
            raise EsparseError(f"{folder} lacks {name}, which was saved with it. Copy it again.")
        if sha256_of(file) != digest:
            raise EsparseError(
                f"{file} is not the file that was saved: it was edited or damaged since. Copy the "
                "folder again, or prune anew; load_model takes a plain folder as it is."
            )


def stored_layers(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every prunable layer of a folder, [out, in], one at a time, in the order of the data.

    Raises:
        InputError: if the folder holds no causal language model.
        EsparseError: if a tensor is missing or cannot be read.
    """
    checkpoint = _checkpoint(folder)
    model = skeleton(folder, torch.float32)
    packed = _packed_layers(folder)
    path_of = {id(parameter): path for path, parameter in model.named_parameters()}
    last, tensor = "", torch.empty(0)
    for name, matrix in prunable_layers(model).items():
        if name in packed:
            yield name, _unpacked(checkpoint, name, packed[name])
            continue
        if path_of[id(matrix.stored)] != last:
            last = path_of[id(matrix.stored)]
            tensor = checkpoint.read(last)
        weight = replace(matrix, module=_Holder(matrix.parameter, tensor)).weight
        if weight.shape != matrix.weight.shape:
            raise EsparseError(
                f"{name} is {list(weight.shape)} in {folder}, its config.json tells of "
                f"{list(matrix.weight.shape)}: that belongs to another model."
            )
        yield name, weight


class _Holder(nn.Module):
    def __init__(self, name: str, tensor: Tensor):
        super().__init__()
        self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))


@dataclass(frozen=True)
class StoredLayer:
    """How a layer lies in memory.

    Attributes:
        name: of the layer.
        pattern: what it was held against.
        violation: row, group and count of the first group with too many nonzero weights, or None.
    """

    name: str
    pattern: Pattern
    violation: tuple[int, int, int] | None


def check_storage(folder: str | Path, pattern: Pattern | None = None) -> list[StoredLayer]:
    """Hold the weights of any checkpoint against an N:M pattern, as they lie in its files.

    Tensors come in one by one. The checksums of a pruned model of esparse_lab are looked at too.

    Args:
        folder: a transformers folder with safetensors, or one of `save_pruned`.
        pattern: what every prunable layer must be; None for what its recipe.json says of each
            (layers left dense are skipped), or 2:4 without one.

    Raises:
        InputError: if the folder cannot be used, or its recipe has no N:M pattern.
        EsparseError: if a file is missing, damaged or was edited since.
    """
    folder = Path(folder)
    wanted: dict[str, Pattern] = {}
    facts = read_facts(folder) if (folder / FACTS).is_file() else None
    if facts is not None:
        verify_files(folder, facts)
        if pattern is None:
            found = {p["name"]: p["sparsity"] for p in facts["layers"] if p["sparsity"] != "dense"}
            wanted = {name: parse_sparsity(sparsity) for name, sparsity in found.items()}
            if other := [str(w) for w in wanted.values() if not isinstance(w, Pattern)]:
                raise InputError(
                    f"{folder} was pruned to {other[0]}, which has no groups. Give the N:M pattern "
                    "that it should be held against."
                )
    checked = []
    for name, weight in stored_layers(folder):
        of_layer = wanted.get(name) if wanted else pattern or Pattern(2, 4)
        if of_layer is not None:
            checked.append(StoredLayer(name, of_layer, first_violation(weight, of_layer)))
    return checked


def _check_layers(model: PreTrainedModel, layers: list[PrunedLayer]) -> None:
    matrices = prunable_layers(model)
    if set(matrices) != {layer.name for layer in layers}:
        strange = sorted(set(matrices) ^ {layer.name for layer in layers})
        raise InputError(
            f"The records are not of this model: {strange[0]} is in one of them alone. Give the "
            "list that prune_model returned for it."
        )
    for layer in layers:
        weight = matrices[layer.name].weight
        kept = int((weight != 0).sum())
        if kept > int(layer.mask.sum()):
            raise InputError(
                f"{layer.name} has {kept} nonzero weights, its record keeps {int(layer.mask.sum())}"
                ": the model was changed since it was pruned."
            )


def _checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint.open(folder, PACKED) if is_packed(folder) else Checkpoint.open(folder)


def _in_order(layer: PrunedLayer) -> Tensor | None:
    """The order that a layer's weights must be brought into to be N:M; None if they are."""
    return None if layer.folded or layer.order is None else layer.order.index


def _save_packed(
    model: PreTrainedModel, layers: list[PrunedLayer], folder: Path, *, compressed: bool
) -> None:
    parameters = dict(model.named_parameters())  # tied ones once
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tensors = {name: p.detach() for name, p in parameters.items()}
    tensors |= {name: t for name, t in model.state_dict().items() if name not in every}
    packed: dict[str, dict] = {}
    matrices = prunable_layers(model)
    packable = [p for p in layers if isinstance(p.sparsity, Pattern) and p.group_axis == "in"]
    for layer in packable if compressed else ():
        weight, index = matrices[layer.name].weight, _in_order(layer)
        ordered = weight if index is None else weight[:, index.to(weight.device)]
        small = compress(ordered, layer.sparsity, name=layer.name)
        packed[layer.name] = {
            "pattern": str(layer.sparsity),
            "columns": small.columns,
            "ordered": index is not None,
        }
        tensors |= {f"{layer.name}.values": small.values, f"{layer.name}.bits": small.bits}
    # A parameter goes only if all that it holds is packed: experts are slices of one.
    held: dict[int, set[str]] = {}
    for name, matrix in matrices.items():
        held.setdefault(id(matrix.stored), set()).add(name)
    for name, parameter in parameters.items():
        if held.get(id(parameter), {""}) <= set(packed):
            del tensors[name]
    metadata = {"format": "esparse", "dtype": str(model.dtype), "packed": json.dumps(packed)}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / PACKED, metadata=metadata)


def _header(folder: Path) -> dict[str, str]:
    try:
        with safe_open(folder / PACKED, "pt") as file:
            return {"packed": "{}", "dtype": "float32", **(file.metadata() or {})}
    except Exception as error:  # safetensors raises an error of its own and OSError
        raise EsparseError(f"{folder / PACKED} cannot be read: {error}.") from error


def _packed_layers(folder: Path) -> dict[str, dict]:
    return json.loads(_header(folder)["packed"]) if is_packed(folder) else {}


def _unpacked(checkpoint: Checkpoint, name: str, how: Mapping) -> Tensor:
    pattern = Pattern.parse(how["pattern"])
    values, bits = checkpoint.read(f"{name}.values"), checkpoint.read(f"{name}.bits")
    weight = Compressed(values, bits, pattern, how["columns"]).decompress()
    if how["ordered"]:
        order = Checkpoint.open(checkpoint.folder, ORDERS).read(name)
        weight = weight[:, order.argsort()]
    return weight


def _load_packed(folder: Path, checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    model = skeleton(folder, dtype)
    packed = _packed_layers(folder)
    for name in checkpoint.files:
        path, _, leaf = name.rpartition(".")
        if leaf == "index":
            gather_after(model, path, checkpoint.read(name))
    matrices = prunable_layers(model)
    held = {id(matrices[name].stored) for name in packed}
    for name, parameter in list(model.named_parameters()):
        stored = name in checkpoint.files
        if not stored and id(parameter) not in held:
            continue  # tied to another
        tensor = checkpoint.read(name) if stored else torch.empty(parameter.shape)
        if tensor.shape != parameter.shape:
            raise EsparseError(
                f"{name} is {list(tensor.shape)} in {folder}, its config.json tells of "
                f"{list(parameter.shape)}: that belongs to another model."
            )
        path, _, leaf = name.rpartition(".")
        filled = nn.Parameter(tensor.to(dtype), requires_grad=False)
        model.get_submodule(path)._parameters[leaf] = filled
    for name, how in packed.items():
        matrices[name].weight.copy_(_unpacked(checkpoint, name, how))
    for name, buffer in list(model.named_buffers()):
        if name in checkpoint.files:
            buffer.copy_(checkpoint.read(name))
    model.tie_weights()
    model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    if absent := [name for name, p in model.named_parameters() if p.is_meta]:
        raise EsparseError(f"{folder} lacks the weights {absent[0]}. Copy it again.")
    return model
