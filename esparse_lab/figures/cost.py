"""What a better model costs: perplexity against seconds, with the Pareto front and the memory."""

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
    """Perplexity of every pruned model against its seconds, a panel a pattern, the front as steps.

    Args:
        frame: as for `perplexity_figure`, with columns prune_seconds and peak_memory_gib (GiB, may
            be missing in a row); the memory is told when a mark is pointed at.
        most: models of a larger perplexity are left out, and counted in a note.
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: as for `perplexity_figure`, or nothing is left to draw.
    """
    cost = "prune_seconds"
    pruned, dense = pruned_models(frame, ("perplexity", cost, "peak_memory_gib"), "cost_figure")
    drawn = pruned[(pruned["perplexity"] <= most) & pruned[cost].notna()]
    if drawn.empty:
        raise InputError(f"cost_figure: none of {len(pruned)} models has a cost and is below most.")
    patterns = in_order(drawn["pattern"])
    figure = make_subplots(
        rows=len(patterns), cols=1, shared_xaxes=True, vertical_spacing=0.14 / len(patterns)
    )
    look_of = looks(sorted(in_order(drawn["search"]), key=search_place), SEARCH_LOOKS)
    for row, pattern in enumerate(patterns, start=1):
        of_pattern = drawn[drawn["pattern"] == pattern]
        front = of_pattern[pareto_front(of_pattern, cost)].sort_values(cost)
        named = _apart(front["perplexity"])
        figure.add_scatter(
            x=front[cost],
            y=front["perplexity"],
            mode="lines",
            line={"color": INK, "width": 1.2, "shape": "hv"},
            name="not beaten at this cost",
            legendgroup="front",
            hoverinfo="skip",
            showlegend=row == 1,
            row=row,
            col=1,
        )
        for search, look in look_of.items():
            one = of_pattern[of_pattern["search"] == search]
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
                    plain(r.method)
                    + (f"<br>{r.peak_memory_gib:.2f} GiB" if r.peak_memory_gib > 0 else "")
                    for r in one.itertuples()
                ],
                hovertemplate="%{customdata}<br>%{x:.2f} s<br>perplexity %{y:,.2f}<extra>"
                + plain(f"{pattern}, {search}")
                + "</extra>",
                name=plain(f"shuffle: {search}"),
                legendgroup=str(search),
                showlegend=row == 1,
                row=row,
                col=1,
            )
        if dense:
            figure.add_hline(
                dense[0], line={"color": INK, "width": 1.6, "dash": "dash"}, row=row, col=1
            )
        panel_title(figure, plain(f"pattern {pattern}"), row=row, col=1)
        values = [*of_pattern["perplexity"], *dense]
        figure.update_yaxes(**log_axis(values), title_text=LABELS["perplexity"], row=row, col=1)
    axis = log_axis(drawn[cost])
    low, high = axis["range"]
    axis["range"] = [low - 0.12 * (high - low), high]  # for the name of the cheapest
    figure.update_xaxes(**axis)
    figure.update_xaxes(title_text=LABELS[cost], row=len(patterns), col=1)
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


def _apart(front: pd.Series) -> set:
    """Rows of a front whose perplexities are far enough apart to be named, from the best on."""
    named, last = set(), 0.0
    for row, perplexity in front.sort_values().items():
        if perplexity >= _NAMED_APART * last:
            named.add(row)
            last = perplexity
    return named
