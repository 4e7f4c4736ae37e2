"""Entropy-based N:M sparsity of language models: runnable, measurable, teachable.

Axis names in shapes: sequence, position, token (sequence x position), in (input channel of a linear
layer), out (output channel), group (of M neighbouring input channels).
"""

from esparse_lab.architectures import prunable_layers
from esparse_lab.capture import collect_layer_stats, layer_inputs
from esparse_lab.channel_stats import LayerStats
from esparse_lab.entropy import Histogram, channel_entropy
from esparse_lab.errors import EsparseError, InputError
from esparse_lab.masks import Pattern, check_nm, nm_mask
from esparse_lab.methods import METHODS, ESparse, Magnitude, Wanda
from esparse_lab.permutation import (
    SEARCHES,
    BlockShuffle,
    ChannelOrder,
    GlobalShuffle,
    retained_share,
    search_order,
    search_steps,
)
from esparse_lab.perplexity import Perplexity, perplexity
from esparse_lab.pruning import PrunedLayer, Recipe, prune_model

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
    "Wanda",
    "channel_entropy",
    "check_nm",
    "collect_layer_stats",
    "layer_inputs",
    "nm_mask",
    "perplexity",
    "prunable_layers",
    "prune_model",
    "retained_share",
    "search_order",
    "search_steps",
]
