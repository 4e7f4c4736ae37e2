"""Between searches either the kept score decides or the pruned block's output: by its laws."""

from dataclasses import replace

import pytest
import torch
from tiny_models import random_model

from esparse_lab import (
    InputError,
    MaskDescent,
    Pattern,
    Recipe,
    Reconstruction,
    Wanda,
    prune_model,
    retained_share,
    search_order,
)
from esparse_lab.architectures import transformer_blocks
from esparse_lab.permutation import GlobalShuffle
from esparse_lab.pruning import PrunedLayer
from esparse_lab.recipes import recipe_label, recipe_of
from esparse_lab.rivals import BestOf, RandomOrders

TWO_FOUR = Pattern(2, 4)
SEARCHES = (
    None,
    GlobalShuffle(),
    RandomOrders(1, seed=1, stored=False),
    RandomOrders(1, seed=2, stored=False),
)
CHOSEN = Recipe(Wanda(), TWO_FOUR, BestOf(SEARCHES), objective="output")


@pytest.fixture
def tokens():
    return torch.randint(1, 256, (6, 24), generator=torch.Generator().manual_seed(5))


def pruned(recipe, tokens, model_type="llama"):
    model = random_model(model_type)
    return model, prune_model(model, tokens, recipe, progress=False)


def returned_by(model, index, tokens):
    """What block `index` returns in a forward of the whole model, float64."""
    seen = []
    hook = transformer_blocks(model)[index].module.register_forward_hook(
        lambda _module, _args, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad(), hook:
        model(tokens, use_cache=False)
    return seen[0].double()


def error(model, dense, index, tokens):
    out, aim = (returned_by(m, index, tokens) for m in (model, dense))
    return float(((out - aim) ** 2).sum(-1).div((aim**2).sum(-1)).mean())


def same_block(one, other, index):
    pairs = zip(
        *(transformer_blocks(m)[index].module.parameters() for m in (one, other)), strict=True
    )
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "recipe",
    [
        CHOSEN,
        replace(CHOSEN, method=MaskDescent(), calibration="matched", reconstruct=Reconstruction()),
        replace(CHOSEN, calibration="layerwise"),
    ],
    ids=["wanda", "matched", "layerwise"],
)
@pytest.mark.parametrize("model_type", ["llama", "opt"])
def test_the_first_block_is_the_one_nearest_to_the_dense_model(recipe, model_type, tokens):
    dense = random_model(model_type)
    chosen, _ = pruned(recipe, tokens, model_type)
    tried = [
        pruned(replace(recipe, search=search, objective="score"), tokens, model_type)[0]
        for search in SEARCHES
    ]
    errors = [error(model, dense, 0, tokens) for model in tried]
    assert len({f"{e:.9f}" for e in errors}) > 1  # else the choice would not show
    best = errors.index(min(errors))
    assert same_block(chosen, tried[best], 0)
    assert not all(same_block(chosen, model, 0) for model in tried)


def test_later_blocks_read_what_the_chosen_ones_made(tokens):
    """Block 1 is again the best of what its searches make of it behind the chosen block 0."""
    dense, (chosen, _) = random_model("llama"), pruned(CHOSEN, tokens)
    errors = []
    for search in SEARCHES:
        model, _ = pruned(replace(CHOSEN, search=search, objective="score"), tokens)
        with torch.no_grad():
            for ours, theirs in zip(
                *(transformer_blocks(m)[0].module.parameters() for m in (model, chosen)),
                strict=True,
            ):
                ours.copy_(theirs)
        # Its block 1 was pruned behind another block 0, so it is pruned anew.
        fresh = transformer_blocks(random_model("llama"))[1].module
        transformer_blocks(model)[1].module.load_state_dict(fresh.state_dict())
        prune_behind(model, tokens, search, index=1)
        errors.append(error(model, dense, 1, tokens))
    assert error(chosen, dense, 1, tokens) == pytest.approx(min(errors), rel=1e-5)


def prune_behind(model, tokens, search, index):
    """Prune block `index` of a model by Wanda, the blocks before it as they are."""
    from esparse_lab.capture import BlockWalk
    from esparse_lab.pruning import layer_sparsities, prune_block

    recipe = Recipe(Wanda(), TWO_FOUR, search)
    walk = BlockWalk.start(model, tokens)
    for before in range(index):
        walk.advance(before)
    block = transformer_blocks(model)[index]
    prune_block(block, walk, None, index, recipe, layer_sparsities(model, tokens, recipe))


def test_by_score_it_is_the_search_that_keeps_most():
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        scores = torch.rand(12, 32, generator=generator)
        shares = [
            retained_share(scores, TWO_FOUR, search_order(scores, TWO_FOUR, search))
            for search in SEARCHES
        ]
        found = search_order(scores, TWO_FOUR, BestOf(SEARCHES))
        assert retained_share(scores, TWO_FOUR, found) == max(shares)


def test_layers_know_what_became_of_them(tokens):
    model, layers = pruned(CHOSEN, tokens)
    weights = {
        name: layer.weight
        for block in transformer_blocks(model)
        for name, layer in block.layers.items()
    }
    assert [layer.name for layer in layers] == list(weights)
    for layer in layers:
        assert isinstance(layer, PrunedLayer)
        assert torch.equal(weights[layer.name] != 0, layer.mask)


def test_what_cannot_be_chosen_is_refused():
    with pytest.raises(InputError, match="Take the search 'best-of'"):
        Recipe(Wanda(), TWO_FOUR, GlobalShuffle(), objective="output")
    with pytest.raises(InputError, match="Take another calibration"):
        replace(CHOSEN, calibration="dense")
    with pytest.raises(InputError, match="'score'"):
        replace(CHOSEN, objective="scores")
    with pytest.raises(InputError, match="at least one search"):
        BestOf(())


def test_words_make_it():
    recipe = recipe_of(Wanda(), search="best-of", objective="output")
    assert recipe.objective == "output"
    assert recipe_label(recipe) == "wanda 2:4, best-of, by output"
