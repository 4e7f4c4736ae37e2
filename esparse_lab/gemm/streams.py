"""PyTorch's current stream for libraries that are handed its address."""

import torch


def current_stream(device: int) -> int:
    """Address of the current stream of a CUDA device.

    `torch.cuda.current_stream(device).cuda_stream` makes an object on its way, which takes 10 µs of
    a call that takes 30.
    """
    return torch._C._cuda_getCurrentRawStream(device)
