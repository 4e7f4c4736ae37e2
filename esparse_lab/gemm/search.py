"""The search for the fastest algorithm of a product."""

from collections.abc import Callable, Iterable
from itertools import islice

import torch

from esparse_lab.errors import EsparseError
from esparse_lab.gemm.algorithms import AlgorithmStore, Found
from esparse_lab.gemm.cusparselt import Algorithm, Product
from esparse_lab.gemm.trials import Trial, Trials

SPLIT_TRIED = 3
"""Of so many of the fastest kernels the versions with a split sum are tried as well."""
FINALISTS = 3
"""So many are timed again at length."""

TimeIt = Callable[[Algorithm, bool], float | None]
"""Time of an algorithm, shortly or at length (True), in ms; None if it does not work."""


def fastest(
    candidates: Iterable[Algorithm],
    versions: Callable[[Algorithm], Iterable[Algorithm]],
    time_it: TimeIt,
) -> tuple[Algorithm, float, int] | None:
    """The fastest algorithm, its time at length, and how many worked; None if none did.

    Every candidate is timed shortly, then the `versions` of the fastest few, then the fastest few
    of all at length.
    """
    quick: dict[Algorithm, float] = {}

    def try_all(some: Iterable[Algorithm]) -> None:
        for algorithm in some:
            if algorithm not in quick and (time := time_it(algorithm, False)) is not None:
                quick[algorithm] = time

    try_all(candidates)
    for algorithm in sorted(quick, key=quick.get)[:SPLIT_TRIED]:
        try_all(versions(algorithm))
    timed = (
        (algorithm, time)
        for algorithm in sorted(quick, key=quick.get)
        if (time := time_it(algorithm, True)) is not None
    )
    at_length = dict(islice(timed, FINALISTS))
    if not at_length:
        return None
    best = min(at_length, key=at_length.get)
    return best, at_length[best], len(quick)


def found(
    products: Iterable[Product], device: torch.device, store: AlgorithmStore
) -> dict[Product, Found]:
    """What is fastest for each product: read from the store, or searched now and put there.

    Raises:
        EsparseError: no algorithm of the library works for a product, or nothing can be timed.
    """
    results: dict[Product, Found] = {}
    with Trials(device) as trials:
        for product in products:
            known = store.get(product)
            if known is None:
                known, crashed = _search(product, trials, store.crashing(product))
                store.put(product, known, crashed)
            results[product] = known
    return results


def _search(
    product: Product, trials: Trials, crashing: frozenset[str]
) -> tuple[Found, frozenset[str]]:
    """What is fastest, and the ways to multiply that crashed; those of `crashing` are left out."""
    crashed = set()

    def time_it(algorithm: Algorithm, at_length: bool) -> float | None:
        if algorithm.way in crashing or algorithm.way in crashed:
            return None
        crashes = trials.crashed
        time = trials.time(Trial(product, algorithm, at_length=at_length))
        if trials.crashed > crashes:
            crashed.add(algorithm.way)
        return time.median if time else None

    dense = trials.time(Trial(product, dense=True, at_length=True))
    if dense is None:
        raise EsparseError(
            f"The process that times {product} ended before the dense product was done; what it "
            "said is above."
        )
    default = trials.time(Trial(product, at_length=True))
    best = fastest(trials.algorithms(product), lambda a: trials.split_versions(a, product), time_it)
    if best is None:
        raise EsparseError(
            f"No algorithm of cuSPARSELt multiplies {product} rightly. Leave this layer dense."
        )
    algorithm, ms, tried = best
    default_ms = default.median if default else None
    return Found(algorithm, ms, default_ms, dense.median, tried), frozenset(crashed)
