"""The package's CUDA sources, compiled with NVRTC when first used, and how they are started.

The one file that knows `cuda.core`, which is imported where needed.
"""

import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch

from esparse_lab.downloads import cache_dir
from esparse_lab.errors import EsparseError


def unavailable(device: torch.device | None = None) -> str:
    """Why no kernel of ours can run here, with what to do about it; empty when one can."""
    if not torch.cuda.is_available():
        return "no CUDA device is present"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.core") is None:
        return "cuda.core is not installed: pip install 'esparse_lab[gemm]'"
    return ""


@cache
def runs_on(device: torch.device) -> bool:
    """Whether nothing is `unavailable`, asked once a device: for calls that must cost little."""
    return not unavailable(device)


def compiled(
    source: Path, name: str, constants: Mapping[str, float], device: int, *, shared_bytes: int = 0
):
    """A kernel (`cuda.core.Kernel`) of a source with these constants; callers keep it.

    Compiled programs are kept in the cache folder too.

    Args:
        source: a .cu file.
        name: of an `extern "C"` kernel in it.
        constants: macros that it is compiled with.
        device: number of the CUDA device.
        shared_bytes: the most shared memory that a block of it is given when it is started.

    Raises:
        EsparseError: the device does not give that much shared memory.
    """
    from cuda.bindings import driver
    from cuda.core import Program, ProgramOptions
    from cuda.core.utils import FileStreamProgramCache

    major, minor = torch.cuda.get_device_capability(device)
    options = ProgramOptions(
        name=source.stem,
        arch=f"sm_{major}{minor}",
        std="c++17",
        define_macro=[(macro, str(value)) for macro, value in constants.items()],
    )
    program = Program(source.read_text(), "c++", options).compile(
        "cubin", cache=FileStreamProgramCache(cache_dir() / "kernels")
    )
    kernel = program.get_kernel(name)
    if shared_bytes:
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        (status,) = driver.cuKernelSetAttribute(attribute, shared_bytes, kernel.handle, device)
        if status != driver.CUresult.CUDA_SUCCESS:
            raise EsparseError(
                f"{name} gets no {shared_bytes} bytes of shared memory: {status.name}."
            )
    return kernel


@cache
def launch_config(
    grid: tuple[int, ...], threads: int, shared_bytes: int = 0, *, cooperative: bool = False
):
    """How many blocks to start, of how many threads (`cuda.core.LaunchConfig`).

    Blocks that are cooperative all run at the same time, and so may wait for each other.
    """
    from cuda.core import LaunchConfig

    return LaunchConfig(
        grid=grid, block=threads, shmem_size=shared_bytes, is_cooperative=cooperative
    )


def start(device: int, config, kernel, *arguments: int) -> None:
    """Start a kernel on PyTorch's current stream of a device."""
    from cuda.core import launch

    launch(_stream(current_stream(device)), config, kernel, *arguments)


def current_stream(device: int) -> int:
    """Address of PyTorch's current stream of a device.

    `torch.cuda.current_stream(device).cuda_stream` makes an object on its way, which takes 10 µs of
    a call that takes 30.
    """
    return torch._C._cuda_getCurrentRawStream(device)


@cache
def _stream(handle: int):
    """PyTorch's stream as one of `cuda.core`."""
    from cuda.core import LEGACY_DEFAULT_STREAM, Stream

    return Stream.from_handle(handle) if handle else LEGACY_DEFAULT_STREAM
