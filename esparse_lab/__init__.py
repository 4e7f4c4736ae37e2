"""Entropy-based N:M sparsity of language models: runnable, measurable, teachable.

Axis names in shapes: sequence, position, token (sequence x position), in (input channel of a linear
layer), out (output channel), group (of M neighbouring input channels).
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "allocation": [
        "ALLOCATIONS",
        "Allocation",
        "HessianSensitivity",
        "OutlierShare",
        "Uniform",
    ],
    "architectures": ["find_layer", "prunable_layers"],
    "capture": ["collect_layer_stats", "layer_inputs"],
    "channel_stats": ["LayerStats", "Needs"],
    "checkpoints": ["PrunedModel", "check_storage", "load_pruned", "save_pruned"],
    "corpora": ["load_corpus", "token_windows"],
    "entropy": ["Histogram", "channel_entropy"],
    "errors": ["EsparseError", "InputError"],
    "folding": ["fold", "fold_orders"],
    "footprint": ["meta_model", "tensor_table"],
    "gemm.convert": ["SparseLayer", "sparsify"],
    "gemm.compressed_linear": ["CompressedLinear"],
    "gemm.linear": ["SparseLinear"],
    "gemm.nm_linear": ["nm_linear"],
    "gemm.readiness": ["overfull_share", "sparse_layers"],
    "gemm.shapes": ["PAPER_SHAPES", "GemmShape", "model_shapes"],
    "gemm.timing": ["GemmTiming", "gemm_table", "time_gemm"],
    "likelihood": ["Perplexity", "perplexity"],
    "masks": ["Pattern", "Unstructured", "nm_mask", "parse_sparsity"],
    "methods": [
        "ISC",
        "METHODS",
        "RIA",
        "DaSS",
        "ESparse",
        "Magnitude",
        "MaskDescent",
        "SparseGPT",
        "Wanda",
        "make_method",
    ],
    "models": ["load_model"],
    "permutation": [
        "SEARCHES",
        "BlockShuffle",
        "ChannelOrder",
        "GlobalShuffle",
        "ordered_mask",
        "retained_share",
        "search_order",
        "search_orders",
        "search_steps",
    ],
    "optimum": ["Recoverable", "optimal_order", "recoverable"],
    "planner": ["legal_order", "legality_table", "order_plans", "plan_table"],
    "pruning": ["PrunedLayer", "Recipe", "prune_model"],
    "reconstruction": ["Reconstruction"],
    "rivals": ["RIVALS", "RandomOrders", "SlotAssignment", "StripePairs"],
    "run_record": ["Run"],
    "streaming": ["prune_checkpoint"],
    "sensitivity": ["hessian_traces", "outlier_shares"],
    "storage": ["Compressed", "compress", "require_nm"],
    "tasks": ["paired_difference", "task_scores", "zero_shot"],
    "tuning": ["BlockTuning"],
}
"""Which module each public name lives in."""

_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: `esparse --help` need not wait for torch."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'esparse_lab' has no attribute {name!r}")
    value = getattr(import_module(f"esparse_lab.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
