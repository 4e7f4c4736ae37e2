"""Products with N:M weights that are faster than dense ones, and their timing.

`time_gemm` measures one product; `sparsify` makes a pruned model run sparse. Everything here needs
a CUDA device but the shapes.
"""

from esparse_lab.gemm.shapes import PAPER_SHAPES, GemmShape, model_shapes

__all__ = ["PAPER_SHAPES", "GemmShape", "model_shapes"]
