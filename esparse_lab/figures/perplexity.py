"""The ladder of perplexities: methods, patterns and searches beside the dense model."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from esparse_lab.errors import InputError
from esparse_lab.figures.permutation import SEARCH_LOOKS
from esparse_lab.figures.style import (
    GRID,
    INK,
    LABELS,
    OKABE_ITO,
    SYMBOLS,
    checked,
    finish,
    in_order,
    log_axis,
    looks,
    panel_title,
    plain,
)

_ROW = 26  # pixels a row


def perplexity_figure(frame: pd.DataFrame, *, title: str = "", caption: str = "") -> go.Figure:
    """Perplexity of every pruned model, best first, a panel a pattern, the dense model as a line.

    Args:
        frame: columns method, pattern, search ("none" or empty: no shuffle), perplexity (1 or
            more, lower is better), dense (bool: the unpruned model, whose other keys are ignored).
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: columns or rows missing, `dense` not bool, no pruned model, or two different
            dense values.
    """
    columns = ("method", "pattern", "search", "perplexity", "dense")
    checked(frame, columns, "perplexity_figure")
    if not pd.api.types.is_bool_dtype(frame["dense"].infer_objects()):
        raise InputError(
            "perplexity_figure needs True or False in the column dense; it holds "
            f"{', '.join(map(repr, in_order(frame['dense'])[:4]))}."
        )
    is_dense = frame["dense"].astype(bool)
    dense = in_order(frame.loc[is_dense, "perplexity"])
    pruned = frame[~is_dense].copy()
    if len(dense) > 1:
        raise InputError(
            f"perplexity_figure draws one dense model, the frame has the dense perplexities "
            f"{', '.join(f'{d:g}' for d in dense)}. Keep the rows of one model and corpus."
        )
    if pruned.empty:
        raise InputError("perplexity_figure needs rows with dense = False; the frame has none.")
    pruned["search"] = pruned["search"].astype(object).where(pruned["search"].notna(), "none")
    pruned["search"] = pruned["search"].replace("", "none")
    patterns = in_order(pruned["pattern"])
    sizes = [int((pruned["pattern"] == p).sum()) for p in patterns]
    # Row heights follow the number of rows, so that a row is as high in every panel.
    plot_height = _ROW * (sum(sizes) + len(sizes)) + 34 * (len(sizes) - 1)
    figure = make_subplots(
        rows=len(patterns),
        cols=1,
        shared_xaxes=True,
        row_heights=[size + 1 for size in sizes],
        vertical_spacing=34 / plot_height if len(patterns) > 1 else 0,
    )
    look_of = looks(sorted(in_order(pruned["search"]), key=_search_place), SEARCH_LOOKS)
    for row, pattern in enumerate(patterns, start=1):
        ladder = pruned[pruned["pattern"] == pattern].sort_values("perplexity", kind="stable")
        ladder = ladder.assign(place=np.arange(len(ladder)))
        for search, look in look_of.items():
            one = ladder[ladder["search"] == search]
            figure.add_scatter(
                x=one["perplexity"],
                y=one["place"],
                mode="markers+text",
                text=[f"  {v:,.2f}" if v < 1000 else f"  {v:,.0f}" for v in one["perplexity"]],
                textposition="middle right",
                textfont={"size": 12, "color": INK},
                cliponaxis=False,
                marker={"color": OKABE_ITO[look], "symbol": SYMBOLS[look], "size": 12},
                customdata=[plain(name) for name in one["method"]],
                hovertemplate="%{customdata}<br>perplexity %{x:,.3f}<extra>"
                + plain(f"{pattern}, {search}")
                + "</extra>",
                name=plain(f"shuffle: {search}"),
                legendgroup=str(search),
                showlegend=row == 1,
                row=row,
                col=1,
            )
        names = [
            plain(r.method, 40) + ("" if r.search == "none" else f" + {plain(r.search, 24)}")
            for r in ladder.itertuples()
        ]
        figure.update_yaxes(
            tickvals=ladder["place"],
            ticktext=names,
            range=[len(ladder) - 0.2, -0.8],
            gridcolor=GRID,
            row=row,
            col=1,
        )
        panel_title(figure, f"pattern {plain(pattern)}", row=row, col=1)
        if dense:
            figure.add_scatter(
                x=[dense[0], dense[0]],
                y=[-0.8, len(ladder) - 0.2],
                mode="lines",
                line={"color": INK, "width": 1.6, "dash": "dash"},
                name=f"dense: {dense[0]:,.2f}",
                legendgroup="dense",
                hovertemplate=f"dense: {dense[0]:,.3f}<extra></extra>",
                showlegend=row == 1,
                row=row,
                col=1,
            )
    figure.update_xaxes(**log_axis(frame["perplexity"], headroom=0.12))
    figure.update_xaxes(title_text=LABELS["perplexity"], row=len(patterns), col=1)
    lost = pruned[~np.isfinite(pruned["perplexity"])]
    notes = [f"{len(lost)} models without a finite perplexity carry no mark."] if len(lost) else []
    return finish(
        figure,
        title=title,
        caption=caption,
        plot_height=plot_height,
        notes=notes,
        panel_titles=True,
        right=40,
    )


def _search_place(search: str) -> tuple[int, str]:
    known = list(SEARCH_LOOKS)
    return (known.index(search) if search in known else len(known), search)
