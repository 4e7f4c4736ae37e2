"""Whether the kernels of `kernels.py` can run: that file needs Triton to be imported."""

from importlib.util import find_spec

from torch import Tensor


def runs_in_triton(weight: Tensor, block: int, group: int) -> bool:
    """Whether a block and its groups of columns fit the CUDA kernels."""
    powers = all(size & (size - 1) == 0 for size in (block, group))
    # Above 128 columns a tile of rows no longer fits the registers.
    fits = weight.is_cuda and powers and block <= 128
    return fits and find_spec("triton") is not None
