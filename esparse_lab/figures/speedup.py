"""How many times as fast as dense each sparse form is: products of few tokens, whole models."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from esparse_lab.figures.style import (
    GUIDE,
    INK,
    LABELS,
    OKABE_ITO,
    SYMBOLS,
    checked,
    finish,
    in_order,
    looks,
    panel_title,
    plain,
)

_LOOKS = {"cusparselt 2:4": 0, "compressed 2:4": 1, "compressed 4:8": 2, "compressed 1:4": 3}
_MARK, _GAP, _BETWEEN = 17, 14, 62  # pixels: a form's line, between rows, between panels


def speedup_figure(ratios: pd.DataFrame, *, title: str = "", caption: str = "") -> go.Figure:
    """A mark for every form of every row; left of the line at 1 it is slower than dense.

    Args:
        ratios: columns panel, row, form, speedup, and most_speedup where a floor allows no more,
            which is drawn as a black stroke. A panel above the other for each `panel`.
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: columns or rows missing.
    """
    checked(ratios, ("panel", "row", "form", "speedup"), "speedup_figure")
    panels = {name: ratios[ratios["panel"] == name] for name in in_order(ratios["panel"])}
    places = looks(in_order(ratios["form"]), _LOOKS)
    row_height = _MARK * len(places) + _GAP
    rows = {name: in_order(part["row"]) for name, part in panels.items()}
    sizes = [row_height * len(names) for names in rows.values()]
    height = sum(sizes) + _BETWEEN * (len(sizes) - 1)
    figure = make_subplots(
        rows=len(sizes),
        cols=1,
        shared_xaxes=True,
        row_heights=sizes,
        vertical_spacing=_BETWEEN / height if len(sizes) > 1 else 0,
    )
    limits = ratios.get("most_speedup", pd.Series(float("nan"), ratios.index))
    ends = [*ratios["speedup"], *limits.dropna(), 1.0]
    room = 0.08 * (max(ends) - min(ends))
    for at, (name, part) in enumerate(panels.items(), start=1):
        seen = set()
        for line, (form, look) in enumerate(places.items()):
            of_form = part[part["form"] == form]
            offset = (line - (len(places) - 1) / 2) * _MARK / row_height
            y = [rows[name].index(row) + offset for row in of_form["row"]]
            first = not any(trace.name == plain(form) for trace in figure.data)
            figure.add_scatter(
                x=of_form["speedup"],
                y=y,
                mode="markers+text",
                marker={
                    "color": OKABE_ITO[look],
                    "symbol": SYMBOLS[look],
                    "size": 10,
                    "line": {"color": INK, "width": 1},
                },
                text=[f"   {ratio:.2f}   " for ratio in of_form["speedup"]],
                # Floors lie to the right of marks, so words to the left, but not across the line.
                textposition=[
                    "middle right" if 1 < ratio < 1 + room else "middle left"
                    for ratio in of_form["speedup"]
                ],
                textfont={"size": 11, "color": INK},
                customdata=[plain(row) for row in of_form["row"]],
                hovertemplate=f"%{{customdata}}<br>{plain(form)}: "
                "%{x:.3f} times as fast<extra></extra>",
                name=plain(form),
                legendgroup=str(form),
                showlegend=first,
                cliponaxis=False,
                row=at,
                col=1,
            )
            seen |= set(zip(limits[of_form.index], y, strict=True))
        drawn = [(x, y) for x, y in sorted(seen) if pd.notna(x)]
        if drawn:
            half = 0.4 * _MARK / row_height
            figure.add_scatter(
                x=[end for x, _ in drawn for end in (x, x, None)],
                y=[end for _, y in drawn for end in (y - half, y + half, None)],
                mode="lines",
                line={"color": INK, "width": 3},
                hovertemplate="at most %{x:.3f}<extra></extra>",
                name="floor",
                legendgroup="floor",
                showlegend=at == 1,
                row=at,
                col=1,
            )
        figure.add_vline(x=1, line={"color": GUIDE, "dash": "dash"}, row=at, col=1)
        panel_title(figure, plain(name), row=at, col=1)
        figure.update_yaxes(
            tickvals=list(range(len(rows[name]))),
            ticktext=["<br>".join(map(plain, str(row).split("\n"))) for row in rows[name]],
            range=[len(rows[name]) - 0.5, -0.5],
            showgrid=False,
            row=at,
            col=1,
        )
    figure.update_xaxes(range=[min(ends) - 1.5 * room, max(ends) + room])
    figure.update_xaxes(title_text=LABELS["speedup"], row=len(sizes), col=1)
    return finish(figure, title=title, caption=caption, plot_height=height, panel_titles=True)
