"""What weights take: parts of a model dense and compressed, and what Table 6 leaves out."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from esparse_lab.figures.style import (
    INK,
    LABELS,
    OKABE_ITO,
    checked,
    finish,
    in_order,
    looks,
    panel_title,
    plain,
)

_ROW, _BETWEEN = 24, 62  # pixels a bar, and from one panel to the next
_PRINTED = "counted by the paper"


def footprint_figure(parts: pd.DataFrame, *, title: str = "", caption: str = "") -> go.Figure:
    """What stays and what is saved of every part of a model, as shares of the dense model.

    Args:
        parts: columns model, part, dense_gb, compressed_gb, kept_share, saved_share (of the dense
            model, 0 to 1), as from `part_table`; a panel a model.
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: columns or rows missing.
    """
    needed = ("model", "part", "dense_gb", "compressed_gb", "kept_share", "saved_share")
    checked(parts, needed, "footprint_figure")
    models = {m: parts[parts["model"] == m] for m in in_order(parts["model"])}
    figure, plot_height = _panels([len(one) for one in models.values()], shared=True)
    for row, (model, one) in enumerate(models.items(), start=1):
        written = [
            _change(dense, compressed)
            for dense, compressed in zip(one["dense_gb"], one["compressed_gb"], strict=True)
        ]
        for look, (column, name) in enumerate(
            (("kept_share", "still stored"), ("saved_share", "saved"))
        ):
            figure.add_bar(
                x=one[column],
                y=list(range(len(one))),
                orientation="h",
                marker={"color": OKABE_ITO[look], "pattern": {"shape": ["", "/"][look]}},
                text=[f"  {text}" for text in written] if look else None,
                textposition="outside" if look else "none",
                textfont={"color": INK, "size": 12},
                cliponaxis=False,
                customdata=written,
                hovertemplate=f"{name}: %{{x:.2%}} of the model<br>%{{customdata}}<extra></extra>",
                name=name,
                legendgroup=name,
                showlegend=row == 1,
                row=row,
                col=1,
            )
        dense, compressed = one["dense_gb"].sum(), one["compressed_gb"].sum()
        share = f"{compressed / dense - 1:+.1%}".replace("-", "−")
        panel_title(
            figure, f"{plain(model)}: {_change(dense, compressed)} ({share})", row=row, col=1
        )
        _name_rows(figure, row, one["part"])
    widest = (parts["kept_share"] + parts["saved_share"]).max()
    figure.update_xaxes(range=[0, 1.02 * widest], tickformat=".0%")
    figure.update_xaxes(title_text=LABELS["dense_share"], row=len(models), col=1)
    figure.update_layout(barmode="stack", bargap=0.25)
    return finish(
        figure,
        title=title,
        caption=caption,
        plot_height=plot_height,
        panel_titles=True,
        right=140,
    )


def table6_figure(terms: pd.DataFrame, *, title: str = "", caption: str = "") -> go.Figure:
    """What Table 6 counts of each model and what it leaves out; bars add up to the weights.

    Args:
        terms: columns model, form, term, gb, as from `table6_terms`; a panel a model.
        title: the finding.
        caption: the line under the figure.

    Raises:
        InputError: columns or rows missing.
    """
    checked(terms, ("model", "form", "term", "gb"), "table6_figure")
    models = {m: terms[terms["model"] == m] for m in in_order(terms["model"])}
    forms = in_order(terms["form"])
    figure, plot_height = _panels([len(forms)] * len(models), shared=False)
    for row, (model, one) in enumerate(models.items(), start=1):
        for term, look in looks(in_order(terms["term"]), {_PRINTED: 0}).items():
            part = one[one["term"] == term]
            figure.add_bar(
                x=part["gb"],
                y=[forms.index(form) for form in part["form"]],
                orientation="h",
                marker={"color": OKABE_ITO[look]},
                text=[f"{gb:.2f}" for gb in part["gb"]],
                textposition="inside",
                insidetextanchor="middle",
                textangle=0,
                insidetextfont={"color": "white" if look == 0 else INK, "size": 12},
                customdata=[plain(form) for form in part["form"]],
                hovertemplate=plain(model)
                + " %{customdata}<br>"
                + plain(term)
                + ": %{x:.4f} GB<extra></extra>",
                name=plain(term),
                legendgroup=str(term),
                showlegend=row == 1,
                row=row,
                col=1,
            )
        for place, form in enumerate(forms):
            whole = one.loc[one["form"] == form, "gb"].sum()
            figure.add_annotation(
                x=whole,
                y=place,
                text=f"{whole:.2f} GB",
                xanchor="left",
                showarrow=False,
                row=row,
                col=1,
            )
        panel_title(figure, plain(model), row=row, col=1)
        _name_rows(figure, row, forms)
    figure.update_xaxes(title_text=LABELS["gb"], row=len(models), col=1)
    figure.update_layout(barmode="stack", bargap=0.2, uniformtext={"minsize": 11, "mode": "hide"})
    return finish(
        figure,
        title=title,
        caption=caption,
        plot_height=plot_height,
        panel_titles=True,
        right=24,
    )


def _change(before: float, after: float) -> str:
    """Two sizes in GB as words, in MB where they are small."""
    unit, scale = ("GB", 1) if before >= 0.1 else ("MB", 1000)
    sizes = [f"{size * scale:.3g}" for size in (before, after)]
    return " → ".join(dict.fromkeys(sizes)) + f" {unit}"


def _panels(sizes: list[int], *, shared: bool) -> tuple[go.Figure, int]:
    """A panel above the other for each number of bars, and the pixels of them all."""
    plot_height = _ROW * sum(sizes) + _BETWEEN * (len(sizes) - 1)
    figure = make_subplots(
        rows=len(sizes),
        cols=1,
        shared_xaxes=shared,
        row_heights=sizes,
        vertical_spacing=_BETWEEN / plot_height if len(sizes) > 1 else 0,
    )
    return figure, plot_height


def _name_rows(figure: go.Figure, row: int, names: "pd.Series | list[str]") -> None:
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=[plain(name, 40) for name in names],
        range=[len(names) - 0.5, -0.5],
        showgrid=False,
        row=row,
        col=1,
    )
