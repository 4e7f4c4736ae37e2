"""The two ways to multiply a sparse weight, and whether they can run here."""

from typing import Literal

import torch

from esparse_lab import device_code
from esparse_lab.gemm import cusparselt

Kernel = Literal["cusparselt", "compressed"]
"""Sparse tensor cores, which skip the zeros of 2:4; or a kernel that reads any N:M weight
compressed and multiplies it densely, for few tokens."""


def unavailable(kernel: Kernel = "cusparselt", device: torch.device | None = None) -> str:
    """Why a kernel cannot run here, with what to do about it; empty when it can."""
    if kernel == "compressed":
        return device_code.unavailable(device)
    return cusparselt.unavailable(device)
