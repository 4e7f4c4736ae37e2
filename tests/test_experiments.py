"""Kept measurements belong to the weights that were measured; ladders hold what they name."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import random_model

from esparse_lab import (
    METHODS,
    SEARCHES,
    DaSS,
    InputError,
    Magnitude,
    OutlierShare,
    Pattern,
    Recipe,
    Uniform,
    Unstructured,
    prunable_layers,
    prune_model,
    tables,
)
from esparse_lab.experiments import (
    ladder,
    ladder_rows,
    perplexity_ladder,
    retained_table,
    weights_fingerprint,
)
from esparse_lab.models import LoadedModel
from esparse_lab.run_record import Run


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ESPARSE_CACHE", str(tmp_path))


@pytest.fixture
def loaded(tiny_llama) -> LoadedModel:
    return LoadedModel(tiny_llama, None, "tiny", "revision")


def test_a_second_ladder_is_read_from_disk_and_leaves_the_model_dense(loaded, tokens):
    before = weights_fingerprint(loaded.model)
    recipes = ladder(METHODS, ["2:4", "50%"], ["none"], reconstruct=True)
    first, second = (
        perplexity_ladder(loaded, tokens, tokens, recipes, progress=False) for _ in range(2)
    )
    assert first.equals(second)  # the seconds, too
    assert weights_fingerprint(loaded.model) == before
    assert len(first) == 1 + len(METHODS) * 2 * 2


def test_a_ladder_that_is_stopped_goes_on_where_it_was(loaded, tokens):
    recipes = ladder(["magnitude", "wanda"], ["2:4"], ["none"])
    rows = ladder_rows(loaded, tokens, tokens, recipes)
    started = [next(rows), next(rows)]
    rows.close()
    again = list(ladder_rows(loaded, tokens, tokens, recipes))
    assert again[:2] == started  # the seconds, too
    assert [row["method"] for row in again] == ["dense", "magnitude", "wanda"]


def test_a_ladder_tells_of_blocks_and_windows_and_can_be_stopped_at_each(loaded, tokens):
    class Stopped(Exception):
        pass

    before = weights_fingerprint(loaded.model)
    heard, last = [], None

    def told(*news):
        heard.append(news)
        if news == last:
            raise Stopped

    many = tokens.repeat(40, 2)  # 200 windows of 24: several batches of 1024 tokens
    recipes = ladder(["magnitude"], ["2:4"], ["none"])
    rows = ladder_rows(loaded, tokens, many, recipes, told)
    next(rows)
    windows = [("perplexity, window", done, 200) for done in range(0, 200, 42)]
    assert heard == windows
    for last in (("pruning, block", 2, 3), windows[2]):  # noqa: B007 - told looks at it
        heard.clear()
        with pytest.raises(Stopped):
            list(ladder_rows(loaded, tokens, many, recipes, told))
        assert weights_fingerprint(loaded.model) == before
    assert heard == [("pruning, block", done, 3) for done in range(3)] + windows[:3]


def test_other_calibration_tokens_are_measured_anew_where_they_are_read(loaded, tokens):
    recipes = ladder(["magnitude", "wanda"], ["2:4"], ["none"])
    recipes += ladder(["magnitude"], ["50%"], ["none"], allocation=OutlierShare(0.5))
    first, second = (
        perplexity_ladder(loaded, calibration, tokens, recipes, progress=False)
        for calibration in (tokens, tokens.flip(1))
    )
    assert list(first.prune_seconds == second.prune_seconds) == [True, True, False, False]


def test_searches_are_tried_where_there_are_groups_and_solving_doubles_every_recipe():
    def shown(recipes):
        return [
            (type(r.method).__name__, str(r.pattern), r.search, r.reconstruct is not None)
            for r in recipes
        ]

    searches = ["none", "gns"]
    none, gns = SEARCHES["none"], SEARCHES["gns"]
    found = ladder(["wanda", "ria"], ["2:4", "30%"], searches, shuffled=["ria"], reconstruct=True)
    assert shown(found) == [
        ("Wanda", "2:4", none, False),
        ("Wanda", "2:4", none, True),
        ("RIA", "2:4", none, False),
        ("RIA", "2:4", none, True),
        ("RIA", "2:4", gns, False),
        ("RIA", "2:4", gns, True),
        ("Wanda", "30%", none, False),
        ("Wanda", "30%", none, True),
        ("RIA", "30%", none, False),
        ("RIA", "30%", none, True),
    ]
    assert found[-1].pattern == Unstructured(0.3)
    for menu, n_recipes in (("unstructured", 1), ("4:8, 2:4", 1), ("dense, 2:4", 2)):
        spread = Uniform(0.7, menu)
        found = ladder(["ria"], ["2:4"], searches, shuffled=["ria"], allocation=spread)
        assert [r.allocation for r in found] == [spread] * n_recipes
    with pytest.raises(InputError, match="Did you mean 'gns'"):
        ladder(["wanda"], ["2:4"], ["gnss"])


def test_a_row_says_what_its_recipe_did(loaded, tokens):
    recipes = ladder(
        ["wanda", "sparsegpt"],
        ["2:4"],
        ["none", "gns"],
        shuffled=["wanda"],
        reconstruct=True,
        calibration="layerwise",
    )
    spread = Uniform(0.75, "dense, 2:4")
    recipes += ladder(["wanda"], ["2:4"], ["none"], allocation=spread)
    frame = perplexity_ladder(loaded, tokens, tokens, recipes, progress=False)
    dense, pruned = frame.iloc[0], frame.iloc[1:]
    assert (dense.method, dense.output_error, dense.retained_share) == ("dense", 0, 1)
    assert set(pruned.calibration) == {"layerwise", "sequential"}
    keys = ["method", "search", "reconstruct", "allocation"]
    assert [tuple(row) for row in pruned[keys].to_numpy()] == [
        ("wanda", "none", False, ""),
        ("wanda", "none", True, ""),
        ("wanda", "gns", False, ""),
        ("wanda", "gns", True, ""),
        ("sparsegpt", "none", False, ""),
        ("sparsegpt", "none", True, ""),
        ("wanda", "none", False, repr(spread)),
    ]
    # An error is known where the Gram matrix was measured, and solving makes it smaller.
    assert list(pruned.output_error.isna()) == [True, False, True, False, False, False, True]
    assert pruned.output_error.iloc[5] < pruned.output_error.iloc[4]
    assert frame.peak_memory_gib.isna().all()  # a GPU's
    assert (pruned.prune_seconds > 0).all()
    model = random_model("llama")
    records = prune_model(model, tokens, recipes[4], progress=False)
    assert pruned.output_error.iloc[4] == np.mean([record.output_error for record in records])


@pytest.mark.gpu
def test_peak_memory_is_that_of_the_pruning(tokens):
    model = random_model("llama").to("cuda")
    loaded = LoadedModel(model, None, "tiny", "revision")
    recipes = ladder(["wanda"], ["2:4"], ["none"])
    torch.empty(1 << 28, device="cuda")  # freed before the pruning starts
    frame = perplexity_ladder(loaded, tokens, tokens, recipes, progress=False)
    weights = sum(p.nbytes for p in model.parameters()) / 2**30
    assert weights < frame.peak_memory_gib[1] < 0.2


def test_a_kept_ladder_comes_back_with_its_spread(loaded, tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "REFERENCE", tmp_path / "kept")
    assert tables.reference_ladder("many")[1] == []
    recipes = ladder(["wanda", "sparsegpt"], ["2:4", "50%"], ["none"], reconstruct=True)
    measured = []
    for seed in (0, 1, 2):
        run = Run(f"many_seed{seed}", tmp_path / "kept")
        shuffled = tokens[:, torch.randperm(12, generator=torch.Generator().manual_seed(seed))]
        frame = perplexity_ladder(loaded, shuffled, tokens, recipes, progress=False)
        frame.loc[1:, "peak_memory_gib"] = [0.5 + seed] * 8
        run.save_table("perplexity", frame)
        run.finish(model=loaded, seed=seed)
        measured.append(frame)
    # A table of before: no word of solving, memory or allocation.
    run = Run("many", tmp_path / "kept")
    old = ["method", "settings", "pattern", "search", "dense", "perplexity", "prune_seconds"]
    run.save_table("perplexity", measured[0][old][~measured[0].reconstruct])
    run.finish(model=loaded, seed=9)

    found, records = tables.reference_ladder("many_seed")
    assert [record["seed"] for record in records] == [0, 1, 2]
    expected = pd.concat([frame.assign(seed=s) for s, frame in enumerate(measured)])
    pd.testing.assert_frame_equal(found, expected.reset_index(drop=True), check_dtype=False)
    together, _ = tables.reference_ladder("many")
    assert set(together.seed) == {0, 1, 2, 9}
    assert not together[together.seed == 9].reconstruct.any()

    spread = tables.over_seeds(found)
    assert len(spread) == 1 + 8
    for place in (0, 3, 8):
        cells = [frame.iloc[place] for frame in measured]
        row = spread.iloc[place]
        for key in ("method", "pattern", "search", "reconstruct", "dense"):
            assert row[key] == cells[0][key]
        values = sorted(cell.perplexity for cell in cells)
        assert row.perplexity == pytest.approx(sum(values) / 3)
        assert (row.lowest, row.highest, row.seeds) == (values[0], values[2], 3)
        assert row.prune_seconds == sorted(cell.prune_seconds for cell in cells)[1]
    assert np.isnan(spread.peak_memory_gib[0])
    assert (spread.peak_memory_gib[1:] == 1.5).all()


def test_output_error_is_the_lost_share_of_the_outputs_energy():
    weight, pruned = torch.tensor([[3.0, 1.0]]), torch.tensor([[4.0, 0.0]])
    x = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])  # outputs 3 and 2 become 4 and 0
    assert tables.output_error(weight, pruned, x) == pytest.approx((1 + 4) / (9 + 4))


def test_a_model_pruned_in_memory_is_measured_anew(loaded, tokens):
    dense = perplexity_ladder(loaded, tokens, tokens, [], progress=False).perplexity[0]
    prune_model(loaded.model, None, Recipe(Magnitude(), Pattern(1, 4)), progress=False)
    pruned = perplexity_ladder(loaded, tokens, tokens, [], progress=False).perplexity[0]
    assert pruned != dense


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_fingerprint_sees_one_weight(tiny_llama, dtype):
    model = tiny_llama.to(dtype)
    before = weights_fingerprint(model)
    assert weights_fingerprint(model) == before
    model.model.layers[2].mlp.up_proj.weight.data[3, 4] = 0
    assert weights_fingerprint(model) != before


@pytest.mark.filterwarnings("ignore:.*no calibration token")
@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_retained_shares_are_those_of_pruning_by_score(model_type, method, tokens):
    """What dense pruning records as kept, for every method whose mask is its score's."""
    tokens = tokens[:1, :2]  # some experts get none
    loaded = LoadedModel(random_model(model_type), None, "tiny", "revision")
    pattern, made = Pattern(2, 4), method()
    searches = {"none": None, "gns+lbs": SEARCHES["gns+lbs"]}
    table = retained_table(loaded, tokens, made, pattern, searches, progress=False)
    assert list(table.layer.unique()) == list(prunable_layers(loaded.model))
    wide = table.pivot(index="layer", columns="search", values="retained_share")
    assert wide["gns+lbs"].mean() > wide["none"].mean() > 0.5
    assert wide.to_numpy().max() <= 1
    won = table.pivot(index="layer", columns="search", values="recovered_share")
    assert (won["none"] == 0).all()
    assert won["gns+lbs"].between(-1, 1).all()
    assert (won["gns+lbs"].gt(0) == wide["gns+lbs"].gt(wide["none"])).all()
    if method.__name__ in ("SparseGPT", "ISC", "MaskDescent"):
        return  # choose other weights than those of the best score
    for name, search in searches.items():
        model = random_model(model_type)
        recipe = Recipe(made, pattern, search, calibration="dense")
        for layer in prune_model(model, tokens, recipe, progress=False):
            assert wide[name][layer.name] == pytest.approx(layer.retained_share, rel=1e-6)


def test_dass_shares_are_taken_along_the_outputs_before_an_activation(loaded, tokens):
    table = retained_table(
        loaded, tokens, DaSS(), Pattern(1, 4), {"none": None}, progress=False
    ).set_index("layer")
    weight = loaded.model.model.layers[0].mlp.gate_proj.weight.detach().abs()
    read = {}
    down = loaded.model.model.layers[0].mlp.down_proj
    hook = down.register_forward_pre_hook(lambda _, args: read.update(x=args[0]))
    with torch.no_grad():
        loaded.model(tokens)
    hook.remove()
    norm = read["x"].square().sum(dim=1).mean(dim=0).sqrt()
    score = weight * norm.sqrt()[:, None]
    best = score.view(10, 4, -1).max(dim=1).values.sum()
    found = table.retained_share["model.layers.0.mlp.gate_proj"]
    assert found == pytest.approx(float(best / score.sum()), rel=1e-5)
