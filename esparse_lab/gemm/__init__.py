"""Products with N:M weights that are faster than dense ones, and their timing.

`time_gemm` measures one product; `sparsify` makes a pruned model run sparse. Everything here needs
a CUDA device but the shapes. Nothing is imported here: the process that times algorithms must start
quickly, and a model's shapes need transformers.
"""
