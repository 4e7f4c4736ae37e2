"""How long sparse products take: bars over their floors, the roofline, and the speed atlas."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from esparse_lab.figures.style import (
    GUIDE,
    INK,
    LABELS,
    OKABE_ITO,
    SEQUENTIAL,
    SYMBOLS,
    checked,
    finish,
    in_order,
    log_axis,
    panel_title,
    plain,
)

# Name, column of its time, place in the palette.
_BARS = (
    ("dense", "dense_ms", 4),
    ("default", "default_ms", 5),
    ("searched", "sparse_ms", 0),
)
_BAR, _GROUP, _BETWEEN = 17, 14, 74  # pixels: a bar, between groups, between panels


def gemm_figure(timings: pd.DataFrame, *, title: str = "", caption: str = "") -> go.Figure:
    """Times of each product: dense, sparse by the library's default, and sparse after the search.

    A black mark is the least time that the card allows. A panel a number of tokens, whose times
    have their own scale; ratios are to the dense time.

    Args:
        timings: columns name, m, k, n, dtype, dense_ms, default_ms (may be missing values),
            sparse_ms, floor_ms, dense_floor_ms, as from `gemm_table`.
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: columns or rows missing.
    """
    times = [column for _, column, _ in _BARS]
    checked(timings, ("name", "m", "k", "n", "dtype", *times, "floor_ms"), "gemm_figure")
    checked(timings, ("dense_floor_ms",), "gemm_figure")
    panels = {m: part for m, part in timings.groupby("m", sort=False)}
    sizes = [len(part) * (3 * _BAR + _GROUP) for part in panels.values()]
    height = sum(sizes) + _BETWEEN * (len(sizes) - 1)
    figure = make_subplots(
        rows=len(sizes),
        cols=1,
        row_heights=sizes,
        vertical_spacing=_BETWEEN / height if len(sizes) > 1 else 0,
    )
    for row, (tokens, part) in enumerate(panels.items(), start=1):
        places = np.arange(len(part))
        marks_x, marks_y = [], []
        for offset, (name, column, look) in zip((-1, 0, 1), _BARS, strict=True):
            y = places + offset * 0.27
            ratio = part["dense_ms"] / part[column]
            figure.add_bar(
                x=part[column],
                y=y,
                width=0.25,
                orientation="h",
                marker={"color": OKABE_ITO[look], "pattern": {"shape": "/" if look == 5 else ""}},
                text=[
                    ""
                    if pd.isna(ms)
                    else f" {ms:.3g}" + (f" ({r:.2f}×)" if column != "dense_ms" else "")
                    for ms, r in zip(part[column], ratio, strict=True)
                ],
                textposition="outside",
                textfont={"color": INK, "size": 11},
                cliponaxis=False,
                hovertemplate=f"{name}: %{{x:.5g}} ms<extra></extra>",
                name=name,
                legendgroup=name,
                showlegend=row == 1,
                row=row,
                col=1,
            )
            floors = part["dense_floor_ms" if column == "dense_ms" else "floor_ms"]
            for place, floor in zip(y, floors.where(part[column].notna()), strict=True):
                marks_x += [floor, floor, None]
                marks_y += [place - 0.125, place + 0.125, None]
        figure.add_scatter(
            x=marks_x,
            y=marks_y,
            mode="lines",
            line={"color": INK, "width": 3},
            hovertemplate="floor: %{x:.5g} ms<extra></extra>",
            name="floor",
            legendgroup="floor",
            showlegend=row == 1,
            row=row,
            col=1,
        )
        missing = [n for n, ms in zip(places, part["default_ms"], strict=True) if pd.isna(ms)]
        for place in missing:
            figure.add_annotation(
                x=0,
                y=place,
                text=" no default",
                xanchor="left",
                showarrow=False,
                font={"size": 11, "color": GUIDE},
                row=row,
                col=1,
            )
        panel_title(figure, f"{tokens:,} tokens", row=row, col=1)
        figure.update_yaxes(
            tickvals=places,
            ticktext=[_named(one) for one in part.itertuples()],
            range=[len(part) - 0.5, -0.5],
            showgrid=False,
            row=row,
            col=1,
        )
        most = part[[*times, "floor_ms", "dense_floor_ms"]].max().max()
        figure.update_xaxes(range=[0, 1.3 * most], row=row, col=1)
    figure.update_xaxes(title_text=LABELS["device_ms"], row=len(sizes), col=1)
    return finish(figure, title=title, caption=caption, plot_height=height, panel_titles=True)


def roofline_figure(points: pd.DataFrame, *, title: str = "", caption: str = "") -> go.Figure:
    """How fast each product runs against what the card allows at its arithmetic intensity.

    The roofs are drawn as far as the products reach: through the highest floor that is set by bytes
    and the one that is set by arithmetic.

    Args:
        points: columns name, m, k, n, dtype, form, intensity, tflops, roof_tflops, as from
            `roofline_table`; a panel a dtype.
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: columns or rows missing.
    """
    needed = ("name", "m", "k", "n", "dtype", "form", "intensity", "tflops", "roof_tflops")
    checked(points, needed, "roofline_figure")
    dtypes = in_order(points["dtype"])
    between, plot = 84, 340
    height = plot * len(dtypes) + between * (len(dtypes) - 1)
    figure = make_subplots(
        rows=len(dtypes),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=between / height if len(dtypes) > 1 else 0,
    )
    x_axis = log_axis(points["intensity"])
    y_axis = log_axis([*points["tflops"], *points["roof_tflops"]])
    for row, dtype in enumerate(dtypes, start=1):
        of_dtype = points[points["dtype"] == dtype]
        for look, form in zip((4, 0), ("dense", "sparse"), strict=True):
            part = of_dtype[of_dtype["form"] == form]
            if part.empty:
                continue
            figure.add_scatter(
                **_roof(part),
                mode="lines",
                line={"color": OKABE_ITO[look], "dash": "solid" if form == "dense" else "dash"},
                hoverinfo="skip",
                name=f"{form} roof",
                legendgroup=f"{form} roof",
                showlegend=row == 1,
                row=row,
                col=1,
            )
            figure.add_scatter(
                x=part["intensity"],
                y=part["tflops"],
                mode="markers",
                marker={
                    "color": OKABE_ITO[look],
                    "symbol": SYMBOLS[look],
                    "size": 10,
                    "line": {"color": INK, "width": 1},
                },
                customdata=[
                    (_named(one, dtype=False), one.m, one.tflops / one.roof_tflops)
                    for one in part.itertuples()
                ],
                hovertemplate="%{customdata[0]}, %{customdata[1]:,} tokens<br>%{y:.4g} TFLOP/s, "
                f"%{{customdata[2]:.0%}} of the {form} roof<extra></extra>",
                name=form,
                legendgroup=form,
                showlegend=row == 1,
                row=row,
                col=1,
            )
        panel_title(figure, plain(dtype), row=row, col=1)
        figure.update_yaxes(title_text=LABELS["tflops"], **y_axis, row=row, col=1)
    figure.update_xaxes(**x_axis)
    figure.update_xaxes(title_text=LABELS["intensity"], row=len(dtypes), col=1)
    return finish(figure, title=title, caption=caption, plot_height=height, panel_titles=True)


def atlas_figure(timings: pd.DataFrame, *, title: str = "", caption: str = "") -> go.Figure:
    """How many times as fast as dense the sparse product is, by tokens and shape.

    The thick line parts the cells where the sparse product is faster from those where it is not.

    Args:
        timings: columns name, m, k, n, dtype, kernel, pattern, algorithm, dense_ms, sparse_ms,
            speedup, as from `gemm_table`; a panel a dtype, kernel and pattern. Of one cell's rows
            the fastest counts.
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: columns or rows missing.
    """
    keys = ["dtype", "kernel", "pattern"]
    needed = ("name", "m", "k", "n", *keys, "algorithm", "dense_ms", "sparse_ms", "speedup")
    checked(timings, needed, "atlas_figure")
    panels = list(timings.groupby(keys, sort=False))
    shapes = [in_order(zip(part["k"], part["n"], strict=True)) for _, part in panels]
    sizes = [34 * len(rows) for rows in shapes]
    between = 92
    height = sum(sizes) + between * (len(sizes) - 1)
    figure = make_subplots(
        rows=len(panels),
        cols=1,
        row_heights=sizes,
        vertical_spacing=between / height if len(panels) > 1 else 0,
    )
    spread = timings["speedup"]
    scale = {"colorscale": SEQUENTIAL, "cmin": spread.min(), "cmax": spread.max()}
    for row, ((label, part), rows) in enumerate(zip(panels, shapes, strict=True), start=1):
        tokens = sorted(set(part["m"]))
        ratio = np.full((len(rows), len(tokens)), np.nan)
        hover = np.full(ratio.shape, "", dtype=object)
        names: dict[tuple, str] = {}
        for one in part.itertuples():
            at = rows.index((one.k, one.n)), tokens.index(one.m)
            names.setdefault((one.k, one.n), _named(one, dtype=False))
            if not one.speedup <= ratio[at]:  # also where nothing stands yet
                ratio[at] = one.speedup
                hover[at] = (
                    f"{one.dense_ms:.4g} → {one.sparse_ms:.4g} ms<br>{plain(one.algorithm, 90)}"
                )
        figure.add_heatmap(
            z=ratio,
            customdata=hover,
            texttemplate="%{z:.2f}",
            textfont={"size": 11},
            coloraxis="coloraxis",
            hoverongaps=False,
            xgap=1,
            ygap=1,
            hovertemplate="%{z:.3f} times as fast<br>%{customdata}<extra></extra>",
            row=row,
            col=1,
        )
        x, y = _borders(ratio)
        if x:
            figure.add_scatter(
                x=x,
                y=y,
                mode="lines",
                line={"color": OKABE_ITO[1], "width": 4},
                hoverinfo="skip",
                name="break-even",
                legendgroup="break-even",
                showlegend=not any(trace.showlegend for trace in figure.data),
                row=row,
                col=1,
            )
        panel_title(figure, plain(", ".join(label)), row=row, col=1)
        quiet = {"showgrid": False, "ticks": ""}
        figure.update_xaxes(
            tickvals=list(range(len(tokens))),
            ticktext=[f"{m:,}" for m in tokens],
            range=[-0.5, len(tokens) - 0.5],
            **quiet,
            row=row,
            col=1,
        )
        figure.update_yaxes(
            tickvals=list(range(len(rows))),
            ticktext=[names[shape] for shape in rows],
            range=[len(rows) - 0.5, -0.5],
            **quiet,
            row=row,
            col=1,
        )
    figure.update_xaxes(title_text=LABELS["tokens"], row=len(panels), col=1)
    figure.update_layout(
        coloraxis={
            **scale,
            "colorbar": {
                "title": {"text": "times as<br>fast"},
                "thickness": 14,
                "len": 1.0,
            },
        }
    )
    return finish(
        figure, title=title, caption=caption, plot_height=height, panel_titles=True, right=90
    )


def _roof(part: pd.DataFrame) -> dict[str, list[float]]:
    """The line min(peak, slope * intensity) over the products' intensities."""
    peak = part["roof_tflops"].max()
    slope = (part["roof_tflops"] / part["intensity"]).max()
    ends = part["intensity"].min(), part["intensity"].max()
    x = sorted({*ends, float(np.clip(peak / slope, *ends))})
    return {"x": x, "y": [min(peak, slope * at) for at in x]}


def _borders(ratio: np.ndarray) -> tuple[list, list]:
    """The edges between cells above 1 and cells that are not, as the x and y of broken lines."""
    x: list[float | None] = []
    y: list[float | None] = []
    for (row, col), here in np.ndenumerate(ratio):
        for down, right in ((1, 0), (0, 1)):
            other = row + down, col + right
            if other[0] >= ratio.shape[0] or other[1] >= ratio.shape[1]:
                continue
            there = ratio[other]
            if np.isfinite(here) and np.isfinite(there) and (here > 1) != (there > 1):
                x += [col + 0.5 - down, col + 0.5, None]
                y += [row + 0.5 - right, row + 0.5, None]
    return x, y


def _named(one, *, dtype: bool = True) -> str:
    """A product's own name with its weight's size, or the size alone where that is its name."""
    size = f"{one.k:,} → {one.n:,}"
    words = [] if "," in str(one.name) else [plain(one.name, 30)]
    return "<br>".join([*words, size + (f", {plain(one.dtype)}" if dtype else "")])
