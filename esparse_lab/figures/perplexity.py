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
_APART = 0.24  # between marks of one row, in rows


def perplexity_figure(frame: pd.DataFrame, *, title: str = "", caption: str = "") -> go.Figure:
    """Perplexity of every pruned model, best first, a panel a pattern, the dense model as a line.

    Args:
        frame: columns method, pattern, search ("none" or empty: no shuffle), perplexity (1 or
            more, lower is better), dense (bool: the unpruned model, whose other keys are ignored);
            columns reconstruct (bool) and calibration, where there are any, add to the method's
            name what is not usual.
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: columns or rows missing, `dense` not bool, no pruned model, or two different
            dense values.
    """
    pruned, dense = pruned_models(frame, ("perplexity",), "perplexity_figure")
    patterns = in_order(pruned["pattern"])
    ladders = [
        pruned[pruned["pattern"] == p].sort_values("perplexity", kind="stable") for p in patterns
    ]
    figure, plot_height = panels([len(ladder) for ladder in ladders])
    look_of = looks(sorted(in_order(pruned["search"]), key=search_place), SEARCH_LOOKS)
    for row, (pattern, ladder) in enumerate(zip(patterns, ladders, strict=True), start=1):
        ladder = ladder.assign(place=np.arange(len(ladder)))
        for search, look in look_of.items():
            one = ladder[ladder["search"] == search]
            figure.add_scatter(
                x=one["perplexity"],
                y=one["place"],
                mode="markers+text",
                text=[f"  {_written(value)}" for value in one["perplexity"]],
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
        _finish_panel(figure, row, plain(f"pattern {pattern}"), names, dense)
    figure.update_xaxes(**log_axis(frame["perplexity"], headroom=0.12))
    figure.update_xaxes(title_text=LABELS["perplexity"], row=len(patterns), col=1)
    return finish(
        figure,
        title=title,
        caption=caption,
        plot_height=plot_height,
        notes=_notes(pruned),
        panel_titles=True,
        right=40,
    )


def methods_figure(frame: pd.DataFrame, *, title: str = "", caption: str = "") -> go.Figure:
    """Perplexity of every method, best first, a mark a channel order with its range over seeds.

    Args:
        frame: as for `perplexity_figure`, with columns lowest and highest: the ends of the range.
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: as for `perplexity_figure`.
    """
    pruned, dense = pruned_models(frame, ("perplexity", "lowest", "highest"), "methods_figure")
    patterns = in_order(pruned["pattern"])
    ladders = [pruned[pruned["pattern"] == pattern] for pattern in patterns]
    bests = [ladder.groupby("method")["perplexity"].min().sort_values() for ladder in ladders]
    figure, plot_height = panels([len(best) for best in bests])
    searches = sorted(in_order(pruned["search"]), key=search_place)
    for row, (pattern, ladder, best) in enumerate(zip(patterns, ladders, bests, strict=True), 1):
        here = [search for search in searches if search in set(ladder["search"])]
        places = pd.Series(np.arange(len(best)), index=best.index)
        for search, look in looks(searches, SEARCH_LOOKS).items():
            one = ladder[ladder["search"] == search]
            apart = _APART * (here.index(search) - (len(here) - 1) / 2) if len(one) else 0
            figure.add_scatter(
                x=one["perplexity"],
                y=places.reindex(one["method"]).to_numpy() + apart,
                mode="markers",
                error_x={
                    "array": one["highest"] - one["perplexity"],
                    "arrayminus": one["perplexity"] - one["lowest"],
                    "thickness": 1.4,
                    "width": 3,
                },
                marker={"color": OKABE_ITO[look], "symbol": SYMBOLS[look], "size": 8},
                customdata=[
                    f"{plain(r.method)}<br>{_written(r.lowest)} to {_written(r.highest)}"
                    for r in one.itertuples()
                ],
                hovertemplate="%{customdata}<br>mean %{x:,.3f}<extra>"
                + plain(f"{pattern}, {search}")
                + "</extra>",
                name=plain(f"shuffle: {search}"),
                legendgroup=str(search),
                showlegend=row == 1,
                row=row,
                col=1,
            )
        names = [f"{plain(method, 40)}  {_written(value)}" for method, value in best.items()]
        _finish_panel(figure, row, plain(f"pattern {pattern}"), names, dense)
    figure.update_xaxes(**log_axis([*dense, *pruned["lowest"], *pruned["highest"]]))
    figure.update_xaxes(title_text=LABELS["perplexity"], row=len(patterns), col=1)
    return finish(
        figure,
        title=title,
        caption=caption,
        plot_height=plot_height,
        notes=["The number beside a name is its best mark.", *_notes(pruned)],
        panel_titles=True,
        right=40,
    )


def pruned_models(
    frame: pd.DataFrame, figures: tuple[str, ...], name: str
) -> tuple[pd.DataFrame, list[float]]:
    """The pruned models of a frame with these columns, and the dense perplexity or none.

    Raises:
        InputError: as `perplexity_figure` says; `name` is what its message calls the figure.
    """
    checked(frame, ("method", "pattern", "search", "dense", *figures), name)
    if not pd.api.types.is_bool_dtype(frame["dense"].infer_objects()):
        raise InputError(
            f"{name} needs True or False in the column dense; it holds "
            f"{', '.join(map(repr, in_order(frame['dense'])[:4]))}."
        )
    is_dense = frame["dense"].astype(bool)
    dense = in_order(frame.loc[is_dense, "perplexity"])
    pruned = frame[~is_dense].copy()
    if len(dense) > 1:
        raise InputError(
            f"{name} draws one dense model, the frame has the dense perplexities "
            f"{', '.join(f'{d:g}' for d in dense)}. Keep the rows of one model and corpus."
        )
    if pruned.empty:
        raise InputError(f"{name} needs rows with dense = False; the frame has none.")
    pruned["search"] = pruned["search"].astype(object).where(pruned["search"].notna(), "none")
    pruned["search"] = pruned["search"].replace("", "none")
    if "reconstruct" in pruned:
        solved = pruned["reconstruct"].astype(bool)
        pruned.loc[solved, "method"] += " + reconstruct"
    if "calibration" in pruned:
        other = pruned["calibration"] != "sequential"
        pruned.loc[other, "method"] += " (" + pruned.loc[other, "calibration"] + ")"
    return pruned, dense


def panels(sizes: list[int]) -> tuple[go.Figure, int]:
    """A panel above the other for each number of rows, and the pixels of them all."""
    # Row heights follow the number of rows, so that a row is as high in every panel.
    plot_height = _ROW * (sum(sizes) + len(sizes)) + 34 * (len(sizes) - 1)
    figure = make_subplots(
        rows=len(sizes),
        cols=1,
        shared_xaxes=True,
        row_heights=[size + 1 for size in sizes],
        vertical_spacing=34 / plot_height if len(sizes) > 1 else 0,
    )
    return figure, plot_height


def _finish_panel(
    figure: go.Figure, row: int, title: str, names: list[str], dense: list[float]
) -> None:
    """Write the names of a panel's rows, its title and the line of the dense model."""
    figure.update_yaxes(
        tickvals=np.arange(len(names)),
        ticktext=names,
        range=[len(names) - 0.2, -0.8],
        gridcolor=GRID,
        row=row,
        col=1,
    )
    panel_title(figure, title, row=row, col=1)
    if dense:
        figure.add_scatter(
            x=[dense[0], dense[0]],
            y=[-0.8, len(names) - 0.2],
            mode="lines",
            line={"color": INK, "width": 1.6, "dash": "dash"},
            name=f"dense: {dense[0]:,.2f}",
            legendgroup="dense",
            hovertemplate=f"dense: {dense[0]:,.3f}<extra></extra>",
            showlegend=row == 1,
            row=row,
            col=1,
        )


def _written(perplexity: float) -> str:
    return f"{perplexity:,.2f}" if perplexity < 1000 else f"{perplexity:,.0f}"


def _notes(pruned: pd.DataFrame) -> list[str]:
    lost = int((~np.isfinite(pruned["perplexity"])).sum())
    return [f"{lost} models without a finite perplexity carry no mark."] if lost else []


def search_place(search: str) -> tuple[int, str]:
    """Where a search stands in legends: known ones first."""
    known = list(SEARCH_LOOKS)
    return (known.index(search) if search in known else len(known), search)
