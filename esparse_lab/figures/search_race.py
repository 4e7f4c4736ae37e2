"""Figures that compare searches for channel orders: the race, and the proxies beside the truth."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from esparse_lab.figures.permutation import SEARCH_LOOKS
from esparse_lab.figures.style import (
    DASHES,
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

# A logarithm needs some time; a shorter one is drawn here.
_LEAST_SECONDS = 1e-4


def race_figure(frame: pd.DataFrame, *, title: str = "", caption: str = "") -> go.Figure:
    """Score won back against time, a panel a layer and a step line a search; the end is marked.

    Args:
        frame: a `search_race`: columns layer, search, seconds, recovered_share (0: the stored
            order, 1: the bound that no order exceeds).
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: columns or rows missing.
    """
    checked(frame, ("layer", "search", "seconds", "recovered_share"), "race_figure")
    layers = in_order(frame["layer"])
    columns = min(len(layers), 2)
    rows = -(-len(layers) // columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        horizontal_spacing=0.1,
        vertical_spacing=0.3 / rows,
        shared_xaxes="all",
    )
    frame = frame.assign(seconds=frame["seconds"].clip(lower=_LEAST_SECONDS))
    for i, layer in enumerate(layers):
        at = {"row": i // columns + 1, "col": i % columns + 1}
        for search, look in looks(frame["search"], SEARCH_LOOKS).items():
            one = frame[(frame["layer"] == layer) & (frame["search"] == search)]
            figure.add_scatter(
                x=one["seconds"],
                y=one["recovered_share"],
                mode="lines+markers",
                line={"shape": "hv", "color": OKABE_ITO[look], "width": 1.8}
                | {"dash": DASHES[look % len(DASHES)]},
                marker={
                    "color": OKABE_ITO[look],
                    "symbol": SYMBOLS[look],
                    "size": [0] * (len(one) - 1) + [10],
                },
                name=plain(search),
                legendgroup=str(search),
                showlegend=i == 0,
                hovertemplate="%{x:.3g} s<br>recovered %{y:.1%}<extra>"
                + plain(search)
                + "</extra>",
                **at,
            )
        panel_title(figure, plain(layer, 48), **at)
        figure.update_yaxes(
            title_text=LABELS["recovered_share"] if i % columns == 0 else None,
            tickformat=".0%",
            **at,
        )
        if i + columns >= len(layers):
            figure.update_xaxes(title_text=LABELS["search_seconds"], showticklabels=True, **at)
    figure.update_xaxes(**log_axis(frame["seconds"]))
    return finish(
        figure,
        title=title,
        caption=caption,
        plot_height=90 + 270 * rows,
        notes=["0 % is the stored order; no order can win back 100 %."],
        panel_titles=True,
    )


def proxy_figure(frame: pd.DataFrame, *, title: str = "", caption: str = "") -> go.Figure:
    """Channel orders by retained score, output error and, where measured, perplexity.

    Args:
        frame: columns kind (how the order was found), retained_share (0 to 1), output_error (0 to
            1) and perhaps perplexity. With it, both proxies stand against it in two panels; with
            columns lowest and highest a bar from the one to the other is drawn.
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: columns or rows missing.
    """
    checked(frame, ("kind", "retained_share", "output_error"), "proxy_figure")
    panels = [("retained_share", "output_error")]
    if "perplexity" in frame:
        panels = [("retained_share", "perplexity"), ("output_error", "perplexity")]
    figure = make_subplots(rows=1, cols=len(panels), horizontal_spacing=0.08, shared_yaxes=True)
    for i, (x, y) in enumerate(panels):
        at = {"row": 1, "col": i + 1}
        for kind, look in looks(frame["kind"], SEARCH_LOOKS).items():
            one = frame[frame["kind"] == kind]
            figure.add_scatter(
                x=one[x],
                y=one[y],
                mode="markers",
                error_y={
                    "array": one["highest"] - one[y],
                    "arrayminus": one[y] - one["lowest"],
                    "thickness": 1.2,
                    "width": 3,
                }
                if {y, "lowest", "highest"} <= {"perplexity", *one}
                else None,
                marker={
                    "color": OKABE_ITO[look],
                    "symbol": SYMBOLS[look],
                    "size": 9,
                    "opacity": 0.8,
                    "line": {"color": "white", "width": 0.5},
                },
                name=plain(kind),
                legendgroup=str(kind),
                showlegend=i == 0,
                hovertemplate="%{x:.3%}<br>"
                + ("%{y:.2f}" if y == "perplexity" else "%{y:.3%}")
                + f"<extra>{plain(kind)}</extra>",
                **at,
            )
        figure.update_xaxes(title_text=LABELS[x], tickformat=".3~%", nticks=6, **at)
        if i == 0:
            figure.update_yaxes(title_text=LABELS[y], **at)
    if "perplexity" in frame:
        drawn = frame[[c for c in ("perplexity", "lowest", "highest") if c in frame]].to_numpy()
        if drawn.max() < 2 * drawn.min():  # a logarithm would look the same, with fewer ticks
            figure.update_yaxes(title_text=LABELS["perplexity"].replace(", log scale", ""), col=1)
        else:
            figure.update_yaxes(**log_axis(drawn.ravel()))
    else:
        figure.update_yaxes(tickformat=".3~%")
    return finish(figure, title=title, caption=caption, plot_height=400)
