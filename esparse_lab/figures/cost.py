"""What a better model costs: perplexity against seconds and memory, with the Pareto fronts."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from esparse_lab.errors import InputError
from esparse_lab.figures.perplexity import SEARCH_LOOKS, pruned_models, search_place
from esparse_lab.figures.style import (
    INK,
    LABELS,
    OKABE_ITO,
    SYMBOLS,
    finish,
    in_order,
    log_axis,
    looks,
    panel_title,
    plain,
)

_PANEL = 300  # pixels
_COSTS = ("prune_seconds", "peak_memory_gib")
_WIDTHS = [0.68, 0.32]
_NAMED_APART = 1.1  # ratio of perplexities from which two marks of the front are both named


def pareto_front(frame: pd.DataFrame, cost: str, value: str = "perplexity") -> pd.Series:
    """Which rows nothing beats: no other costs as little or less and has a lower value.

    Rows without a finite cost or value are never on the front; of equals the first is.
    """
    known = frame[[cost, value]].astype(float).dropna()
    cheap_first = known.sort_values([cost, value], kind="stable")[value]
    best_before = cheap_first.cummin().shift(fill_value=float("inf"))
    return (cheap_first < best_before).reindex(frame.index, fill_value=False)


def cost_figure(
    frame: pd.DataFrame,
    *,
    most: float = float("inf"),
    title: str = "",
    caption: str = "",
) -> go.Figure:
    """Perplexity of pruned models against seconds and memory, a row a pattern, fronts as steps.

    Args:
        frame: as for `perplexity_figure`, with columns prune_seconds and peak_memory_gib (GiB, may
            be missing in a row; where it is in all, no memory is drawn).
        most: models of a larger perplexity are left out, and counted in a note.
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: as for `perplexity_figure`, or nothing is left to draw.
    """
    pruned, dense = pruned_models(frame, ("perplexity", *_COSTS), "cost_figure")
    drawn = pruned[(pruned["perplexity"] <= most) & pruned["prune_seconds"].notna()]
    if drawn.empty:
        raise InputError(f"cost_figure: none of {len(pruned)} models has a cost and is below most.")
    patterns = in_order(drawn["pattern"])
    costs = [cost for cost in _COSTS if drawn[cost].notna().any()]
    figure = make_subplots(
        rows=len(patterns),
        cols=len(costs),
        column_widths=_WIDTHS[: len(costs)],
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=0.14 / len(patterns),
    )
    look_of = looks(sorted(in_order(drawn["search"]), key=search_place), SEARCH_LOOKS)
    for row, pattern in enumerate(patterns, start=1):
        of_pattern = drawn[drawn["pattern"] == pattern]
        for col, cost in enumerate(costs, start=1):
            _draw_panel(figure, of_pattern, cost, look_of, legend=row == col == 1, row=row, col=col)
            if dense:
                line = {"color": INK, "width": 1.6, "dash": "dash"}
                figure.add_hline(dense[0], line=line, row=row, col=col)
        panel_title(figure, plain(f"pattern {pattern}"), row=row, col=1)
        axis = log_axis([*of_pattern["perplexity"], *dense])
        figure.update_yaxes(**axis, row=row)
        figure.update_yaxes(title_text=LABELS["perplexity"], row=row, col=1)
    axis = log_axis(drawn["prune_seconds"])
    low, high = axis["range"]
    axis["range"] = [low - 0.12 * (high - low), high]  # for the name of the cheapest
    figure.update_xaxes(**axis, col=1)
    figure.update_xaxes(range=[0, 1.15 * drawn["peak_memory_gib"].max()], col=2)
    for col, cost in enumerate(costs, start=1):
        figure.update_xaxes(title_text=LABELS[cost], row=len(patterns), col=col)
    notes = [f"Dashed: the dense model, {dense[0]:,.2f}."] if dense else []
    if left_out := len(pruned) - len(drawn):
        notes.append(f"Not drawn: {left_out} models above {most:g} or without a measured cost.")
    return finish(
        figure,
        title=title,
        caption=caption,
        plot_height=_PANEL * len(patterns),
        notes=notes,
        panel_titles=True,
    )


def _draw_panel(
    figure: go.Figure,
    models: pd.DataFrame,
    cost: str,
    look_of: dict,
    *,
    legend: bool,
    row: int,
    col: int,
) -> None:
    """The models of one pattern against one cost; names stand where seconds are drawn."""
    front = models[pareto_front(models, cost)].sort_values(cost)
    named = _apart(front["perplexity"]) if col == 1 else set()
    figure.add_scatter(
        x=front[cost],
        y=front["perplexity"],
        mode="lines",
        line={"color": INK, "width": 1.2, "shape": "hv"},
        name="not beaten at this cost",
        legendgroup="front",
        hoverinfo="skip",
        showlegend=legend,
        row=row,
        col=col,
    )
    for search, look in look_of.items():
        one = models[(models["search"] == search) & models[cost].notna()]
        figure.add_scatter(
            x=one[cost],
            y=one["perplexity"],
            mode="markers+text",
            text=[
                f"{plain(r.method, 28)} {r.perplexity:.0f} " if r.Index in named else ""
                for r in one.itertuples()
            ],
            textposition="bottom left",  # nothing lies below a front
            textfont={"size": 12, "color": INK},
            cliponaxis=False,
            marker={"color": OKABE_ITO[look], "symbol": SYMBOLS[look], "size": 10},
            customdata=[
                f"{plain(r.method)}<br>{r.prune_seconds:.2f} s"
                + (f"<br>{r.peak_memory_gib:.2f} GiB" if r.peak_memory_gib > 0 else "")
                for r in one.itertuples()
            ],
            hovertemplate="%{customdata}<br>perplexity %{y:,.2f}<extra>"
            + plain(f"{models['pattern'].iloc[0]}, {search}")
            + "</extra>",
            name=plain(f"shuffle: {search}"),
            legendgroup=str(search),
            showlegend=legend,
            row=row,
            col=col,
        )


def _apart(front: pd.Series) -> set:
    """Rows of a front whose perplexities are far enough apart to be named, from the best on."""
    named, last = set(), 0.0
    for row, perplexity in front.sort_values().items():
        if perplexity >= _NAMED_APART * last:
            named.add(row)
            last = perplexity
    return named
