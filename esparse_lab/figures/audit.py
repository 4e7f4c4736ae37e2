"""What an audit of printed tables found: averages, and perplexity for memory."""

import math

import pandas as pd
import plotly.graph_objects as go

from esparse_lab.figures.style import (
    GUIDE,
    LABELS,
    OKABE_ITO,
    SYMBOLS,
    checked,
    finish,
    in_order,
    log_axis,
    plain,
)

_ROW = 21  # pixels


def averages_figure(results: pd.DataFrame, *, title: str = "", caption: str = "") -> go.Figure:
    """Printed results over recomputed ones, a row each; a line joins the two where they differ.

    Args:
        results: columns row, value (as printed), recomputed, difference, verdict, as from
            `recomputed_table`, of one column of one table.
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: columns or rows missing.
    """
    checked(results, ("row", "value", "recomputed", "difference", "verdict"), "averages_figure")
    places = list(range(len(results)))
    printed = results["value"].astype(float)
    differs = results["verdict"] != "agrees"
    figure = go.Figure()
    for look, (name, x, symbol) in enumerate(
        (("recomputed", results["recomputed"], "circle"), ("printed", printed, "diamond-open"))
    ):
        figure.add_scatter(
            x=x,
            y=places,
            mode="markers",
            name=name,
            showlegend=True,
            marker={"color": OKABE_ITO[look], "symbol": symbol, "size": 9, "line": {"width": 2}},
            customdata=[plain(row) for row in results["row"]],
            hovertemplate=f"%{{customdata}}, {name}: %{{x:.3f}}<extra></extra>",
        )
    for place in (place for place in places if differs.iloc[place]):
        ends = printed.iloc[place], results["recomputed"].iloc[place]
        figure.add_shape(
            type="line",
            x0=ends[0],
            x1=ends[1],
            y0=place,
            y1=place,
            layer="below",
            line={"color": OKABE_ITO[1], "width": 3},
        )
        figure.add_annotation(
            x=max(ends),
            y=place,
            text=f"{results['difference'].iloc[place]:+.2f}".replace("-", "−"),
            xanchor="left",
            xshift=9,
            showarrow=False,
            font={"size": 12},
        )
    figure.update_xaxes(title_text=LABELS["average_accuracy"])
    figure.update_yaxes(
        tickvals=places,
        ticktext=[plain(row, 40) for row in results["row"]],
        range=[len(places) - 0.5, -0.5],
        showgrid=False,
    )
    return finish(figure, title=title, caption=caption, plot_height=_ROW * len(places))


def size_perplexity_figure(sizes: pd.DataFrame, *, title: str = "", caption: str = "") -> go.Figure:
    """Perplexity against what the weights take, a line a method through its models.

    Args:
        sizes: columns model, method, gb, perplexity, as from `size_table`.
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: columns or rows missing.
    """
    checked(sizes, ("model", "method", "gb", "perplexity"), "size_perplexity_figure")
    figure = go.Figure()
    for look, method in enumerate(in_order(sizes["method"])):
        one = sizes[sizes["method"] == method]
        name = plain(method) + ("" if method == "dense" else " 2:4")
        figure.add_scatter(
            x=one["gb"],
            y=one["perplexity"],
            mode="lines+markers",
            name=name,
            showlegend=True,
            line={"color": OKABE_ITO[look], "dash": "solid" if method == "dense" else "dot"},
            marker={"symbol": SYMBOLS[look], "size": 10},
            customdata=[plain(model) for model in one["model"]],
            hovertemplate=f"%{{customdata}} {name}: %{{x:.2f}} GB, %{{y:.2f}}<extra></extra>",
        )
    for one in sizes[sizes["method"].isin(["dense", "esparse"])].itertuples():
        figure.add_annotation(
            x=math.log10(one.gb),
            y=math.log10(one.perplexity),
            text=plain(one.model.removeprefix("LLaMA-")),
            yshift=15 if one.method == "dense" else -15,
            showarrow=False,
            font={"size": 12, "color": GUIDE},
        )
    figure.update_xaxes(title_text=LABELS["gb"] + ", log scale", **log_axis(sizes["gb"]))
    figure.update_yaxes(title_text=LABELS["perplexity"], **log_axis(sizes["perplexity"]))
    return finish(figure, title=title, caption=caption, plot_height=380)
