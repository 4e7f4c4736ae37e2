"""Prune a checkpoint that does not fit the device: blocks come in and go out one at a time.

Never more than one block's weights are in memory, beside the embedding; matched to the dense model,
its dense weights too. A run that is stopped goes
on at the first block it had not finished: the finished ones are read back and run, which gives the
same hidden states bit for bit.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.std import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from esparse_lab.architectures import transformer_blocks
from esparse_lab.atomic import cannot_write, lock_folder, write_atomically
from esparse_lab.capture import BlockWalk
from esparse_lab.corpora import tokens_sha256
from esparse_lab.errors import EsparseError, InputError, unknown
from esparse_lab.models import device_of, dtype_of
from esparse_lab.pruning import (
    PrunedLayer,
    Recipe,
    check_tokens_given,
    layer_sparsities,
    prune_block,
    twin_of,
)

Place = Literal["device", "cpu", "disk"]

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_RUN = "run.json"

# How checkpoints name the experts that a model holds as two stacks: by what they call the MLP.
_EXPERTS = {
    "mlp": {
        "gate_up_proj": ("gate_proj.weight", "up_proj.weight"),
        "down_proj": ("down_proj.weight",),
    },
    "block_sparse_moe": {
        "gate_up_proj": ("w1.weight", "w3.weight"),
        "down_proj": ("w2.weight",),
    },
}


@dataclass(frozen=True)
class Checkpoint:
    """Tensors in safetensors files, read one by one.

    Attributes:
        folder: where they lie, for messages.
        files: which file holds each tensor.
    """

    folder: Path
    files: dict[str, Path]

    @classmethod
    def open(cls, folder: Path, weights: str = _WEIGHTS) -> "Checkpoint":
        """The checkpoint that `save_pretrained` wrote to `folder`, or the one file `weights`.

        Raises:
            InputError: if the folder holds none, or not all of it.
            EsparseError: if what it holds cannot be read.
        """
        index, single = folder / _INDEX, folder / weights
        if not (index.is_file() or single.is_file()):
            raise InputError(
                f"{folder} has no {_WEIGHTS} and no {_INDEX}. Streaming reads a folder that "
                "save_pretrained wrote."
            )
        try:
            if index.is_file():
                names = json.loads(index.read_text())["weight_map"]
            else:
                names = dict.fromkeys(_names(single), weights)
            # Only the file's own name: an index must not lead out of its folder.
            files = {name: folder / Path(file).name for name, file in names.items()}
        except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
            raise EsparseError(f"The checkpoint in {folder} cannot be read: {error!r}.") from error
        if absent := sorted({f.name for f in files.values() if not f.is_file()}):
            raise InputError(
                f"{folder} lacks {', '.join(absent)}, which its {_INDEX} names. Was the download "
                "or the copy cut off? Complete it."
            )
        return cls(folder, files)

    def fill(self, module: nn.Module, prefix: str, device: torch.device, dtype: torch.dtype):
        """Give `module`, whose parameters are on no device, its weights.

        Args:
            module: its own and its children's parameters are filled.
            prefix: the module's path in the model, with a dot, or "".
            device: where they go.
            dtype: what they become.

        Raises:
            EsparseError: if a tensor is missing or has another shape.
        """
        for name, parameter in list(module.named_parameters()):
            path, _, leaf = name.rpartition(".")
            tensor = self.read(prefix + name).to(device, dtype)
            if tensor.shape != parameter.shape:
                raise EsparseError(
                    f"{prefix}{name} is {list(tensor.shape)} in {self.folder}, the model expects "
                    f"{list(parameter.shape)}: its config.json belongs to another model."
                )
            filled = nn.Parameter(tensor, requires_grad=False)
            module.get_submodule(path)._parameters[leaf] = filled

    def read(self, name: str) -> Tensor:
        """One tensor of the model, on the CPU, in the dtype of the file."""
        if name not in self.files:  # what save_pretrained writes for models with images
            name = name.replace("model.language_model.", "language_model.model.")
        for mixture, of_expert in _EXPERTS.items():
            stored = name.replace(".mlp.", f".{mixture}.")
            path, _, parameter = stored.rpartition(".")
            if name not in self.files and f"{path}.0.{of_expert['down_proj'][0]}" in self.files:
                return self._stacked(path, of_expert[parameter])
            if name not in self.files and stored in self.files:
                name = stored
        if name not in self.files:
            near = sorted(self.files)[:3]
            raise EsparseError(
                f"{self.folder} has no tensor {name}; it has {', '.join(near)} ... Streaming needs "
                "tensors under the model's own names. Load the model whole and save it with "
                "save_pretrained, or prune it in memory."
            )
        with _reading(self.files[name]) as file:
            return file.get_tensor(name)

    def _stacked(self, path: str, parts: tuple[str, ...]) -> Tensor:
        """Experts that are stored one by one, as the model holds them: [expert, out, in]."""
        n_experts = sum(name.startswith(f"{path}.") for name in self.files) // 3
        experts = range(n_experts)
        return torch.stack(
            [torch.cat([self.read(f"{path}.{e}.{part}") for part in parts]) for e in experts]
        )


@contextmanager
def _reading(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise EsparseError(f"{path} cannot be read: {error}.") from error


def _names(path: Path) -> list[str]:
    with _reading(path) as file:
        return list(file.keys())


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise EsparseError(
            f"Cannot write {path}: {error}. When there is room, the same call goes on from here."
        ) from error


@torch.no_grad()
def prune_checkpoint(
    source: Path,
    out: Path,
    tokens: Tensor | None,
    recipe: Recipe,
    *,
    device: str = "auto",
    dtype: torch.dtype | str = "float16",
    activations: Place = "device",
    progress: bool = True,
    after_block: Callable[[int], None] | None = None,
    describe: Callable[[Path, list[dict]], None] | None = None,
) -> list[dict]:
    """Prune the model in `source` into the new folder `out`, block by block.

    What is finished lies in a folder beside `out` whose name ends in ".partial"; the same call
    takes it up again. The pruned model is an ordinary transformers folder (zeros stored as such)
    with pruned.json, one record a layer, and orders.safetensors, the channel orders.

    Args:
        source: a folder that `save_pretrained` wrote.
        out: the folder to make; must not exist.
        tokens: calibration tokens, int64 [sequence, position]; None for a recipe without needs.
        recipe: what to do. An allocation that measures the whole model first cannot be streamed.
        device: where blocks run; "auto" is cuda when there is one, else cpu.
        dtype: of the weights that run and of those that are written.
        activations: where hidden states live between blocks: on the device, in CPU memory, or in
            files under the partial folder.
        progress: show a bar, one step a block.
        after_block: called with the number of each block that is finished.
        describe: called with the folder and all records before the folder gets its name.

    Returns:
        What each layer's record in pruned.json holds.

    Raises:
        InputError: for a folder that cannot be used, or a partial folder of another run.
        EsparseError: as `prune_model`.
    """
    if activations not in get_args(Place):
        raise unknown("place of activations", activations, get_args(Place))
    if recipe.orders != "mask":
        raise InputError(
            f"orders={recipe.orders!r} is for models in memory, whose weights can then be folded; "
            "streaming leaves the channels in their places. Take orders='mask'."
        )
    device, dtype = device_of(device), dtype_of(dtype)
    check_tokens_given(tokens, recipe)
    if recipe.allocation is not None and recipe.allocation.measures:
        raise InputError(
            f"{recipe.allocation} measures the whole model before a layer is pruned, which "
            "streaming never holds. Take the uniform allocation, or prune in memory."
        )
    if recipe.tuning is not None and recipe.tuning.ahead:
        raise InputError(
            f"{recipe.tuning} reads the next blocks, and streaming holds one at a time. Take "
            "ahead=0, or prune in memory."
        )
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    if out.exists():
        raise InputError(f"{out} exists already and is not an empty folder. Choose another.")
    checkpoint = Checkpoint.open(source)
    model = skeleton(source, dtype)
    partial = out.with_name(f"{out.name}.partial")
    with _unfinished_run(partial, source, checkpoint, tokens, recipe, f"{dtype} on {device}"):
        blocks = transformer_blocks(model)
        inside = {id(p) for block in blocks for p in block.module.parameters()}
        _fill_outside_blocks(model, checkpoint, inside, device, dtype)
        sparsities = layer_sparsities(model, tokens, recipe)
        walk = None
        if recipe.needs is not None:
            walk = BlockWalk.start(
                model, tokens, _keeper(activations, partial), recipe.tokens_at_once
            )
        twin = twin_of(walk, recipe)
        # Moves on with the weights as they were.
        dense = twin.walk if twin is not None else walk if recipe.calibration == "dense" else None
        records: list[dict] = []
        for index in tqdm(range(len(blocks)), "pruning", unit="block", disable=not progress):
            block, done = blocks[index], partial / f"block-{index:05}.json"
            prefix = f"{block.name}."
            if done.is_file():
                records += json.loads(done.read_text())
                if dense is not None:
                    checkpoint.fill(block.module, prefix, device, dtype)
                    dense.advance(index)
                if walk is not None and walk is not dense:
                    shard = partial / f"block-{index:05}.safetensors"
                    finished = Checkpoint(partial, dict.fromkeys(_names(shard), shard))
                    finished.fill(block.module, prefix, device, dtype)
                    walk.advance(index)
            else:
                checkpoint.fill(block.module, prefix, device, dtype)
                pruned = prune_block(block, walk, twin, index, recipe, sparsities)
                records += _write_block(partial, index, prefix, block.module, pruned)
            block.module.to("meta")
            if after_block is not None:
                after_block(index)
        _finish(partial, source, checkpoint, model, len(blocks), dtype)
        if describe is not None:
            describe(partial, records)
        partial.rename(out)
        # Only now: a run that is killed before can still be taken up.
        for pattern in ("orders-*.safetensors", "block-*.json", _RUN):
            for path in out.glob(pattern):
                path.unlink()
    return records


def skeleton(source: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a folder with real buffers and no weights."""
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=True)
        with _parameters_on_meta():
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{source}/config.json cannot be used: {reason} Expected that of a causal language "
            "model that this version of transformers knows."
        ) from error
    return model.eval()


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """While open, new modules get parameters without memory; their buffers are real."""
    register = nn.Module.register_parameter

    def without_memory(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = without_memory
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def _fill_outside_blocks(
    model: PreTrainedModel,
    checkpoint: Checkpoint,
    inside: set[int],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Give everything that runs before the blocks its weights: all but blocks and output head."""
    head = model.get_output_embeddings()
    skipped = inside | {id(p) for p in head.parameters()} if head is not None else inside
    embedding = {id(p) for p in model.get_input_embeddings().parameters()}
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False)]
        if own and (not skipped & {id(p) for p in own} or embedding & {id(p) for p in own}):
            checkpoint.fill(module, f"{name}.", device, dtype)
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = buffer.to(device)


def _keeper(activations: Place, partial: Path) -> Callable[[Tensor], Tensor]:
    """What puts a batch of hidden states where it lives between blocks."""
    if activations == "device":
        return torch.clone
    if activations == "cpu":
        return lambda hidden: hidden.to("cpu", copy=True)

    def to_file(hidden: Tensor) -> Tensor:
        path = partial / "hidden.bin"
        try:
            # Written, not mapped and filled: a full disk is an error then, and no SIGBUS.
            path.write_bytes(hidden.cpu().contiguous().view(torch.uint8).numpy())
        except OSError as error:
            raise cannot_write(path, error) from error
        mapped = torch.from_file(str(path), shared=True, size=hidden.numel(), dtype=hidden.dtype)
        path.unlink()  # the mapping lives on, and a kill leaves nothing behind
        return mapped.view(hidden.shape)

    return to_file


@contextmanager
def _unfinished_run(
    partial: Path,
    source: Path,
    checkpoint: Checkpoint,
    tokens: Tensor | None,
    recipe: Recipe,
    how: str,
) -> Iterator[None]:
    """Hold the partial folder: made, or seen to belong to this very run, and in nobody's hands."""
    files = sorted(set(checkpoint.files.values()))
    run = {
        "files": {f.name: [f.stat().st_size, f.stat().st_mtime_ns] for f in files},
        "config": (source / "config.json").read_text() if (source / "config.json").exists() else "",
        "tokens": None if tokens is None else tokens_sha256(tokens),
        "recipe": repr(recipe),
        "how": how,
        "versions": [version(name) for name in ("esparse_lab", "torch", "transformers")],
    }
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(partial, wait=False)
    except BlockingIOError as error:
        raise InputError(f"{partial} is in use: another process prunes into it.") from error
    except OSError as error:
        raise cannot_write(partial, error) from error
    try:
        _check_run(partial, run)
        yield
    finally:
        os.close(lock)


def _check_run(partial: Path, run: dict) -> None:
    if (partial / _RUN).is_file() and any(partial.glob("block-*.json")):
        if json.loads((partial / _RUN).read_text()) != run:
            raise InputError(
                f"{partial} holds the unfinished run of another recipe, model, text, device or "
                "version of a package. Delete it to start anew, or choose another folder."
            )
    else:
        write_atomically(partial / _RUN, json.dumps(run))


def _write_block(
    partial: Path, index: int, prefix: str, module: nn.Module, pruned: list[PrunedLayer]
) -> list[dict]:
    """Save a pruned block; its record, written last, says that it is finished."""
    weights = {prefix + n: p.detach().cpu().contiguous() for n, p in module.named_parameters()}
    _save(weights, partial / f"block-{index:05}.safetensors")
    orders = {p.name: p.order.index.cpu().clone() for p in pruned if p.order is not None}
    _save(orders, partial / f"orders-{index:05}.safetensors")
    records = [layer.record() for layer in pruned]
    write_atomically(partial / f"block-{index:05}.json", json.dumps(records))
    return records


def _finish(
    partial: Path,
    source: Path,
    checkpoint: Checkpoint,
    model: PreTrainedModel,
    n_blocks: int,
    dtype: torch.dtype,
) -> None:
    """Turn the partial folder into a transformers folder."""
    in_blocks = {f"{block.name}." for block in transformer_blocks(model)}
    rest = {
        name: checkpoint.read(name)
        for name in checkpoint.files
        if not any(name.startswith(prefix) for prefix in in_blocks)
    }
    rest = {n: t.to(dtype) if t.is_floating_point() else t for n, t in rest.items()}
    _save(rest, partial / "outside-blocks.safetensors")
    weight_map, orders, records = dict.fromkeys(rest, "outside-blocks.safetensors"), {}, []
    for index in range(n_blocks):
        shard = f"block-{index:05}.safetensors"
        weight_map |= dict.fromkeys(_names(partial / shard), shard)
        with _reading(partial / f"orders-{index:05}.safetensors") as file:
            orders |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        records += json.loads((partial / f"block-{index:05}.json").read_text())
    size = sum(path.stat().st_size for path in set(map(partial.joinpath, weight_map.values())))
    if orders:
        _save(orders, partial / "orders.safetensors")
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    write_atomically(partial / _INDEX, json.dumps(index, indent=1))
    write_atomically(partial / "pruned.json", json.dumps(records, indent=1))
    model.config.save_pretrained(partial)
    for path in source.iterdir():
        ours = path.name in ("recipe.json", "pruned.json")  # of an earlier pruning
        kept = path.suffix in (".json", ".model", ".txt", ".jinja") and not ours
        if kept and path.is_file() and not (partial / path.name).exists():
            write_atomically(partial / path.name, path.read_bytes())
