"""Device time of short calls: in a CUDA graph, over cold inputs, as a median with spread."""

import gc
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Call = Callable[[], object]
COLD_BYTES = 3 * 50 * 2**20
"""Rotating over so many bytes leaves nothing of a call's inputs in a cache of 50 MB."""
MOST_COPIES = 48


@dataclass(frozen=True)
class Milliseconds:
    """Device time of one call: the median over replays, and the least and largest of them."""

    median: float
    least: float
    most: float


def copies_for_cold(n_bytes: int) -> int:
    """How many copies of an input of this size to rotate over, so that the cache holds none."""
    return max(1, min(MOST_COPIES, -(-COLD_BYTES // max(n_bytes, 1))))


def device_ms(calls: Sequence[Call], *, least_ms: float = 10.0, replays: int = 9) -> Milliseconds:
    """Time of one call on the current CUDA device.

    The calls are captured in one graph, in turn until they fill `least_ms`, so that the CPU's part
    of a call does not count; the graph is replayed `replays` times between events.

    Args:
        calls: do the same work on different copies of the inputs; see `copies_for_cold`.
        least_ms: length of one replay.
        replays: how many are timed, after one that is not.
    """
    return alternating_ms(calls, least_ms=least_ms, replays=replays)[0]


def alternating_ms(
    *forms: Sequence[Call], least_ms: float = 10.0, replays: int = 9
) -> list[Milliseconds]:
    """`device_ms` of each form, replayed in turn: a card that grows warm slows all alike."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graphs, times = [], [[] for _ in forms]
    with torch.cuda.stream(stream):
        for calls in forms:
            for call in calls:  # compiles, plans, fills workspaces: nothing of it may be captured
                call()
            once = _elapsed(stream, calls[0])
            rounds = max(1, min(2000, round(least_ms / max(once, 1e-3))) // len(calls))
            graph = _captured([call for _ in range(rounds) for call in calls])
            graph.replay()
            graphs.append((graph, rounds * len(calls)))
        for _ in range(replays):
            for (graph, n_calls), of_form in zip(graphs, times, strict=True):
                of_form.append(_elapsed(stream, graph.replay) / n_calls)
    torch.cuda.current_stream().wait_stream(stream)
    return [Milliseconds(statistics.median(one), min(one), max(one)) for one in times]


def _captured(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    """The calls as one graph. `torch.cuda.graph` would collect garbage first, for 0.2 s each."""
    graph, collects = torch.cuda.CUDAGraph(), gc.isenabled()
    gc.disable()  # what it frees may call the device, which ends a capture
    graph.capture_begin()
    try:
        for call in calls:
            call()
    finally:
        graph.capture_end()
        if collects:
            gc.enable()
    return graph


def _elapsed(stream: torch.cuda.Stream, call: Call) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record(stream)
    call()
    end.record(stream)
    stream.synchronize()
    return start.elapsed_time(end)


def kernel_names(call: Call) -> list[str]:
    """Names of the device kernels that one call runs, longest first, as the profiler saw them."""
    call()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        call()
        torch.cuda.synchronize()
    seen = [event for event in profile.events() if event.device_type.name == "CUDA"]
    seen.sort(key=lambda event: -event.device_time)
    return list(dict.fromkeys(event.name for event in seen))
