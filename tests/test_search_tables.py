"""Tables that compare searches, against values worked out apart from them."""

import pandas as pd
import pytest
import torch
from oracles import layer_case
from plain_orders import kept_score

from esparse_lab import (
    BlockShuffle,
    GlobalShuffle,
    LayerStats,
    Pattern,
    RandomOrders,
    StripePairs,
    Wanda,
    optimal_order,
    ordered_mask,
    retained_share,
    search_order,
    search_steps,
)
from esparse_lab.errors import InputError
from esparse_lab.search_tables import (
    optimality_table,
    proxy_table,
    rank_table,
    search_race,
    search_trace,
    truth_table,
)

PATTERN = Pattern(2, 4)
SEARCHES = {"none": None, "gns": GlobalShuffle(), "gns+lbs": BlockShuffle(block=12)}


def test_a_trace_holds_every_step(scores):
    trace = search_trace(scores, PATTERN, SEARCHES)
    wanted = [
        (name, step.swaps, step.retained_share)
        for name, search in SEARCHES.items()
        for step in search_steps(scores, PATTERN, search)
    ]
    assert list(trace.itertuples(index=False, name=None)) == wanted


def test_a_race_says_what_was_won_of_what_could_be(scores):
    race = search_race({"a": scores, "b": scores[:, :12]}, PATTERN, SEARCHES)
    assert list(race.search.unique()) == list(SEARCHES)
    assert (race.groupby(["layer", "search"]).seconds.diff().dropna() > 0).all()
    one = race[(race.layer == "b") & (race.search == "gns+lbs")].iloc[-1]
    rows = scores[:, :12].double().tolist()
    stored = kept_score(rows, list(range(12)), PATTERN)
    bound = sum(sum(sorted(row)[-6:]) for row in rows)
    found = search_order(scores[:, :12], PATTERN, SEARCHES["gns+lbs"]).index.tolist()
    won = kept_score(rows, found, PATTERN) - stored
    assert one.recovered_share == pytest.approx(won / (bound - stored), rel=1e-4)


def test_a_race_without_time_ends_at_the_start(scores):
    race = search_race({"a": scores}, PATTERN, {"stripes": StripePairs()}, seconds=0)
    assert len(race) == 2
    assert race.recovered_share.tolist() == [0, 0]


def test_the_optimum_is_found_piece_by_piece(scores):
    table = optimality_table({"a": scores}, PATTERN, SEARCHES, channels=8, pieces=2)
    table = table.set_index("search")
    pieces = [scores[:, :8], scores[:, 16:]]  # the first and the third of three
    total = sum(float(piece.double().sum()) for piece in pieces)
    best = sum(
        kept_score(p.double().tolist(), optimal_order(p, PATTERN).index.tolist(), PATTERN)
        for p in pieces
    )
    bound = sum(sum(sorted(row)[-4:]) for p in pieces for row in p.double().tolist())
    stored = sum(kept_score(p.double().tolist(), list(range(8)), PATTERN) for p in pieces)
    assert table.retained_share["optimum"] == pytest.approx(best / total, rel=1e-5)
    assert table.retained_share["none"] == pytest.approx(stored / total, rel=1e-5)
    assert table.of_optimum["optimum"] == pytest.approx(1)
    won = (best - stored) / (bound - stored)
    assert table.of_bound["optimum"] == pytest.approx(won, rel=1e-3)
    assert table.of_optimum["none"] == pytest.approx(0, abs=1e-6)
    assert 0 < table.of_optimum["gns+lbs"] <= 1


def test_where_nothing_is_dropped_there_is_nothing_to_win(scores):
    """A model that is N:M already: its stored order is the best there is."""
    mask = (torch.arange(scores.shape[1]) % 4 < 2).float()
    table = optimality_table({"a": scores * mask}, PATTERN, SEARCHES, channels=8, pieces=2)
    table = table.set_index("search")
    assert table.retained_share["none"] == table.retained_share["optimum"] == 1
    assert table[["of_optimum", "of_bound"]].isna().all(axis=None)


def test_proxies_are_those_of_the_orders():
    weight, x = layer_case()
    stats = LayerStats.of(x, None)
    scores = Wanda().score(weight, stats)
    searches = {"lbs": BlockShuffle(block=12), "random 1": RandomOrders(1, seed=7, stored=False)}
    table = proxy_table(weight, scores, PATTERN, stats.gram, searches, n_random=3, most_steps=4)
    assert table.kind.value_counts().to_dict() == {"lbs": 4, "random 1": 2, "random": 3}
    steps = list(search_steps(scores, PATTERN, searches["lbs"]))
    last = table[table.kind == "lbs"].iloc[-1]
    order = steps[-1].order
    gone = weight.double() * ~ordered_mask(scores, PATTERN, order)
    lost = (gone @ x.double().T).square().sum() / (weight.double() @ x.double().T).square().sum()
    assert last.output_error == pytest.approx(float(lost), rel=1e-4)
    assert last.retained_share == pytest.approx(retained_share(scores, PATTERN, order))
    assert table[table.kind == "random"].retained_share.is_unique


def sets_of_orders():
    """Three sets on two seeds; perplexity follows what is kept on seed 0, what errs on seed 1."""
    rows = [
        (0, "score", "a", 0.7, 0.3, 30.0),
        (0, "score", "b", 0.8, 0.1, 20.0),
        (0, "error", "c", 0.9, 0.2, 10.0),
        (1, "score", "a", 0.7, 0.3, 33.0),
        (1, "score", "b", 0.8, 0.1, 12.0),
        (1, "error", "c", 0.9, 0.2, 18.0),
    ]
    names = ["seed", "kind", "orders", "retained_share", "output_error", "perplexity"]
    return pd.DataFrame(rows, columns=names)


def test_sets_of_orders_are_compared_seed_by_seed():
    table = truth_table(sets_of_orders(), "b").set_index("orders")
    assert list(table.index) == ["c", "b", "a"]  # means 14, 16, 31.5
    c = table.loc["c"]
    assert (c.perplexity, c.lowest, c.highest, c.seeds) == (14, 10, 18, 2)
    assert c.spread == pytest.approx(32**0.5)
    assert (c.difference, c.least, c.most, c.better) == (-2, -10, 6, 1)
    assert (table.better["a"], table.better["b"], table.most["b"]) == (0, 0, 0)
    with pytest.raises(InputError, match="Unknown set of orders 'd'"):
        truth_table(sets_of_orders(), "d")


def test_proxies_and_seeds_rank_as_the_hand_does():
    ranks = rank_table(sets_of_orders()).set_index("seed")
    # Of three ranks, 1 - (sum of squared differences) / 4.
    assert ranks.retained_share.to_dict() == pytest.approx({0: 1, 1: 0.5, "mean": 1})
    assert ranks.output_error.to_dict() == pytest.approx({0: 0.5, 1: 1, "mean": 0.5})
    assert ranks.other_seeds[[0, 1]].tolist() == pytest.approx([0.5, 0.5])
    assert pd.isna(ranks.other_seeds["mean"])
