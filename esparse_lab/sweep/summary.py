"""What a sweep's cells say together: means, spreads, and differences on the same seeds."""

import json
import re
from collections.abc import Iterator

import numpy as np
import pandas as pd

from esparse_lab.errors import InputError, unknown
from esparse_lab.sweep.plan import setting_of, without_pattern

GROUP = ["model", "evaluation", "calibration_text", "recipe", "provenance"]
DIFFERENCE = ["difference", "low", "high", "lowest", "highest"]
RATIO = ["ratio", "ratio_low", "ratio_high", "ratio_lowest", "ratio_highest"]
DRAWS_AT_ONCE = 1000


def summary_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Every recipe over its calibration seeds; takes `load_cells`.

    Columns: model, evaluation, calibration_text, recipe, provenance; perplexity (the mean), spread
    (the standard deviation over seeds, missing for one), lowest, highest, seeds (a count),
    retained_share (mean), prune_seconds (of processes that may have shared a machine) and
    peak_memory_gib (medians). Cells of different provenance are never in one row.
    """
    of_recipe = cells.groupby(GROUP, sort=False)
    return of_recipe.agg(
        perplexity=("perplexity", "mean"),
        spread=("perplexity", "std"),
        lowest=("perplexity", "min"),
        highest=("perplexity", "max"),
        seeds=("perplexity", "count"),
        retained_share=("retained_share", "mean"),
        prune_seconds=("prune_seconds", "median"),
        peak_memory_gib=("peak_memory_gib", "median"),
    ).reset_index()


def paired_table(
    cells: pd.DataFrame,
    baseline: str,
    *,
    confidence: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """By how much recipes differ from a baseline: on the same calibration seeds, and windows.

    Args:
        cells: as from `load_cells`, or `recorded_cells`, which have no losses of windows and so no
            intervals.
        baseline: a recipe's label, such as "dense" or "wanda 2:4, gns"; or one without its
            pattern, such as "wanda, gns", for the recipe of that name at each pattern.
        confidence: of the interval.
        draws: of the bootstrap.
        seed: of the draws.

    Returns:
        One row a recipe and calibration; recipes of other patterns than the baseline's have none.
        Columns: model, evaluation, calibration_text, recipe, provenance, baseline, seeds (a count);
        difference (perplexity of the recipe less the baseline's, the mean over seeds), low and high
        (interval of it over test windows, the seeds as they are; see `paired_bootstrap`), lowest
        and highest (over seeds); and the same of ratio (the recipe's over the baseline's, the
        geometric mean).

    Raises:
        InputError: a recipe's baseline was measured under other conditions alone, or on other
            seeds; the message says which.
    """
    named = set(cells.recipe) | set(map(without_pattern, cells.recipe))
    if baseline not in named:
        raise unknown("baseline", baseline, named)
    rows = []
    for group, of_recipe in cells.groupby(GROUP, sort=False):
        about = dict(zip(GROUP, group, strict=True))
        whole = baseline in set(cells.recipe)
        wanted = baseline if whole else _at_pattern(baseline, of_recipe.pattern.iloc[0])
        candidates = cells[cells.recipe == wanted]
        if wanted == about["recipe"] or candidates.empty:
            continue
        require_comparable(of_recipe, candidates)
        for text, pairs in _pairs(of_recipe, candidates):
            a, b = (np.array([one.perplexity for one in side]) for side in zip(*pairs, strict=True))
            found = dict.fromkeys(("low", "high", "ratio_low", "ratio_high"), np.nan)
            if "nll" in cells:
                losses = (np.stack([one.nll for one in side]) for side in zip(*pairs, strict=True))
                found = paired_bootstrap(*losses, confidence=confidence, draws=draws, seed=seed)
            rows.append(
                about
                | {"calibration_text": text, "baseline": wanted, "seeds": len(a)}
                | {"difference": (a - b).mean(), "ratio": np.exp(np.log(a / b).mean())}
                | {"lowest": (a - b).min(), "highest": (a - b).max()}
                | {"ratio_lowest": (a / b).min(), "ratio_highest": (a / b).max()}
                | found
            )
    return pd.DataFrame(rows, columns=[*GROUP, "baseline", "seeds", *DIFFERENCE, *RATIO])


def _at_pattern(baseline: str, pattern: str) -> str:
    """The label at a pattern of a baseline that was named without one."""
    method, *rest = baseline.split(", ")
    return ", ".join([f"{method} {pattern}", *rest])


def require_comparable(cells: pd.DataFrame, others: pd.DataFrame) -> None:
    """Pass when some of `others` were measured as `cells` were: model, text, context, versions.

    Raises:
        InputError: none was; the message says in what the nearest differs, and what to do.
    """
    ours = _settings(cells)
    for other in _settings(others):
        if other in ours:
            return
    apart = min((_differences(a, b) for a in ours for b in _settings(others)), key=len)
    told = "; ".join(f"{name} {a} against {b}" for name, (a, b) in apart.items())
    told = re.sub(r"([0-9a-f]{12})[0-9a-f]{52}", r"\1", told)  # a hash's beginning tells it
    raise InputError(
        f"{cells.recipe.iloc[0]} and {others.recipe.iloc[0]} cannot be compared, since they were "
        f"measured under different conditions ({told}). Measure both in one sweep, or compare each "
        "with a recipe of its own `provenance`."
    )


def _settings(cells: pd.DataFrame) -> list[dict]:
    abouts = cells.drop_duplicates("provenance").about
    return [setting_of(json.loads(about)) for about in abouts]


def _differences(a: dict, b: dict) -> dict[str, tuple]:
    flat_a, flat_b = (pd.json_normalize(each).iloc[0].to_dict() for each in (a, b))
    return {k: (v, flat_b.get(k)) for k, v in flat_a.items() if v != flat_b.get(k)}


def _pairs(cells: pd.DataFrame, others: pd.DataFrame) -> Iterator[tuple[str, list]]:
    """Calibration text -> pairs of rows on the same provenance, calibration and seed.

    What reads no calibration text has no seed and pairs with every one.
    """
    found: dict[str, list] = {}
    for a in cells.itertuples():
        for b in others[others.provenance == a.provenance].itertuples():
            texts = {a.calibration_text, b.calibration_text} - {""}
            seeds = {seed for seed in (a.seed, b.seed) if not pd.isna(seed)}
            if len(texts) < 2 and len(seeds) < 2:
                found.setdefault("".join(texts), []).append((a, b))
    if not found:
        raise InputError(
            f"{cells.recipe.iloc[0]} and {others.recipe.iloc[0]} have no calibration text and seed "
            f"in common: {_drawn(cells)} against {_drawn(others)}. Measure both on the same seeds."
        )
    yield from found.items()


def _drawn(cells: pd.DataFrame) -> str:
    seeds = ", ".join(map(str, sorted(cells.seed.dropna().unique())))
    return f"{' and '.join(cells.calibration_text.unique())}, seeds {seeds}"


def paired_bootstrap(
    nll: np.ndarray,
    baseline: np.ndarray,
    *,
    confidence: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> dict[str, float]:
    """How sure a difference in perplexity of two models on the same windows is.

    Windows are drawn anew with both models' losses on them, so what is hard for both does not
    count; a window is the unit, since tokens inside one are not independent. Percentile interval
    (Efron & Tibshirani 1993). With several calibration seeds the same windows are drawn for all.

    Args:
        nll: mean negative log likelihoods in nats, [window] or [seed, window].
        baseline: of the other model, of the same shape.
        confidence: of the interval, between 0 and 1.
        draws: resamples.
        seed: of the draws.

    Returns:
        The interval's ends: low and high of the difference exp(mean of nll) - exp(mean of
        baseline), the mean over seeds; ratio_low and ratio_high of their ratio, the geometric mean.

    Raises:
        InputError: shapes differ, there is no window, or a setting is out of range.
    """
    ours, theirs = (np.atleast_2d(np.asarray(each, dtype=float)) for each in (nll, baseline))
    if ours.shape != theirs.shape or not ours.size:
        raise InputError(
            f"Expected the losses of two models on the same windows, got shapes {ours.shape} and "
            f"{theirs.shape}. Measure both on the same text."
        )
    if not 0 < confidence < 1 or draws < 1:
        raise InputError(
            f"Expected a confidence between 0 and 1 and draws of at least 1, got {confidence} and "
            f"{draws}."
        )

    size, generator = ours.shape[1], np.random.default_rng(seed)
    differences, ratios = [], []
    for done in range(0, draws, DRAWS_AT_ONCE):
        drawn = min(DRAWS_AT_ONCE, draws - done)
        weights = generator.multinomial(size, np.full(size, 1 / size), drawn) / size
        a, b = weights @ ours.T, weights @ theirs.T  # [draw, seed]
        differences.append((np.exp(a) - np.exp(b)).mean(axis=1))
        ratios.append(np.exp((a - b).mean(axis=1)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(differences), [tail, 1 - tail])
    ratio_low, ratio_high = np.quantile(np.concatenate(ratios), [tail, 1 - tail])
    return {"low": low, "high": high, "ratio_low": ratio_low, "ratio_high": ratio_high}
