"""The kernels of `nm_linear.cu` and `nm_decompress.cu`, compiled when first used."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from esparse_lab.device_code import compiled

_HERE = Path(__file__).parent
_STATIC_BYTES = 256
_RESERVED_BYTES = 1024
"""Shared memory of a block beside its stages: declared by the kernel, and kept by the system."""
_MOST_STAGES = 6
THREADS = 256


@dataclass(frozen=True)
class Variant:
    """Constants of the kernel, as the head of `nm_linear.cu` explains them in capitals."""

    bf16: bool
    kept: int
    within_four: bool
    tiles: int
    rows: int
    row_bytes: int
    aligned: int

    @property
    def words(self) -> int:
        """Groups of eight columns in a stage."""
        return self.row_bytes // (2 * self.kept)

    @property
    def stage_bytes(self) -> int:
        """Shared memory that a stage takes; the kernel lays out the same."""
        bits = self.words + 16 * (self.words > 16)
        return self.rows * (self.row_bytes + bits) + 8 * self.tiles * self.words * 16

    def stages(self, device: int, blocks: int) -> int:
        """How many stages fit where so many blocks share a multiprocessor; under 2 it cannot."""
        has = torch.cuda.get_device_properties(device)
        room = min(
            has.shared_memory_per_multiprocessor // blocks - _RESERVED_BYTES,
            has.shared_memory_per_block_optin,
        )
        return min(_MOST_STAGES, (room - _STATIC_BYTES) // self.stage_bytes)


@cache
def kernel(variant: Variant, stages: int, device: int):
    """The compiled kernel, ready for so many stages in shared memory."""
    shared = stages * variant.stage_bytes
    constants = {
        **{name.upper(): int(value) for name, value in vars(variant).items()},
        "STAGES": stages,
        "SHARED_BYTES": shared,
    }
    return compiled(
        _HERE / "nm_linear.cu", "nm_linear_kernel", constants, device, shared_bytes=shared
    )


@cache
def decompressing(kept: int, device: int):
    """The kernel that writes a weight in full."""
    return compiled(_HERE / "nm_decompress.cu", "nm_decompress_kernel", {"KEPT": kept}, device)
