"""Entropy-based N:M sparsity of language models: runnable, measurable, teachable.

Axis names in shapes: sequence, position, token (sequence x position), in (input channel of a linear
layer), out (output channel), group (of M neighbouring input channels).
"""

from esparse_lab.architectures import find_layer, prunable_layers
from esparse_lab.capture import collect_layer_stats, layer_inputs
from esparse_lab.channel_stats import LayerStats
from esparse_lab.corpora import load_corpus, token_windows
from esparse_lab.entropy import Histogram, channel_entropy
from esparse_lab.errors import EsparseError, InputError
from esparse_lab.masks import Pattern, check_nm, nm_mask
from esparse_lab.methods import METHODS, ESparse, Magnitude, Wanda, make_method
from esparse_lab.models import load_model
from esparse_lab.permutation import (
    SEARCHES,
    BlockShuffle,
    ChannelOrder,
    GlobalShuffle,
    ordered_mask,
    retained_share,
    search_order,
    search_steps,
)
from esparse_lab.perplexity import Perplexity, perplexity
from esparse_lab.pruning import PrunedLayer, Recipe, prune_model
from esparse_lab.run_record import Run

__all__ = [
    "METHODS",
    "SEARCHES",
    "BlockShuffle",
    "ChannelOrder",
    "ESparse",
    "EsparseError",
    "GlobalShuffle",
    "Histogram",
    "InputError",
    "LayerStats",
    "Magnitude",
    "Pattern",
    "Perplexity",
    "PrunedLayer",
    "Recipe",
    "Run",
    "Wanda",
    "channel_entropy",
    "check_nm",
    "collect_layer_stats",
    "find_layer",
    "layer_inputs",
    "load_corpus",
    "load_model",
    "make_method",
    "nm_mask",
    "ordered_mask",
    "perplexity",
    "prunable_layers",
    "prune_model",
    "retained_share",
    "search_order",
    "search_steps",
    "token_windows",
]
