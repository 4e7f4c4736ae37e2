"""Figures of what the input channels of a layer carry: norm, entropy, and their ranks."""

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from esparse_lab.errors import InputError
from esparse_lab.figures.style import (
    GUIDE,
    INK,
    LABELS,
    MAX_POINTS,
    OKABE_ITO,
    SEQUENTIAL,
    SYMBOLS,
    checked,
    finish,
    in_order,
    log_axis,
    panel_title,
    plain,
    thinned,
    thinning_note,
)

_HOVER = (
    "%{fullData.name}<br>channel %{customdata[0]}<br>norm %{customdata[1]:.4g}"
    "<br>entropy %{customdata[2]:.3f} nats<extra></extra>"
)
_HOVER_COLUMNS = ["channel", "norm", "entropy_nats"]


def channel_figure(
    channels: pd.DataFrame, *, shown: int = 100, title: str = "", caption: str = ""
) -> go.Figure:
    """Norm and entropy of the channels of one or two layers: Figure 2 of the E-Sparse paper.

    Panels: (a) norm of the `shown` channels of largest norm, sorted; (b) entropy of the same
    channels in the same order; (c), and (d) with a second layer, entropy of all channels as stored.
    The paper does not say which 100 channels it shows; here they are those of largest norm.

    Args:
        channels: columns layer, channel, norm, entropy_nats; one row a channel, one or two layers.
        shown: channels in (a) and (b), 1 to 2000.
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: columns or rows missing, more than two layers, `shown` out of range.
    """
    checked(channels, ("layer", "channel", "norm", "entropy_nats"), "channel_figure")
    layers = in_order(channels["layer"])
    if len(layers) > 2:
        raise InputError(
            f"channel_figure draws one or two layers, the frame has {len(layers)}. "
            "Keep two with channels[channels.layer.isin([...])]."
        )
    if not 1 <= shown <= 2000:
        raise InputError(f"shown must be 1 to 2000, got {shown}.")
    wide = [{"colspan": 2}, None] if len(layers) == 1 else [{}, {}]
    figure = make_subplots(
        rows=2, cols=2, specs=[[{}, {}], wide], horizontal_spacing=0.11, vertical_spacing=0.17
    )
    drawn = 0
    top_norms = []
    for i, layer in enumerate(layers):
        one = channels[channels["layer"] == layer]
        best = one.sort_values("norm", ascending=False, kind="stable").head(shown)
        top_norms.extend(best["norm"])
        stored = thinned(one.sort_values("channel", kind="stable"), MAX_POINTS // 2 - 2 * shown)
        drawn += len(stored)
        position = np.arange(1, len(best) + 1)
        marker = {"color": OKABE_ITO[i], "symbol": SYMBOLS[i], "size": 6}
        common = {"mode": "markers", "legendgroup": str(i), "name": plain(layer)}
        for x, frame, column, at, size in (
            (position, best, "norm", (1, 1), 6),
            (position, best, "entropy_nats", (1, 2), 6),
            (stored["channel"], stored, "entropy_nats", (2, 1 + i), 4),
        ):
            figure.add_scatter(
                x=x,
                y=frame[column],
                customdata=frame[_HOVER_COLUMNS].to_numpy(float),
                hovertemplate=_HOVER,
                marker=marker | {"size": size, "opacity": 0.85},
                showlegend=column == "norm",
                row=at[0],
                col=at[1],
                **common,
            )
        figure.update_xaxes(title_text=LABELS["channel"], row=2, col=1 + i)
        figure.update_yaxes(title_text=LABELS["entropy_nats"], matches="y2", row=2, col=1 + i)
        name = f": {plain(layer, 34)}" if len(layers) == 2 else ""
        panel_title(figure, f"({'cd'[i]}) entropy, all channels{name}", row=2, col=1 + i)
    longest = min(shown, int(channels["layer"].value_counts().max()))
    panel_title(figure, f"(a) norm, {longest} largest", row=1, col=1)
    panel_title(figure, "(b) entropy of the channels in (a)", row=1, col=2)
    figure.update_xaxes(title_text=LABELS["sorted_by_norm"], row=1)
    figure.update_yaxes(title_text=LABELS["norm"], row=1, col=1, **log_axis(top_norms))
    figure.update_yaxes(title_text=LABELS["entropy_nats"], row=1, col=2)
    dead = int((np.asarray(top_norms) <= 0).sum())
    notes = [thinning_note(drawn, len(channels))]
    if dead:
        notes.append(f"Not in (a): {dead} channels of norm 0 (log axis).")
    return finish(
        figure, title=title, caption=caption, plot_height=560, notes=notes, panel_titles=True
    )


def entropy_norm_figure(channels: pd.DataFrame, *, title: str = "", caption: str = "") -> go.Figure:
    """Entropy against norm (log scale), one point a channel, with the distribution of each.

    Up to 5 layers are told apart by colour and shape; 6 to 60 get a drop-down, one at a time.

    Args:
        channels: columns layer, channel, norm, entropy_nats.
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: columns or rows missing, more than 60 layers.
    """
    checked(channels, ("layer", "channel", "norm", "entropy_nats"), "entropy_norm_figure")
    layers = in_order(channels["layer"])
    if len(layers) > 60:
        raise InputError(
            f"entropy_norm_figure draws at most 60 layers, the frame has {len(layers)}. "
            "Choose some with channels[channels.layer.isin([...])]."
        )
    choose = len(layers) > 5
    figure = make_subplots(
        rows=2,
        cols=2,
        specs=[[{}, None], [{}, {}]],
        shared_xaxes="columns",
        shared_yaxes="rows",
        row_heights=[0.18, 0.82],
        column_widths=[0.84, 0.16],
        horizontal_spacing=0.015,
        vertical_spacing=0.025,
    )
    positive = channels.loc[channels["norm"] > 0, "norm"]
    norm_edges = _edges(np.log10(positive)) if len(positive) else None
    entropy_edges = _edges(channels["entropy_nats"])
    drawn, traces_per_layer = 0, []
    for i, layer in enumerate(layers):
        one = channels[channels["layer"] == layer]
        points = thinned(one.sort_values("norm", kind="stable"), MAX_POINTS // len(layers) - 160)
        drawn += len(points)
        look = 0 if choose else i
        color = OKABE_ITO[look]
        before = len(figure.data)
        common = {"legendgroup": str(i), "name": plain(layer), "visible": not choose or i == 0}
        figure.add_scatter(
            x=points["norm"],
            y=points["entropy_nats"],
            mode="markers",
            marker={"color": color, "symbol": SYMBOLS[look], "size": 6, "opacity": 0.65},
            customdata=points[_HOVER_COLUMNS].to_numpy(float),
            hovertemplate=_HOVER,
            showlegend=not choose,
            row=2,
            col=1,
            **common,
        )
        line = {"color": color, "width": 1.8}
        shade = {"mode": "lines", "hoverinfo": "skip", "showlegend": False, "line": line} | common
        if norm_edges is not None:
            counts, _ = np.histogram(np.log10(one["norm"][one["norm"] > 0]), norm_edges)
            figure.add_scatter(
                x=10 ** np.repeat(norm_edges, 2)[1:-1],
                y=np.repeat(counts, 2),
                row=1,
                col=1,
                **shade,
            )
        counts, _ = np.histogram(one["entropy_nats"], entropy_edges)
        figure.add_scatter(
            x=np.repeat(counts, 2), y=np.repeat(entropy_edges, 2)[1:-1], row=2, col=2, **shade
        )
        traces_per_layer.append(len(figure.data) - before)
    figure.update_xaxes(title_text=LABELS["norm"] + ", log scale", row=2, col=1)
    # No fixed range: with one on matched axes plotly.js 4.1 fails to fit the entropy axis.
    figure.update_xaxes(col=1, **(log_axis(positive) | {"range": None}))
    figure.update_yaxes(title_text=LABELS["entropy_nats"], row=2, col=1)
    quiet = {"showgrid": False, "nticks": 3, "rangemode": "tozero"}
    figure.update_yaxes(title_text="channels<br>(count)", row=1, col=1, **quiet)
    figure.update_xaxes(title_text=LABELS["channels"], row=2, col=2, **quiet)
    if choose:
        owner = np.repeat(np.arange(len(layers)), traces_per_layer)
        buttons = [
            {"label": plain(name), "method": "restyle", "args": ["visible", (owner == i).tolist()]}
            for i, name in enumerate(layers)
        ]
        figure.update_layout(updatemenus=[{"buttons": buttons, "showactive": True}])
    dead = len(channels) - len(positive)
    notes = [thinning_note(drawn, len(channels))]
    if dead:
        notes.append(f"Not drawn: {dead} channels of norm 0 (log axis).")
    return finish(figure, title=title, caption=caption, plot_height=500, notes=notes, menu=choose)


def _edges(values: pd.Series, count: int = 40) -> np.ndarray:
    """Edges of equal bins over the values; a constant gets a bin around it."""
    low, high = float(values.min()), float(values.max())
    half = 0.5 if low == high else 0.0
    return np.linspace(low - half, high + half, count + 1)


def binning_figure(frame: pd.DataFrame, *, title: str = "", caption: str = "") -> go.Figure:
    """What the number of bins, and what they span, do to the entropy of the channels.

    One box a (bins, bin_range) over the channels, beside the largest entropy possible, ln K. If the
    frame has `rank_correlation` (one value a pair, with a reference that the caption should name),
    a second panel shows it.

    Args:
        frame: columns bins, bin_range, channel, entropy_nats, and optionally rank_correlation.
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: columns or rows missing.
    """
    checked(frame, ("bins", "bin_range", "channel", "entropy_nats"), "binning_figure")
    ranges, bins = in_order(frame["bin_range"]), sorted(in_order(frame["bins"]))
    two = "rank_correlation" in frame.columns
    figure = make_subplots(
        rows=1 + two,
        cols=1,
        shared_xaxes=True,
        row_heights=[0.66, 0.34] if two else None,
        vertical_spacing=0.06,
    )
    each = MAX_POINTS // (len(ranges) * len(bins))
    drawn = 0
    for i, bin_range in enumerate(ranges):
        one = frame[frame["bin_range"] == bin_range]
        # Sorted before thinning, so that the rows left are evenly spaced quantiles.
        kept = pd.concat(
            thinned(group.sort_values("entropy_nats"), each)
            for _, group in one.groupby("bins", sort=True)
        )
        drawn += len(kept)
        figure.add_box(
            x=kept["bins"].astype(str),
            y=kept["entropy_nats"],
            name=plain(f"range: {bin_range}"),
            offsetgroup=str(i),
            legendgroup=str(i),
            boxpoints="outliers",
            marker={"color": OKABE_ITO[i % 8], "size": 3, "opacity": 0.6},
            line={"width": 1.6},
            customdata=kept["channel"],
            hovertemplate="channel %{customdata}<br>entropy %{y:.3f} nats<extra></extra>",
            showlegend=True,
            row=1,
            col=1,
        )
        if two:
            pairs = one.drop_duplicates("bins").sort_values("bins")
            figure.add_scatter(
                x=pairs["bins"].astype(str),
                y=pairs["rank_correlation"],
                mode="lines+markers",
                name=plain(f"range: {bin_range}"),
                legendgroup=str(i),
                marker={"color": OKABE_ITO[i % 8], "symbol": SYMBOLS[i % 8], "size": 8},
                hovertemplate="K = %{x}<br>rank correlation %{y:.3f}<extra></extra>",
                showlegend=False,
                row=2,
                col=1,
            )
    for place, k in enumerate(bins):
        figure.add_shape(
            type="line",
            x0=place - 0.45,
            x1=place + 0.45,
            y0=math.log(k),
            y1=math.log(k),
            line={"color": INK, "width": 1.6, "dash": "dot"},
            name="largest possible, ln K",
            legendgroup="ln K",
            showlegend=place == 0,
            row=1,
            col=1,
        )
    order = {"type": "category", "categoryorder": "array", "categoryarray": [str(k) for k in bins]}
    figure.update_xaxes(**order)
    figure.update_xaxes(title_text=LABELS["bins"], row=1 + two, col=1)
    figure.update_yaxes(title_text=LABELS["entropy_nats"], rangemode="tozero", row=1, col=1)
    if two:
        figure.update_yaxes(title_text=LABELS["rank_correlation"], row=2, col=1)
    figure.update_layout(boxmode="group")
    return finish(
        figure,
        title=title,
        caption=caption,
        plot_height=480 if two else 380,
        notes=[thinning_note(drawn, len(frame), "values")],
    )


def activation_histogram_figure(
    frame: pd.DataFrame, *, title: str = "", caption: str = ""
) -> go.Figure:
    """Histograms of the activations of a few channels, the entropy of each in its title.

    Args:
        frame: columns channel, bin_left, bin_right, count, entropy_nats; one row a bin, the same
            entropy in all rows of a channel. At most 12 channels.
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: columns or rows missing, more than 12 channels.
    """
    columns = ("channel", "bin_left", "bin_right", "count", "entropy_nats")
    checked(frame, columns, "activation_histogram_figure")
    chosen = in_order(frame["channel"])
    if len(chosen) > 12:
        raise InputError(
            f"activation_histogram_figure draws at most 12 channels, the frame has {len(chosen)}. "
            "Choose some with frame[frame.channel.isin([...])]."
        )
    cols = min(len(chosen), 2 if len(chosen) in (2, 4) else 3)
    rows = math.ceil(len(chosen) / cols)
    figure = make_subplots(
        rows=rows, cols=cols, horizontal_spacing=0.09, vertical_spacing=0.3 / rows
    )
    for i, channel in enumerate(chosen):
        one = frame[frame["channel"] == channel]
        at = {"row": i // cols + 1, "col": i % cols + 1}
        figure.add_bar(
            x=one["bin_left"],
            width=one["bin_right"] - one["bin_left"],
            offset=0,
            y=one["count"],
            customdata=one["bin_right"],
            hovertemplate=(
                "%{x:.4g} to %{customdata:.4g}<br>%{y:,} tokens<extra>channel "
                + plain(channel)
                + "</extra>"
            ),
            marker={"color": OKABE_ITO[0], "line": {"width": 0}},
            name=plain(f"channel {channel}"),
            showlegend=False,
            **at,
        )
        entropy = one["entropy_nats"].iloc[0]
        panel_title(figure, f"channel {plain(channel, 20)}: {entropy:.2f} nats", **at)
        below = i + cols >= len(chosen)  # no panel under this one
        figure.update_xaxes(title_text=LABELS["activation"] if below else None, nticks=5, **at)
        figure.update_yaxes(title_text=LABELS["count"] if i % cols == 0 else None, nticks=5, **at)
    figure.update_layout(bargap=0)
    return finish(
        figure, title=title, caption=caption, plot_height=60 + 200 * rows, panel_titles=True
    )


def rank_change_figure(
    frame: pd.DataFrame, *, named: int = 4, title: str = "", caption: str = ""
) -> go.Figure:
    """Which channels gain or lose rank when the entropy joins the norm.

    Height is norm_rank − esparse_rank: above the line a channel counts for more than its norm
    alone says. Colour is the entropy; the channels that moved farthest carry their index.

    Args:
        frame: columns channel, norm_rank, esparse_rank (1 = largest), entropy_nats.
        named: name at most this many channels on each side, fewer where names would overlap.
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: columns or rows missing.
    """
    checked(frame, ("channel", "norm_rank", "esparse_rank", "entropy_nats"), "rank_change_figure")
    frame = frame.assign(rank_gain=frame["norm_rank"] - frame["esparse_rank"])
    points = thinned(frame.sort_values("norm_rank", kind="stable"), MAX_POINTS)
    figure = make_subplots(rows=1, cols=1)
    figure.add_hline(y=0, line={"color": GUIDE, "width": 1.5})
    figure.add_scatter(
        x=points["norm_rank"],
        y=points["rank_gain"],
        mode="markers",
        marker={
            "color": points["entropy_nats"],
            "colorscale": SEQUENTIAL,
            "size": 7,
            "line": {"color": INK, "width": 0.4},
            "colorbar": {
                "title": {"text": LABELS["entropy_nats"], "side": "right", "font": {"size": 13}},
                "thickness": 14,
                "outlinewidth": 0,
            },
        },
        customdata=list(
            zip(points["channel"], points["esparse_rank"], points["entropy_nats"], strict=True)
        ),
        hovertemplate=(
            "channel %{customdata[0]}<br>rank by norm %{x}, with entropy %{customdata[1]}"
            "<br>gain %{y:+d}<br>entropy %{customdata[2]:.3f} nats<extra></extra>"
        ),
        name="channels",
        showlegend=False,
    )
    for side in (-1, 1):
        moved = points[points["rank_gain"] * side > 0]
        moved = moved.sort_values("rank_gain", ascending=side < 0, kind="stable").head(named)
        width = 0.06 * len(frame)  # a label this near another would cover it
        labelled: list[float] = []
        for one in moved.itertuples():
            if any(abs(one.norm_rank - x) < width for x in labelled):
                continue
            labelled.append(one.norm_rank)
            figure.add_annotation(
                x=one.norm_rank,
                y=one.rank_gain,
                text=plain(one.channel, 20),
                showarrow=False,
                yshift=11 * side,
                font={"size": 11},
            )
    figure.update_xaxes(title_text=LABELS["norm_rank"])
    figure.update_yaxes(title_text=LABELS["rank_gain"], tickformat="+d")
    return finish(
        figure,
        title=title,
        caption=caption,
        plot_height=420,
        notes=[thinning_note(len(points), len(frame))],
        right=90,
    )
