"""What a model's weights take, tensor by tensor, dense and compressed; Table 6 of the paper.

Shapes alone decide it, so models are built on the meta device, where tensors hold no data.
Activations and the KV cache are not counted. GB is 1e9 bytes, GiB is 2**30.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from esparse_lab.architectures import prunable_layers
from esparse_lab.errors import InputError
from esparse_lab.masks import Pattern
from esparse_lab.models import load_config
from esparse_lab.storage import Index, bits_per_weight, compress, compressed_bytes
from esparse_lab.tables import paper_table


@dataclass(frozen=True)
class LlamaShape:
    """The sizes that decide what a first-generation LLaMA weighs."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocab: int = 32000

    @property
    def config(self) -> LlamaConfig:
        """For transformers."""
        return LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            vocab_size=self.vocab,
        )


LLAMA = {
    "LLaMA-7B": LlamaShape(4096, 11008, 32, 32),
    "LLaMA-13B": LlamaShape(5120, 13824, 40, 40),
    "LLaMA-30B": LlamaShape(6656, 17920, 60, 52),
    "LLaMA-65B": LlamaShape(8192, 22016, 80, 64),
}
"""The models of Table 6, by the paper's names. Source: Touvron et al. 2023, arXiv 2302.13971."""

TWO_FOUR = Pattern(2, 4)


def meta_model(name: str | Path) -> PreTrainedModel:
    """The model of that name without its weights: of `LLAMA` in any case, or of `load_config`.

    A family that esparse_lab does not list must be run to be understood, which such a model cannot:
    load it and hand it to `tensor_table` itself.

    Raises:
        InputError: no such model, or its configuration is not that of a causal language model.
    """
    known = {key.lower(): shape for key, shape in LLAMA.items()}
    shape = known.get(str(name).lower())
    config = load_config(name) if shape is None else shape.config
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise InputError(
            f"{name} is of type {config.model_type!r}, which is no causal language model that this "
            f"version of transformers knows. Models of the paper: {', '.join(LLAMA)}."
        ) from error


def tensor_table(
    model: PreTrainedModel,
    pattern: Pattern = TWO_FOUR,
    *,
    value_bits: int = 16,
    index: Index = "bitmask",
) -> pd.DataFrame:
    """One row a tensor of `model`, tied ones once, those of the prunable layers compressed.

    Args:
        model: real, or from `meta_model`.
        pattern: of the prunable layers; where their groups are not whole it is counted as stored.
        value_bits: of a number.
        index: how the kept weights' places are stored; see `compressed_bytes`.

    Columns: tensor, part (role of a prunable layer, or "embedding", "output head", "norms, biases
    and others"), shape, weights (a count), prunable, dense_bytes, compressed_bytes.
    """
    layers = prunable_layers(model)
    held = {id(getattr(layer.module, layer.parameter)) for layer in layers.values()}
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = model.get_output_embeddings()
    rows = []
    for name, layer in layers.items():
        shape = tuple(layer.weight.shape)
        stored = compressed_bytes(*shape, pattern, value_bits=value_bits, index=index)
        rows.append((name, name.rpartition(".")[2], shape, True, stored))
    for name, tensor in model.named_parameters():
        if id(tensor) in held:
            continue
        part = "norms, biases and others"
        if id(tensor) in embeddings:
            part = "embedding"
        elif head is not None and tensor is head.weight:
            part = "output head"
        rows.append((name, part, tuple(tensor.shape), False, None))
    frame = pd.DataFrame(rows, columns=["tensor", "part", "shape", "prunable", "compressed_bytes"])
    frame.insert(3, "weights", [torch.Size(shape).numel() for shape in frame["shape"]])
    frame["shape"] = [" × ".join(map(str, shape)) for shape in frame["shape"]]
    frame.insert(5, "dense_bytes", frame.weights * value_bits // 8)
    compressed = frame.pop("compressed_bytes")
    return frame.assign(compressed_bytes=compressed.fillna(frame.dense_bytes).astype("int64"))


def part_table(tensors: pd.DataFrame) -> pd.DataFrame:
    """A `tensor_table` summed over the tensors of a part, in their order.

    Columns: part, prunable, tensors and weights (counts), dense_gb, compressed_gb, saved_gb,
    kept_share and saved_share (of the dense model, 0 to 1).
    """
    parts = tensors.groupby(["part", "prunable"], sort=False).agg(
        tensors=("tensor", "count"),
        weights=("weights", "sum"),
        dense_gb=("dense_bytes", "sum"),
        compressed_gb=("compressed_bytes", "sum"),
    )
    parts[["dense_gb", "compressed_gb"]] /= 1e9
    parts["saved_gb"] = parts.dense_gb - parts.compressed_gb
    whole = parts.dense_gb.sum()
    parts["kept_share"], parts["saved_share"] = parts.compressed_gb / whole, parts.saved_gb / whole
    return parts.reset_index()


def paper_formula(shape: LlamaShape) -> tuple[float, float]:
    """Dense and 2:4 "GB" by the formula that gives every figure of Table 6.

    It counts the four attention matrices, TWO of the three FFN matrices and ONE of the two
    vocabulary matrices at 2 bytes a weight, no norms, 9/16 of it for what is pruned, in MiB, and
    divides by 1000. The paper does not state it; it was found by fitting its 8 figures.
    """
    pruned = shape.layers * (4 * shape.hidden**2 + 2 * shape.hidden * shape.intermediate) * 2
    kept = shape.vocab * shape.hidden * 2
    thousand_mib = 1000 * 2**20
    return (pruned + kept) / thousand_mib, (9 / 16 * pruned + kept) / thousand_mib


def table6() -> pd.DataFrame:
    """Table 6 three times: as published, by the paper's formula, and counted from the model.

    Columns: model, counted ("published", "formula", "true"), unit, dense, compressed,
    saving_percent.
    """
    published = paper_table(6).pivot_table(index="model", columns="column", values="value")
    rows = []
    for name, shape in LLAMA.items():
        tensors = tensor_table(meta_model(name))
        true = tensors.dense_bytes.sum(), tensors.compressed_bytes.sum()
        printed = published.loc[name, ["Dense (FP16)", "Sparse (FP16)"]]
        rows += [
            (name, "published", "GB as printed", *printed),
            (name, "formula", "1000 MiB", *paper_formula(shape)),
            (name, "true", "GB", *(size / 1e9 for size in true)),
            (name, "true", "GiB", *(size / 2**30 for size in true)),
        ]
    frame = pd.DataFrame(rows, columns=["model", "counted", "unit", "dense", "compressed"])
    return frame.assign(saving_percent=100 * (1 - frame.compressed / frame.dense))


def table6_terms() -> pd.DataFrame:
    """What lies between Table 6 and the truth: terms that add up to a model's fp16 weights.

    The "unit" is that 1000 MiB are 1.048576 GB.

    Columns: model, term, form ("dense" or "compressed"), gb.
    """
    rows = []
    for name, shape in LLAMA.items():
        third = shape.layers * shape.hidden * shape.intermediate * 2 / 1e9
        rest = (shape.vocab + 2 * shape.layers + 1) * shape.hidden * 2 / 1e9
        for form, printed, share in zip(
            ("dense", "compressed"), paper_formula(shape), (1, 9 / 16), strict=True
        ):
            rows += [
                (name, "counted by the paper", form, printed),
                (name, "unit", form, printed * (1000 * 2**20 / 1e9 - 1)),
                (name, "third FFN matrix", form, third * share),
                (name, "output head, norms", form, rest),
            ]
    return pd.DataFrame(rows, columns=["model", "term", "form", "gb"])


def pattern_table(
    patterns: Iterable[Pattern], value_bits: Iterable[int] = (32, 16, 8)
) -> pd.DataFrame:
    """Storage of N:M weights as a share of dense (0 to 1), where groups are whole.

    Columns: pattern, value_bits, hardware (places in the group), bitmask (a bit a weight).
    """
    rows = [
        (str(p), b, bits_per_weight(p, b, "hardware") / b, bits_per_weight(p, b, "bitmask") / b)
        for p in patterns
        for b in value_bits
    ]
    return pd.DataFrame(rows, columns=["pattern", "value_bits", "hardware", "bitmask"])


def compression_table(model: PreTrainedModel, pattern: Pattern = TWO_FOUR) -> pd.DataFrame:
    """Compress and decompress every prunable layer of a pruned model, which stays as it is.

    Columns: layer, shape, dense_bytes, compressed_bytes (measured), predicted_bytes (by
    `compressed_bytes`), exact (all weights came back equal).

    Raises:
        InputError: a layer is not N:M sparse; names it.
    """
    rows = []
    for name, layer in prunable_layers(model).items():
        weight = layer.weight
        stored = compress(weight, pattern, name=name)
        predicted = compressed_bytes(*weight.shape, pattern, value_bits=8 * weight.element_size())
        exact = torch.equal(stored.decompress(), weight)
        shape = " × ".join(map(str, weight.shape))
        rows.append((name, shape, weight.nbytes, stored.nbytes, predicted, exact))
    columns = ["layer", "shape", "dense_bytes", "compressed_bytes", "predicted_bytes", "exact"]
    return pd.DataFrame(rows, columns=columns)
