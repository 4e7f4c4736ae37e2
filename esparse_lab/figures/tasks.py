"""Zero-shot tasks: how far pruned models are from the dense one, question by question."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from esparse_lab.figures.style import (
    GRID,
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

_MARK = 14  # pixels between the marks of a task
_METRICS = {"acc": "accuracy", "acc_norm": "normalised accuracy (by characters)"}


def paired_figure(frame: pd.DataFrame, *, title: str = "", caption: str = "") -> go.Figure:
    """Paired differences with their intervals: a panel a metric, a row a task, a mark a model.

    Args:
        frame: columns model, task, metric, difference, low and high (shares, -1 to 1), as
            `paired_difference` gives them.
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: columns or rows missing.
    """
    numbers = ("difference", "low", "high")
    checked(frame, ("model", "task", "metric", *numbers), "paired_figure")
    metrics, tasks, models = (in_order(frame[name]) for name in ("metric", "task", "model"))
    row_height = _MARK * len(models) + 14
    panel = row_height * len(tasks)
    plot_height = panel * len(metrics) + 40 * (len(metrics) - 1)
    figure = make_subplots(
        rows=len(metrics),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=40 / plot_height if len(metrics) > 1 else 0,
    )
    places = pd.Series(np.arange(len(tasks)), index=tasks)
    for row, metric in enumerate(metrics, start=1):
        for place, (model, look) in enumerate(looks(models).items()):
            one = frame[(frame["metric"] == metric) & (frame["model"] == model)]
            percent = {name: 100 * one[name] for name in numbers}
            apart = _MARK * (place - (len(models) - 1) / 2) / row_height
            symbol = SYMBOLS[look] + "-open" * (place // len(OKABE_ITO) % 2)  # beyond the palette
            figure.add_scatter(
                x=percent["difference"],
                y=places.reindex(one["task"]).to_numpy() + apart,
                mode="markers",
                error_x={
                    "array": percent["high"] - percent["difference"],
                    "arrayminus": percent["difference"] - percent["low"],
                    "thickness": 1.4,
                    "width": 3,
                },
                marker={"color": OKABE_ITO[look], "symbol": symbol, "size": 9},
                customdata=[
                    f"{plain(r.task)}: {100 * r.low:+.1f} to {100 * r.high:+.1f}"
                    for r in one.itertuples()
                ],
                hovertemplate="%{customdata}<br>%{x:+.2f}<extra>" + plain(model) + "</extra>",
                name=plain(model),
                legendgroup=str(model),
                showlegend=row == 1,
                row=row,
                col=1,
            )
        figure.add_vline(x=0, line={"color": INK, "width": 1.6, "dash": "dash"}, row=row, col=1)
        figure.update_yaxes(
            tickvals=places.to_numpy(),
            ticktext=[plain(task, 30) for task in tasks],
            range=[len(tasks) - 0.5, -0.5],
            showgrid=False,
            row=row,
            col=1,
        )
        for between in range(1, len(tasks)):
            figure.add_hline(y=between - 0.5, line={"color": GRID, "width": 1}, row=row, col=1)
        panel_title(figure, plain(_METRICS.get(metric, metric)), row=row, col=1)
    figure.update_xaxes(title_text=LABELS["difference"], row=len(metrics), col=1)
    return finish(
        figure, title=title, caption=caption, plot_height=plot_height, panel_titles=True, right=30
    )
