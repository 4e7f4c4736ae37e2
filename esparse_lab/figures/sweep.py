"""Sweeps: perplexity with its spread over seeds, and ratios to a baseline with intervals."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from esparse_lab.figures.perplexity import panels
from esparse_lab.figures.style import (
    GRID,
    INK,
    LABELS,
    OKABE_ITO,
    checked,
    finish,
    in_order,
    log_axis,
    panel_title,
    plain,
)


def seeds_figure(frame: pd.DataFrame, *, title: str = "", caption: str = "") -> go.Figure:
    """Perplexity on every calibration seed with mean and spread: a panel a pattern, best first.

    Args:
        frame: columns recipe, pattern (empty for the dense model), perplexity; a row a seed.
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: columns or rows missing.
    """
    checked(frame, ("recipe", "pattern", "perplexity"), "seeds_figure")
    pruned = frame[frame["pattern"] != ""]
    patterns = in_order(pruned["pattern"]) or [""]
    ladders = [
        frame[frame["pattern"] == pattern]
        .groupby("recipe", sort=False)["perplexity"]
        .agg(["mean", "std"])
        .fillna({"std": 0})
        .sort_values("mean")
        for pattern in patterns
    ]
    figure, plot_height = panels([len(ladder) for ladder in ladders])
    for row, (pattern, ladder) in enumerate(zip(patterns, ladders, strict=True), start=1):
        of_pattern = frame[frame["pattern"] == pattern]
        places = pd.Series(np.arange(len(ladder)), index=ladder.index)
        figure.add_scatter(
            x=of_pattern["perplexity"],
            y=places.reindex(of_pattern["recipe"]),
            mode="markers",
            marker={"color": OKABE_ITO[0], "size": 7, "opacity": 0.55},
            hovertemplate="%{x:,.3f}<extra>one seed</extra>",
            name="one calibration seed",
            legendgroup="seed",
            showlegend=row == 1,
            row=row,
            col=1,
        )
        figure.add_scatter(
            x=ladder["mean"],
            y=places,
            mode="markers",
            error_x={"array": ladder["std"], "thickness": 1.6, "width": 4, "color": INK},
            marker={"color": INK, "symbol": "line-ns-open", "size": 15},
            customdata=ladder["std"],
            hovertemplate="mean %{x:,.3f} ± %{customdata:,.3f}<extra></extra>",
            name="mean ± standard deviation",
            legendgroup="mean",
            showlegend=row == 1,
            row=row,
            col=1,
        )
        names = [f"{plain(name, 44)}  {mean:,.1f}" for name, mean in ladder["mean"].items()]
        _name_rows(figure, row, f"pattern {pattern}" if pattern else "dense", names)
        for dense in in_order(frame.loc[frame["pattern"] == "", "perplexity"])[:1]:
            figure.add_vline(x=dense, line={"color": INK, "dash": "dash"}, row=row, col=1)
    figure.update_xaxes(**log_axis(frame["perplexity"]))
    figure.update_xaxes(title_text=LABELS["perplexity"], row=len(patterns), col=1)
    return finish(
        figure,
        title=title,
        caption=caption,
        plot_height=plot_height,
        notes=["The dashed line is the dense model." * bool((frame["pattern"] == "").any())],
        panel_titles=True,
        right=40,
    )


def ratios_figure(frame: pd.DataFrame, *, title: str = "", caption: str = "") -> go.Figure:
    """Perplexity over a baseline's on the same seeds: a panel a baseline, best first.

    Args:
        frame: columns recipe, baseline, ratio, ratio_low and ratio_high (interval over test
            windows; missing where no losses of windows are kept), ratio_lowest and ratio_highest
            (over seeds), as `paired_table` gives them.
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: columns or rows missing.
    """
    numbers = ["ratio", "ratio_low", "ratio_high", "ratio_lowest", "ratio_highest"]
    checked(frame, ("recipe", "baseline", *numbers), "ratios_figure")
    baselines = in_order(frame["baseline"])
    groups = [frame[frame["baseline"] == one].sort_values("ratio") for one in baselines]
    known = bool(frame["ratio_low"].notna().any())
    figure, plot_height = panels([len(group) for group in groups])
    for row, (baseline, group) in enumerate(zip(baselines, groups, strict=True), start=1):
        places = np.arange(len(group))
        ends = group[["ratio_lowest", "ratio_highest"]].assign(gap=np.nan)
        figure.add_scatter(
            x=ends.to_numpy().ravel(),
            y=np.repeat(places, 3),
            mode="lines",
            line={"color": OKABE_ITO[0], "width": 8},
            opacity=0.4,
            hoverinfo="skip",
            name="least to largest of the seeds",
            legendgroup="seeds",
            showlegend=row == 1,
            row=row,
            col=1,
        )
        figure.add_scatter(
            x=group["ratio"],
            y=places,
            mode="markers",
            error_x={
                "array": (group["ratio_high"] - group["ratio"]).fillna(0),
                "arrayminus": (group["ratio"] - group["ratio_low"]).fillna(0),
                "thickness": 1.6,
                "width": 4 * known,
            },
            marker={"color": INK, "size": 7},
            customdata=[
                f"{plain(r.recipe)}<br>seeds: {r.ratio_lowest:,.3f} to {r.ratio_highest:,.3f}"
                + f"<br>windows: {r.ratio_low:,.3f} to {r.ratio_high:,.3f}" * known
                for r in group.itertuples()
            ],
            hovertemplate="%{customdata}<br>mean %{x:,.4f}<extra></extra>",
            name="mean" + ", 95 % interval over windows" * known,
            legendgroup="mean",
            showlegend=row == 1,
            row=row,
            col=1,
        )
        names = [f"{plain(r.recipe, 40)}  {r.ratio:#.3g}" for r in group.itertuples()]
        _name_rows(figure, row, f"against {plain(baseline)}", names)
        figure.add_vline(x=1, line={"color": INK, "width": 1.6, "dash": "dash"}, row=row, col=1)
    figure.update_xaxes(**log_axis([1, *frame[numbers].to_numpy().ravel()]))
    figure.update_xaxes(title_text=LABELS["perplexity_ratio"], row=len(baselines), col=1)
    return finish(
        figure, title=title, caption=caption, plot_height=plot_height, panel_titles=True, right=40
    )


def _name_rows(figure: go.Figure, row: int, title: str, names: list[str]) -> None:
    figure.update_yaxes(
        tickvals=np.arange(len(names)),
        ticktext=names,
        range=[len(names) - 0.2, -0.8],
        gridcolor=GRID,
        row=row,
        col=1,
    )
    panel_title(figure, plain(title), row=row, col=1)
