"""Searches for channel orders compared on the same scores, as tidy tables."""

import math
import time
from collections.abc import Iterator, Mapping

import pandas as pd
import torch
from torch import Tensor

from esparse_lab.errors import unknown
from esparse_lab.masks import Pattern
from esparse_lab.optimum import Recoverable, optimal_order, recoverable
from esparse_lab.permutation import (
    ChannelOrder,
    OrderSearch,
    SearchStep,
    ordered_mask,
    retained_share,
    search_order,
    search_steps,
)

Searches = Mapping[str, OrderSearch | None]


def search_trace(scores: Tensor, pattern: Pattern, searches: Searches) -> pd.DataFrame:
    """How much score each search has kept after how many swaps.

    Columns: search, swaps, retained_share (0 to 1).
    """
    rows = [
        (label, step.swaps, step.retained_share)
        for label, search in searches.items()
        for step in search_steps(scores, pattern, search)
    ]
    return pd.DataFrame(rows, columns=["search", "swaps", "retained_share"])


def search_race(
    scores: Mapping[str, Tensor],
    pattern: Pattern,
    searches: Searches,
    *,
    seconds: float | None = None,
) -> pd.DataFrame:
    """How much score each search has won back after what time, on each layer.

    Args:
        scores: of each layer, [row, in].
        pattern: the N:M pattern whose kept score is to grow.
        searches: what to compare.
        seconds: a search ends with its first step after that time.

    Columns: layer, search, swaps, seconds (of the search alone, from its start to this step; the
    last step stands a second time, with the search's end), retained_share (0 to 1),
    recovered_share (of what an order could win back at most; see `Recoverable`).
    """
    rows = []
    for layer, of_layer in scores.items():
        limits = recoverable(of_layer, pattern)
        for label, search in searches.items():
            search_order(of_layer[:, : 2 * pattern.m], pattern, search)  # compile and load first
            for spent, step in _timed(of_layer, pattern, search, seconds):
                share = step.retained_share
                rows.append((layer, label, step.swaps, spent, share, limits.recovered(share)))
    columns = ["layer", "search", "swaps", "seconds", "retained_share", "recovered_share"]
    return pd.DataFrame(rows, columns=columns)


def _timed(
    scores: Tensor, pattern: Pattern, search: OrderSearch | None, seconds: float | None
) -> Iterator[tuple[float, SearchStep]]:
    spent, begun = 0.0, time.perf_counter()
    for step in search_steps(scores, pattern, search, seconds=seconds):
        if scores.is_cuda:
            torch.cuda.synchronize(scores.device)
        spent += time.perf_counter() - begun
        yield spent, step
        begun = time.perf_counter()
    yield spent + time.perf_counter() - begun, step  # what was tried after it in vain


def optimality_table(
    scores: Mapping[str, Tensor],
    pattern: Pattern,
    searches: Searches,
    *,
    channels: int = 12,
    pieces: int = 8,
) -> pd.DataFrame:
    """How far searches end from the best order there is, on pieces of a few channels.

    Every layer is cut into pieces of neighbouring channels, of which `pieces` evenly spaced ones
    are searched, each for itself; shares are of all of them together.

    Args:
        scores: of each layer, [row, in].
        pattern: N:M.
        searches: what to compare.
        channels: of a piece, up to 16; all their arrangements are tried.
        pieces: of each layer at most.

    Columns: layer, search ("optimum" last), retained_share (0 to 1), of_optimum and of_bound: the
    share that the search won of what the best order wins, and of what the row-wise bound allows;
    both missing where nothing can be won.
    """
    rows = []
    for layer, of_layer in scores.items():
        whole = of_layer.split(channels, dim=1)[: max(of_layer.shape[1] // channels, 1)]
        cut = whole[:: -(-len(whole) // pieces)]
        weights = torch.tensor([float(piece.sum(dtype=torch.float64)) for piece in cut])
        weights = weights / weights.sum().clamp_min(1e-300)
        limits = [recoverable(piece, pattern) for piece in cut]
        stored = float(sum(w * limit.stored for w, limit in zip(weights, limits, strict=True)))
        bound = float(sum(w * limit.bound for w, limit in zip(weights, limits, strict=True)))
        kept = {}
        for label in (*searches, "optimum"):
            orders = [
                optimal_order(piece, pattern)
                if label == "optimum"
                else search_order(piece, pattern, searches[label])
                for piece in cut
            ]
            shares = (retained_share(p, pattern, o) for p, o in zip(cut, orders, strict=True))
            kept[label] = float(sum(w * share for w, share in zip(weights, shares, strict=True)))
        ends = Recoverable(stored, kept["optimum"]), Recoverable(stored, bound)
        for label, share in kept.items():
            rows.append((layer, label, share, *(end.recovered(share) for end in ends)))
    return pd.DataFrame(
        rows, columns=["layer", "search", "retained_share", "of_optimum", "of_bound"]
    )


@torch.no_grad()
def proxy_table(
    weight: Tensor,
    scores: Tensor,
    pattern: Pattern,
    gram: Tensor,
    searches: Searches,
    *,
    n_random: int = 20,
    most_steps: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """Retained score (Eq. 5) beside output error (Eq. 4) over many orders of one layer.

    Args:
        weight: [out, in].
        scores: decide the mask, [out, in].
        pattern: N:M.
        gram: X^T X of what the layer reads, up to a factor, [in, in].
        searches: whose orders on the way are taken, the last one among them.
        n_random: random orders beside them.
        most_steps: orders of a search at most, evenly spaced.
        seed: draws the random orders.

    Columns: kind (the search, or "random"), retained_share (0 to 1), output_error (share of the
    layer's output energy that pruning loses).
    """
    orders = []
    for label, search in searches.items():
        steps = [step.order for step in search_steps(scores, pattern, search)]
        taken = torch.linspace(0, len(steps) - 1, min(most_steps, len(steps))).round().int()
        orders += [(label, steps[i]) for i in taken.tolist()]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n_random):
        index = torch.randperm(scores.shape[1], generator=generator).to(scores.device)
        orders.append(("random", ChannelOrder(index)))
    whole = _energy(weight.float(), gram)
    rows = [
        (
            kind,
            retained_share(scores, pattern, order),
            _energy(weight.float() * ~ordered_mask(scores, pattern, order), gram) / whole,
        )
        for kind, order in orders
    ]
    return pd.DataFrame(rows, columns=["kind", "retained_share", "output_error"])


def truth_table(sets: pd.DataFrame, against: str) -> pd.DataFrame:
    """Sets of orders over calibration seeds, and how each differs from one of them, seed by seed.

    Args:
        sets: columns seed, kind, orders, retained_share, output_error, perplexity; a row a set and
            seed, as from `benchmarks/proxy_truth.py`.
        against: the set, one of `orders`, that the others are compared with.

    Returns:
        One row a set, best first: kind, orders; the means retained_share, output_error and
        perplexity; spread (standard deviation of the perplexity, missing for one seed), lowest,
        highest, seeds (a count); and of the perplexity less that of `against` on the same seed:
        difference (the mean), least, most, and better (on how many seeds it is below 0).

    Raises:
        InputError: there are no such orders.
    """
    if against not in set(sets.orders):
        raise unknown("set of orders", against, sets.orders.unique())
    base = sets[sets.orders == against].set_index("seed").perplexity
    apart = sets.assign(apart=sets.perplexity - sets.seed.map(base))
    return (
        apart.groupby(["kind", "orders"], sort=False)
        .agg(
            retained_share=("retained_share", "mean"),
            output_error=("output_error", "mean"),
            perplexity=("perplexity", "mean"),
            spread=("perplexity", "std"),
            lowest=("perplexity", "min"),
            highest=("perplexity", "max"),
            seeds=("seed", "nunique"),
            difference=("apart", "mean"),
            least=("apart", "min"),
            most=("apart", "max"),
            better=("apart", lambda a: int((a < 0).sum())),
        )
        .sort_values("perplexity")
        .reset_index()
    )


def rank_table(sets: pd.DataFrame) -> pd.DataFrame:
    """Whether the proxies rank orders as perplexity does: Spearman correlations, 1 if alike.

    Args:
        sets: as for `truth_table`.

    Returns:
        One row a seed, and one of the means over seeds, whose seed is "mean". Columns: seed;
        retained_share and output_error (1: the set that keeps more, or errs less, always has the
        lower perplexity); other_seeds (of this seed's perplexities with those of each other seed,
        the mean: how far a seed's ranking is that of another; missing for "mean").
    """
    numbers = ["retained_share", "output_error", "perplexity"]
    alike = sets.pivot(index="orders", columns="seed", values="perplexity").corr("spearman")
    parts = {**dict(iter(sets.groupby("seed"))), "mean": sets.groupby("orders")[numbers].mean()}
    rows = []
    for seed, one in parts.items():
        ranked = one[numbers].corr("spearman").perplexity
        others = math.nan if seed == "mean" else alike[seed].drop(seed).mean()
        rows.append((seed, -ranked.retained_share, ranked.output_error, others))
    return pd.DataFrame(rows, columns=["seed", "retained_share", "output_error", "other_seeds"])


def _energy(weight: Tensor, gram: Tensor) -> float:
    return float(((weight @ gram).double() * weight).sum())
