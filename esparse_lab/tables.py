"""Measurements as tidy tables: one row an observation, the unit in the column's name."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from esparse_lab.channel_stats import LayerStats
from esparse_lab.entropy import BinRange, Histogram, binned_entropy
from esparse_lab.errors import InputError, unknown
from esparse_lab.methods import ESparse

HOME = Path(__file__).parent.parent
PAPER_TABLES = HOME / "data" / "paper"
REFERENCE = HOME / "reports" / "reference"


def layer_place(layer: str) -> tuple[int, str]:
    """Block number and role of a layer's full name.

    >>> layer_place("model.layers.3.mlp.down_proj")
    (3, 'down_proj')
    """
    parts = layer.split(".")
    return next(int(part) for part in parts if part.isdigit()), parts[-1]


def channel_table(stats: Mapping[str, LayerStats]) -> pd.DataFrame:
    """One row a layer and input channel.

    Columns: layer, block, role, channel, norm (Wanda's convention), entropy_nats.
    """
    frames = []
    for layer, s in stats.items():
        block, role = layer_place(layer)
        entropy = np.nan if s.entropy is None else s.entropy.cpu().numpy()
        frames.append(
            pd.DataFrame(
                {
                    "layer": layer,
                    "block": block,
                    "role": role,
                    "channel": np.arange(len(s.norm)),
                    "norm": s.norm.cpu().numpy(),
                    "entropy_nats": entropy,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def layer_summary(channels: pd.DataFrame) -> pd.DataFrame:
    """What the channels of each layer have in common; takes a `channel_table`.

    Columns: layer, block, role, channels, norm_median, norm_max, entropy_median_nats,
    entropy_min_nats, entropy_max_nats, rank_correlation (Spearman, of entropy and norm; -1 to 1),
    neighbour_distance (mean entropy difference of neighbouring channels over that of any two
    channels; 1: neighbours are no more alike than strangers, 0: entropy changes smoothly).
    """
    rows = []
    for (layer, block, role), group in channels.groupby(["layer", "block", "role"], sort=False):
        entropy, norm = group.entropy_nats, group.norm
        rows.append(
            {
                "layer": layer,
                "block": block,
                "role": role,
                "channels": len(group),
                "norm_median": norm.median(),
                "norm_max": norm.max(),
                "entropy_median_nats": entropy.median(),
                "entropy_min_nats": entropy.min(),
                "entropy_max_nats": entropy.max(),
                "rank_correlation": entropy.corr(norm, method="pearson")
                if len(group) < 2
                else entropy.rank().corr(norm.rank()),
                "neighbour_distance": _neighbour_distance(entropy.to_numpy()),
            }
        )
    return pd.DataFrame(rows)


def _neighbour_distance(values: np.ndarray) -> float:
    """Mean |difference| of neighbours over the mean |difference| of any two members."""
    n = len(values)
    # Gini's mean difference from the sorted values: no pair has to be formed.
    weights = 2 * np.arange(1, n + 1) - n - 1
    any_two = 2 * float(weights @ np.sort(values)) / (n * (n - 1))
    return float(np.abs(np.diff(values)).mean() / any_two) if any_two > 0 else float("nan")


def binning_table(
    activations: Tensor,
    *,
    bins: Sequence[int] = (10, 30, 100, 300),
    bin_ranges: Sequence[BinRange] = ("channel", "layer", "percentile"),
) -> pd.DataFrame:
    """What the number of bins and what they span do to each channel's entropy.

    Args:
        activations: what a layer reads, [sequence, position, in].
        bins: numbers of bins to try.
        bin_ranges: what the bins span; see `Histogram`.

    Columns: bins, bin_range, channel, entropy_nats, rank_correlation (of entropy with norm over the
    channels, the same in every row of a setting).
    """
    norm = pd.Series(LayerStats.of(activations, None).norm.cpu().numpy())
    flat = activations.flatten(0, 1)
    frames = []
    for bin_range in bin_ranges:
        for n_bins in bins:
            found = binned_entropy([flat], Histogram(n_bins, bin_range)).entropy.cpu().numpy()
            frames.append(
                pd.DataFrame(
                    {
                        "bins": n_bins,
                        "bin_range": bin_range,
                        "channel": np.arange(len(found)),
                        "entropy_nats": found,
                        "rank_correlation": pd.Series(found).rank().corr(norm.rank()),
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)


def activation_histograms(
    activations: Tensor,
    channels: Iterable[int],
    *,
    bins: int = 100,
    bin_range: BinRange = "channel",
    skip_first: bool = False,
) -> pd.DataFrame:
    """Histograms of a few channels' values in the bins that `Histogram` describes.

    Columns: channel, bin_left, bin_right, count, entropy_nats. `activations` is [.., in].
    """
    if skip_first and activations.dim() == 3:
        activations = activations[:, 1:]
    n_channels = activations.shape[-1]
    channels = list(channels)
    for channel in channels:
        if not 0 <= channel < n_channels:
            raise InputError(f"The layer has channels 0 to {n_channels - 1}, got {channel}.")
    # One range for the layer needs every channel; the others need these alone.
    whole = bin_range == "layer"
    flat = activations.flatten(0, -2)
    flat = flat if whole else flat[:, channels]
    binned = binned_entropy([flat], Histogram(bins, bin_range))
    frames = []
    for column, channel in zip(channels if whole else range(len(channels)), channels, strict=True):
        span = float(binned.low[column]), float(binned.high[column])
        values = flat[:, column].float().cpu().numpy().clip(*span)
        counts, edges = np.histogram(values, bins=bins, range=span)
        frames.append(
            pd.DataFrame(
                {
                    "channel": channel,
                    "bin_left": edges[:-1],
                    "bin_right": edges[1:],
                    "count": counts,
                    "entropy_nats": float(binned.entropy[column]),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def rank_change_table(stats: LayerStats, method: ESparse) -> pd.DataFrame:
    """Where each channel stands by norm alone and by E-Sparse's importance; rank 1 is the best.

    Columns: channel, norm, entropy_nats, norm_rank, esparse_rank, ranks_gained (positive: the
    entropy lifts the channel).
    """
    frame = pd.DataFrame(
        {
            "channel": np.arange(len(stats.norm)),
            "norm": stats.norm.cpu().numpy(),
            "entropy_nats": stats.entropy.cpu().numpy(),
            "norm_rank": _ranks(stats.norm),
            "esparse_rank": _ranks(method.channel_importance(stats)),
        }
    )
    return frame.assign(ranks_gained=frame.norm_rank - frame.esparse_rank)


def _ranks(values: Tensor) -> np.ndarray:
    """1 for the largest; equal values in order of channel."""
    return pd.Series(values.cpu().numpy()).rank(ascending=False, method="first").to_numpy(int)


def output_error(weight: Tensor, pruned: Tensor, activations: Tensor) -> float:
    """Share of a layer's output energy that pruning loses: |(W - W') X|^2 / |W X|^2 (Eq. 4).

    Args:
        weight: W, [out, in].
        pruned: W', [out, in].
        activations: what the layer reads, [..., in].
    """
    x = activations.flatten(0, -2).float()
    lost = torch.nn.functional.linear(x, weight.float() - pruned.float())
    whole = torch.nn.functional.linear(x, weight.float())
    return float(lost.double().square().sum() / whole.double().square().sum())


def paper_table(number: int) -> pd.DataFrame:
    """A table of the E-Sparse paper, one row a printed cell, as published (even where wrong).

    Columns: table, row, column, value, unit, and keys such as method, pattern, search and model.

    Source: Li et al. 2023, arXiv 2310.15929v2; see data/paper/SOURCES.md.
    """
    path = PAPER_TABLES / f"table{number}.csv"
    if not path.is_file():
        raise unknown("table of the paper", str(number), [str(n) for n in range(1, 7)])
    return pd.read_csv(path, keep_default_na=False)


def beside_paper(number: int, measured: pd.DataFrame, label: str) -> pd.DataFrame:
    """A table of the paper with what was measured here in one more column.

    Args:
        number: 1, 3 or 4.
        measured: columns method, pattern, search, perplexity, dense, as from `perplexity_ladder`.
        label: name of the measured column, such as the model's.

    Returns:
        One row a method, pattern and search, in the paper's order; a "measured" column (missing
        where it was not) and one "published" column a model of the paper. Columns are pairs.
    """
    published = paper_table(number)
    keys = ["method", "pattern", "search"]
    dense = published.method == "dense"
    published.loc[dense, ["pattern", "search"]] = ["", "none"]
    wide = published.pivot_table(
        index=keys, columns="model", values="value", sort=False, aggfunc="first"
    )
    ours = measured.set_index(keys).perplexity
    columns = {("measured here", label): ours.reindex(wide.index)}
    columns |= {("published", model): wide[model] for model in wide.columns}
    return pd.DataFrame(columns, index=wide.index)


def reference_run(name: str, table: str) -> tuple[pd.DataFrame, dict]:
    """A table that was measured once on larger hardware and is kept with its run record.

    Args:
        name: of the run, such as "ladder".
        table: of the table, such as "perplexity".

    Returns:
        The table, and the record: model, tokens, seed, device, date, versions.
    """
    record = REFERENCE / "records" / f"{name}.json"
    if not record.is_file():
        raise unknown("reference run", name, [p.stem for p in REFERENCE.glob("records/*.json")])
    frame = pd.read_csv(
        REFERENCE / "tables" / f"{name}.{table}.csv",
        keep_default_na=False,  # "" and "none" are values, but not in columns of figures
        na_values={column: [""] for column in ("output_error", "peak_memory_gib")},
    )
    return frame, json.loads(record.read_text())


def recorded(name: str, table: str) -> tuple[pd.DataFrame, dict] | None:
    """A table that was measured once on a GPU, with its run record; None if none is kept.

    Args:
        name: of the run, such as "gemm_h100" or "memory_h100".
        table: of the table, such as "times" or "weights".
    """
    path = REFERENCE / "tables" / f"{name}.{table}.csv"
    if not path.is_file():
        return None
    return pd.read_csv(path), json.loads((REFERENCE / "records" / f"{name}.json").read_text())


def recorded_together(names: Sequence[str], table: str) -> tuple[pd.DataFrame, dict] | None:
    """As `recorded`, of several runs one below the other; the record is the first one's."""
    found = [one for one in (recorded(name, table) for name in names) if one is not None]
    if not found:
        return None
    return pd.concat([frame for frame, _ in found], ignore_index=True), found[0][1]


def measured_on(record: dict) -> str:
    """Device, date and PyTorch of a run record, for captions; cuSPARSELt's version where kept."""
    library = record["facts"].get("cusparselt")
    named = [f"cuSPARSELt {library}"] if library else []
    return ", ".join(
        [record["device"], record["started"][:10], f"PyTorch {record['versions']['torch']}", *named]
    )


def reference_ladder(prefix: str = "ladder") -> tuple[pd.DataFrame, list[dict]]:
    """A kept perplexity ladder of the embedded model, one row a recipe and calibration seed.

    Args:
        prefix: what the names of its runs begin with: "ladder", or "methods_seed" for every method.

    Returns:
        The columns of `perplexity_ladder` and `seed`; and one run record a seed. Both are empty
        where no such ladder is kept.
    """
    frames, records = [], []
    for name in sorted(p.stem for p in REFERENCE.glob(f"records/{prefix}*.json")):
        frame, record = reference_run(name, "perplexity")
        # Tables that were kept before these columns came hold plain recipes.
        plain = {"reconstruct": False, "calibration": "sequential", "allocation": ""}
        plain["peak_memory_gib"] = np.nan
        frames.append(frame.assign(**{**plain, **frame}, seed=record["seed"]))
        records.append(record)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(), records


def over_seeds(ladder: pd.DataFrame) -> pd.DataFrame:
    """What each recipe of a `reference_ladder` makes of the seeds: perplexity, time and memory.

    Columns: method, pattern, search, reconstruct, calibration, allocation, dense, perplexity (the
    mean), lowest, highest, seeds (a count), prune_seconds and peak_memory_gib (medians: the first
    run of a process may pay for what the others find ready).
    """
    keys = ["method", "pattern", "search", "reconstruct", "calibration", "allocation", "dense"]
    spread = ladder.groupby(keys, sort=False).agg(
        perplexity=("perplexity", "mean"),
        lowest=("perplexity", "min"),
        highest=("perplexity", "max"),
        seeds=("perplexity", "count"),
        prune_seconds=("prune_seconds", "median"),
        peak_memory_gib=("peak_memory_gib", "median"),
    )
    return spread.reset_index()
