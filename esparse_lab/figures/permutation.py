"""Figures of what a channel permutation changes: score pictures, search traces, retained score."""

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from esparse_lab.errors import InputError
from esparse_lab.figures.style import (
    DASHES,
    LABELS,
    MAX_POINTS,
    OKABE_ITO,
    SEQUENTIAL,
    SYMBOLS,
    checked,
    finish,
    in_order,
    log_axis,
    looks,
    panel_title,
    plain,
    thinned,
    thinning_note,
)

# The searches of the paper keep their colour from figure to figure.
SEARCH_LOOKS = {"none": 6, "gns": 4, "gns+lbs": 0}
_ROLES = ("q", "k", "v", "o", "gate", "up", "down")
_REMOVED, _KEPT = "#E8E8E8", OKABE_ITO[0]


def score_picture(
    before: np.ndarray,
    after: np.ndarray,
    mask_before: np.ndarray,
    mask_after: np.ndarray,
    *,
    m: int,
    rows: int = 64,
    channels: int = 64,
    title: str = "",
    caption: str = "",
) -> go.Figure:
    """The upper left corner of a score matrix before and after a permutation, and what is kept.

    Thin lines part the groups of `m` channels. Both score pictures share one colour scale, the
    logarithm of the score, so that a few outlier channels do not turn the rest dark; the smallest
    5 % of the scores shown, zero among them, have one colour.

    Args:
        before: scores [out, in], finite, 0 or more, in stored order.
        after: scores [out, in] in permuted order.
        mask_before: bool [out, in], true where the weight is kept.
        mask_after: bool [out, in] of `after`, in permuted order.
        m: channels in a group, 1 or more.
        rows: output channels shown at most, up to 64.
        channels: input channels shown at most, up to 64.
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: shapes differ or are not 2-D, a size out of range, scores not finite.
    """
    given = {
        "before": np.asarray(before),
        "after": np.asarray(after),
        "mask_before": np.asarray(mask_before),
        "mask_after": np.asarray(mask_after),
    }
    shapes = {name: a.shape for name, a in given.items()}
    if len(set(shapes.values())) > 1 or len(shapes["before"]) != 2 or not given["before"].size:
        raise InputError(f"score_picture needs four [out, in] arrays of one shape; got {shapes}.")
    for name, size in (("rows", rows), ("channels", channels)):
        if not 1 <= size <= 64:
            raise InputError(f"{name} must be 1 to 64, got {size}.")
    if m < 1:
        raise InputError(f"m must be 1 or more, got {m}.")
    n_rows, n_channels = (
        min(a, b) for a, b in zip(shapes["before"], (rows, channels), strict=True)
    )
    corner = {name: a[:n_rows, :n_channels] for name, a in given.items()}
    scores = np.stack([corner["before"], corner["after"]]).astype(float)
    if not np.isfinite(scores).all() or (scores < 0).any():
        raise InputError(
            "score_picture needs finite scores of 0 or more; before or after holds NaN, inf or a "
            "negative number."
        )
    # Colours are log10 of the score, from the 5th percentile up; an all-zero corner is one colour.
    floor = float(np.quantile(scores[scores > 0], 0.05)) if scores.any() else 1.0
    low, high = np.log10(floor), max(np.log10(max(scores.max(), floor)), np.log10(floor) + 0.1)
    ticks = log_axis([floor, 10.0**high])

    figure = make_subplots(rows=2, cols=2, horizontal_spacing=0.07, vertical_spacing=0.09)
    panels = (
        ("before", "(a) score, channels as stored", 1, 1),
        ("after", "(b) score, channels permuted", 1, 2),
        ("mask_before", "(c) kept of (a)", 2, 1),
        ("mask_after", "(d) kept of (b)", 2, 2),
    )
    edges = np.arange(m, n_channels, m) - 0.5
    bounds = " ".join(f"M{e},-0.5V{n_rows - 0.5}" for e in edges)
    for name, text, row, col in panels:
        is_mask = name.startswith("mask")
        figure.add_heatmap(
            z=corner[name].astype(int) if is_mask else np.log10(np.maximum(corner[name], floor)),
            coloraxis="coloraxis2" if is_mask else "coloraxis",
            customdata=np.where(corner[name], "kept", "removed") if is_mask else corner[name],
            hovertemplate="output channel %{y}<br>position %{x}<br>"
            + ("%{customdata}" if is_mask else "score %{customdata:.4g}")
            + "<extra></extra>",
            name=text,
            row=row,
            col=col,
        )
        if bounds:
            figure.add_shape(
                type="path",
                path=bounds,
                line={"color": "white", "width": 1},
                row=row,
                col=col,
            )
        panel_title(figure, text, row=row, col=col)
    figure.update_xaxes(showgrid=False, constrain="domain", range=[-0.5, n_channels - 0.5])
    figure.update_yaxes(showgrid=False, range=[n_rows - 0.5, -0.5])
    figure.update_xaxes(title_text=LABELS["slot"], row=2)
    figure.update_yaxes(title_text=LABELS["row"], col=1)
    bar = {"thickness": 14, "outlinewidth": 0, "x": 1.02, "len": 0.46, "yanchor": "middle"}
    figure.update_layout(
        coloraxis={
            "colorscale": SEQUENTIAL,
            "cmin": low,
            "cmax": high,
            "colorbar": bar
            | {
                "y": 0.78,
                "title": {"text": LABELS["score"], "side": "right", "font": {"size": 13}},
                "tickvals": np.log10(ticks["tickvals"]),
                "ticktext": ticks["ticktext"],
            },
        },
        coloraxis2={
            "colorscale": [[0, _REMOVED], [0.5, _REMOVED], [0.5, _KEPT], [1, _KEPT]],
            "cmin": 0,
            "cmax": 1,
            "colorbar": bar
            | {"y": 0.22, "tickvals": [0.25, 0.75], "ticktext": ["removed", "kept"]},
        },
    )
    total = shapes["before"]
    note = (
        f"Shown: {n_rows} of {total[0]:,} output and {n_channels} of {total[1]:,} input channels; "
        f"white lines part the groups of {m}. Colours are logarithmic; the smallest 5 % share one."
    )
    return finish(
        figure,
        title=title,
        caption=caption,
        plot_height=640,
        notes=[note],
        panel_titles=True,
        right=110,
    )


def search_trace_figure(frame: pd.DataFrame, *, title: str = "", caption: str = "") -> go.Figure:
    """Retained score against swaps, one step line a search; start points are marked.

    Args:
        frame: columns search, swaps (0 = start), retained_share (0 to 1). A search with one row
            makes no swaps; its level is drawn across.
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: columns or rows missing.
    """
    checked(frame, ("search", "swaps", "retained_share"), "search_trace_figure")
    figure = go.Figure()
    searches = in_order(frame["search"])
    drawn = 0
    for search, look in looks(searches, SEARCH_LOOKS).items():
        one = frame[frame["search"] == search].sort_values("swaps", kind="stable")
        steps = thinned(one, MAX_POINTS // len(searches))
        drawn += len(steps)
        start, end = one.iloc[0], one.iloc[-1]
        color = OKABE_ITO[look]
        text = f"{search}: {start.retained_share:.2%}"
        if len(one) > 1:
            text += f" → {end.retained_share:.2%} ({int(end.swaps):,} swaps)"
        else:
            figure.add_hline(
                y=start.retained_share, line={"color": color, "width": 1.2, "dash": "dot"}
            )
        figure.add_scatter(
            x=steps["swaps"],
            y=steps["retained_share"],
            mode="lines" if len(one) > 1 else "markers",
            line={"shape": "hv", "color": color, "width": 2.2, "dash": DASHES[look % len(DASHES)]},
            # A ring around the start that a search from the same order has.
            marker={"color": color, "size": 18, "symbol": SYMBOLS[look] + "-open", "line_width": 2},
            name=plain(text, 80),
            legendgroup=str(search),
            hovertemplate="%{x:,} swaps<br>retained %{y:.3%}<extra></extra>",
            showlegend=True,
        )
        if len(one) > 1:
            figure.add_scatter(
                x=[start.swaps],
                y=[start.retained_share],
                mode="markers",
                marker={"color": color, "size": 11, "symbol": SYMBOLS[look]},
                name="start",
                legendgroup=str(search),
                hovertemplate="start<br>retained %{y:.3%}<extra></extra>",
                showlegend=False,
            )
    figure.update_xaxes(title_text=LABELS["swaps"])
    figure.update_yaxes(title_text=LABELS["retained_share"], tickformat=".1%")
    return finish(
        figure,
        title=title,
        caption=caption,
        plot_height=400,
        notes=[thinning_note(drawn, len(frame), "steps")],
    )


def retained_figure(frame: pd.DataFrame, *, title: str = "", caption: str = "") -> go.Figure:
    """Retained score of every layer: a panel a role, a mark a block and search; means in legend.

    Args:
        frame: columns layer, block, role (q, k, v, o, gate, up, down or others), search,
            retained_share (0 to 1).
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: columns or rows missing.
    """
    checked(frame, ("layer", "block", "role", "search", "retained_share"), "retained_figure")
    found = in_order(frame["role"])
    roles = [r for r in _ROLES if r in found] + [r for r in found if r not in _ROLES]
    cols = min(len(roles), 4)
    rows = math.ceil(len(roles) / cols)
    figure = make_subplots(
        rows=rows,
        cols=cols,
        shared_yaxes="all",
        horizontal_spacing=0.02,
        vertical_spacing=0.26 / rows,
    )
    searches = in_order(frame["search"])
    drawn = 0
    for search, look in looks(searches, SEARCH_LOOKS).items():
        of_search = frame[frame["search"] == search]
        mean = of_search["retained_share"].mean()
        for i, role in enumerate(roles):
            one = of_search[of_search["role"] == role].sort_values("block", kind="stable")
            one = thinned(one, MAX_POINTS // (len(roles) * len(searches)))
            drawn += len(one)
            figure.add_scatter(
                x=one["block"],
                y=one["retained_share"],
                mode="lines+markers",
                line={"color": OKABE_ITO[look], "width": 1},
                marker={"color": OKABE_ITO[look], "symbol": SYMBOLS[look], "size": 7},
                customdata=[plain(layer) for layer in one["layer"]],
                hovertemplate="%{customdata}<br>retained %{y:.2%}<extra>"
                + plain(search)
                + "</extra>",
                name=plain(f"{search}: mean {mean:.2%}"),
                legendgroup=str(search),
                showlegend=i == 0,
                row=i // cols + 1,
                col=i % cols + 1,
            )
    for i, role in enumerate(roles):
        at = {"row": i // cols + 1, "col": i % cols + 1}
        panel_title(figure, plain(role, 24), **at)
        figure.update_xaxes(title_text=LABELS["block"] if i + cols >= len(roles) else None, **at)
        if i % cols == 0:
            figure.update_yaxes(title_text=LABELS["retained_share"], **at)
    figure.update_yaxes(tickformat=".0%")
    return finish(
        figure,
        title=title,
        caption=caption,
        plot_height=60 + 210 * rows,
        notes=[thinning_note(drawn, len(frame), "layers")],
        panel_titles=True,
    )
