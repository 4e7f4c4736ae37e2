"""Tidy table in, plotly figure out: nothing is measured here, only laid out.

Every function takes a DataFrame (`score_picture`: arrays), a `title` that states the finding and a
`caption`, and returns a `plotly.graph_objects.Figure` with the template "esparse".
"""

from esparse_lab.figures.audit import averages_figure, size_perplexity_figure
from esparse_lab.figures.channels import (
    activation_histogram_figure,
    binning_figure,
    channel_figure,
    entropy_norm_figure,
    rank_change_figure,
)
from esparse_lab.figures.cost import cost_figure, pareto_front
from esparse_lab.figures.gemm import atlas_figure, gemm_figure, roofline_figure
from esparse_lab.figures.memory import footprint_figure, table6_figure
from esparse_lab.figures.permutation import retained_figure, score_picture, search_trace_figure
from esparse_lab.figures.perplexity import methods_figure, perplexity_figure
from esparse_lab.figures.plan import plan_map
from esparse_lab.figures.search_race import proxy_figure, race_figure
from esparse_lab.figures.speedup import speedup_figure
from esparse_lab.figures.style import LABELS, OKABE_ITO
from esparse_lab.figures.sweep import ratios_figure, seeds_figure
from esparse_lab.figures.tasks import paired_figure
from esparse_lab.figures.teaching import MatrixPanel, matrix_picture

__all__ = [
    "LABELS",
    "OKABE_ITO",
    "MatrixPanel",
    "activation_histogram_figure",
    "atlas_figure",
    "averages_figure",
    "binning_figure",
    "channel_figure",
    "cost_figure",
    "entropy_norm_figure",
    "footprint_figure",
    "gemm_figure",
    "matrix_picture",
    "methods_figure",
    "paired_figure",
    "pareto_front",
    "perplexity_figure",
    "plan_map",
    "proxy_figure",
    "race_figure",
    "rank_change_figure",
    "ratios_figure",
    "retained_figure",
    "roofline_figure",
    "score_picture",
    "search_trace_figure",
    "seeds_figure",
    "size_perplexity_figure",
    "speedup_figure",
    "table6_figure",
]
