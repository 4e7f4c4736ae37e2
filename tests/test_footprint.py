"""What models weigh: the paper's table, sums worked by hand, and every family against its bytes."""

import pytest
from tiny_models import TINY_CONFIGS, random_model
from transformers import LlamaConfig, ViTConfig

from esparse_lab import (
    EsparseError,
    InputError,
    Magnitude,
    Pattern,
    Recipe,
    compress,
    prune_model,
    tables,
)
from esparse_lab import footprint as fp
from esparse_lab.architectures import prunable_layers

# (hidden, intermediate, blocks) as the LLaMA paper prints them, and the weights it counts.
PRINTED = {
    "LLaMA-7B": (4096, 11008, 32, 6.7e9),
    "LLaMA-13B": (5120, 13824, 40, 13.0e9),
    "LLaMA-30B": (6656, 17920, 60, 32.5e9),
    "LLaMA-65B": (8192, 22016, 80, 65.2e9),
}


def parameters(hidden, intermediate, blocks, vocabulary=32000):
    """(prunable, others) of a first-generation LLaMA, from its description."""
    prunable = blocks * (4 * hidden * hidden + 3 * hidden * intermediate)
    return prunable, 2 * vocabulary * hidden + (2 * blocks + 1) * hidden


@pytest.mark.parametrize("name", PRINTED)
def test_the_papers_models_are_counted_as_their_description_says(name):
    *sizes, printed = PRINTED[name]
    prunable, others = parameters(*sizes)
    tensors = fp.tensor_table(fp.meta_model(name))
    assert tensors[tensors.prunable].weights.sum() == prunable
    assert tensors.weights.sum() == prunable + others == pytest.approx(printed, rel=0.006)
    assert tensors.dense_bytes.sum() == 2 * (prunable + others)
    assert tensors.compressed_bytes.sum() * 8 == 9 * prunable + 16 * others
    assert set(tensors[tensors.prunable].part) == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    assert tensors.tensor.is_unique


def test_the_formula_gives_all_eight_printed_figures_and_the_truth_does_not():
    table = fp.table6()
    wide = table.set_index(["model", "counted", "unit"])[["dense", "compressed"]]
    published = wide.xs("published", level="counted").droplevel("unit")
    formula = wide.xs("formula", level="counted").droplevel("unit")
    assert published.shape == (4, 2)
    assert (formula - published).abs().to_numpy().max() < 0.005 + 1e-9
    # Figures of METHODS, worked out apart from this package.
    gb = wide.xs("GB", level="unit").round(2).droplevel("counted")
    assert gb.loc["LLaMA-7B"].tolist() == [13.48, 7.81]
    assert gb.loc["LLaMA-13B"].tolist() == [26.03, 14.93]
    assert gb.loc["LLaMA-30B"].tolist() == [65.06, 36.97]
    assert gb.loc["LLaMA-65B"].tolist() == [130.57, 73.91]
    gib = wide.xs("GiB", level="unit").round(2).droplevel("counted")
    assert gib.loc["LLaMA-7B"].tolist() == [12.55, 7.27]
    savings = table[table.unit == "GB"].saving_percent.round(2).tolist()
    assert savings == [42.05, 42.65, 43.18, 43.40]
    assert table[table.counted == "published"].saving_percent.round(2).tolist() == [
        *(42.64, 43.01, 43.38, 43.52)
    ]


def test_the_terms_between_the_paper_and_the_truth_add_up():
    terms = fp.table6_terms()
    sums = terms.groupby(["model", "form"]).gb.sum()
    truth = fp.table6().query("unit == 'GB'").set_index("model")
    for model in PRINTED:
        assert sums[model, "dense"] == pytest.approx(truth.dense[model], rel=1e-12)
        assert sums[model, "compressed"] == pytest.approx(truth.compressed[model], rel=1e-12)
    first = terms[(terms.model == "LLaMA-7B") & (terms.form == "dense")].set_index("term").gb
    assert first["counted by the paper"] == pytest.approx(9.85)
    assert first["third FFN matrix"] == pytest.approx(32 * 4096 * 11008 * 2 / 1e9)


@pytest.mark.parametrize("family", TINY_CONFIGS)
@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(3, 16)], ids=str)
def test_of_every_family_the_sums_are_the_bytes_that_are_stored(family, pattern):
    model = random_model(family)
    tensors = fp.tensor_table(model, pattern, value_bits=32)
    assert tensors.weights.sum() == sum(p.numel() for p in model.parameters())
    assert tensors.tensor.is_unique
    others = tensors.dense_bytes[~tensors.prunable].sum()
    prune_model(model, None, Recipe(Magnitude(), pattern), progress=False)
    stored = sum(
        compress(layer.weight, pattern).nbytes for layer in prunable_layers(model).values()
    )
    assert tensors.compressed_bytes.sum() == others + stored
    measured = fp.compression_table(model, pattern)
    assert measured.exact.all()
    assert list(measured.layer) == list(tensors[tensors.prunable].tensor)
    assert measured.compressed_bytes.tolist() == measured.predicted_bytes.tolist()
    assert measured.compressed_bytes.sum() == stored
    parts = fp.part_table(tensors)
    assert (parts.kept_share + parts.saved_share).sum() == pytest.approx(1)
    assert parts.weights.sum() == tensors.weights.sum()
    whole = tensors.dense_bytes.sum()
    assert parts.saved_share.sum() == pytest.approx(1 - tensors.compressed_bytes.sum() / whole)


def test_tied_embeddings_are_counted_once_and_untied_ones_are_an_embedding_and_a_head():
    tied = fp.tensor_table(random_model("llama", tie_word_embeddings=True))
    untied = fp.tensor_table(random_model("llama", tie_word_embeddings=False))
    assert untied.weights.sum() - tied.weights.sum() == 256 * 24
    assert untied.set_index("tensor").part["lm_head.weight"] == "output head"
    assert "output head" not in set(tied.part)
    assert tied.set_index("tensor").part["model.embed_tokens.weight"] == "embedding"


def test_a_layer_that_was_not_pruned_is_named():
    model = random_model("llama")
    prune_model(model, None, Recipe(Magnitude(), Pattern(2, 4)), progress=False)
    model.model.layers[1].mlp.up_proj.weight.data[3, 4:8] = 1
    with pytest.raises(
        InputError, match=r"layers\.1\.mlp\.up_proj is not 2:4: row 3, channels 4 to 7 hold 4 "
    ):
        fp.compression_table(model)


def test_a_model_is_known_by_its_configuration_alone(tmp_path):
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=50,
    )
    config.save_pretrained(tmp_path)
    model = fp.meta_model(tmp_path)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    prunable, others = parameters(16, 24, 2, 50)
    assert fp.tensor_table(model).weights.sum() == prunable + others
    assert fp.meta_model("llama-7b").config.hidden_size == 4096


def test_what_is_no_language_model_says_so(tmp_path):
    with pytest.raises(EsparseError, match="Could not read the configuration"):
        fp.meta_model(tmp_path)
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"type 'vit', which is no causal .*LLaMA-7B, LLaMA-13B"):
        fp.meta_model(tmp_path)


def test_shares_of_dense_by_hand():
    table = fp.pattern_table([Pattern(2, 4), Pattern(4, 8)], [16]).set_index("pattern")
    assert table.hardware.tolist() == [9 / 16, 9.5 / 16]
    assert table.bitmask.tolist() == [9 / 16, 9 / 16]


def test_kept_measurements_have_the_columns_that_are_promised():
    kept = tables.recorded("memory_h100", "weights")
    if kept is None:
        pytest.skip("no GPU record is kept")
    frame, record = kept
    assert {"model", "form", "allocated_gib", "weights_gib", "expected_gib"} <= set(frame)
    assert set(frame.form) == {"dense", "sparse"}
    assert record["device"]
    assert record["started"]
