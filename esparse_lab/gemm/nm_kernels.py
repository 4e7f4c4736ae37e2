"""The kernel of `nm_linear.cu` in the variants that are asked for, compiled when first used.

The one file that knows `cuda.core`, which compiles with NVRTC and launches; imported where needed.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from esparse_lab.downloads import cache_dir
from esparse_lab.errors import EsparseError

_SOURCE = Path(__file__).with_name("nm_linear.cu")
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
    """The compiled kernel (`cuda.core.Kernel`), ready for so much shared memory.

    Compiled programs are kept in the cache folder.
    """
    from cuda.bindings import driver
    from cuda.core import Program, ProgramOptions
    from cuda.core.utils import FileStreamProgramCache

    major, minor = torch.cuda.get_device_capability(device)
    shared = stages * variant.stage_bytes
    constants = {
        **{name.upper(): int(value) for name, value in vars(variant).items()},
        "STAGES": stages,
        "SHARED_BYTES": shared,
    }
    options = ProgramOptions(
        name="nm_linear",
        arch=f"sm_{major}{minor}",
        std="c++17",
        define_macro=[(name, str(value)) for name, value in constants.items()],
    )
    compiled = Program(_SOURCE.read_text(), "c++", options).compile(
        "cubin", cache=FileStreamProgramCache(cache_dir() / "kernels")
    )
    found = compiled.get_kernel("nm_linear_kernel")
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    (status,) = driver.cuKernelSetAttribute(attribute, shared, found.handle, device)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise EsparseError(f"The kernel gets no {shared} bytes of shared memory: {status.name}.")
    return found


@cache
def grid(blocks: int, splits: int, shared: int):
    """How to launch so many blocks of rows, each split so many times (`cuda.core.LaunchConfig`)."""
    from cuda.core import LaunchConfig

    return LaunchConfig(grid=(blocks, splits), block=THREADS, shmem_size=shared)


@cache
def stream(handle: int):
    """PyTorch's stream as one of `cuda.core`."""
    from cuda.core import LEGACY_DEFAULT_STREAM, Stream

    return Stream.from_handle(handle) if handle else LEGACY_DEFAULT_STREAM
