"""Many independent calls of one function: on this machine's cores or GPUs, or on a cluster."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from esparse_lab.errors import EsparseError, InputError

if TYPE_CHECKING:
    from distributed import Client

DEATHS = 2
"""Workers that may die under a call among others, and then as many when it runs alone."""


class DeadWorker(EsparseError):
    """A call that no process survived."""


Outcome = tuple[int, object]  # the call's place, and its result or the exception that ended it


def call_each(
    function: Callable,
    arguments: Sequence,
    *,
    workers: int | None = None,
    cluster: str | None = None,
    device: str = "cpu",
    memory_gib: float = 0,
) -> Iterator[Outcome]:
    """Call `function` with each argument; give every outcome once, as soon as it is there.

    A call whose worker dies is made again on another. One that was waiting or running on `DEATHS`
    workers that died need not be to blame, so it is set aside and made alone at the end.

    Args:
        function: importable on every worker.
        arguments: each picklable.
        workers: processes on this machine; 0 makes the calls in this process, without Dask; None
            makes one a GPU, or without GPUs as many as cores and memory allow.
        cluster: address of a Dask scheduler to use in place of this machine's processes.
        device: "cuda" gives every process on this machine a GPU.
        memory_gib: what a process needs.

    Raises:
        EsparseError: Dask is missing, or no scheduler answers at `cluster`, or it goes away.
        InputError: both `workers` and `cluster` are given, or `workers` is below 0.
    """
    if workers is not None and (workers < 0 or cluster is not None):
        raise InputError(
            f"workers={workers}: expected at least 0, and none with a cluster, which has its own."
        )
    if workers == 0:
        yield from _in_this_process(function, arguments)
        return
    with _client(cluster, (workers, len(arguments), device, memory_gib)) as client:
        killed = []
        for place, outcome in _submitted(client, function, dict(enumerate(arguments))):
            if _is_killed(outcome):
                killed.append(place)
            else:
                yield place, outcome
        for place in killed:
            for _, outcome in _submitted(client, function, {place: arguments[place]}):
                yield place, _dead_worker() if _is_killed(outcome) else outcome


def _in_this_process(function: Callable, arguments: Sequence) -> Iterator[Outcome]:
    for place, argument in enumerate(arguments):
        try:
            outcome = function(argument)
        except Exception as error:
            outcome = error
        yield place, outcome


def _submitted(client: "Client", function: Callable, calls: dict[int, object]) -> Iterator[Outcome]:
    from distributed import as_completed

    futures = client.map(function, list(calls.values()), pure=False)
    left = dict(
        zip((future.key for future in futures), zip(calls, futures, strict=True), strict=True)
    )
    try:
        for future in as_completed(futures):
            try:
                outcome = future.result()
            except CancelledError as error:
                left.clear()  # nobody is there to be told
                raise EsparseError(
                    "The Dask scheduler went away. What was done is kept: start it again, and this."
                ) from error
            except Exception as error:
                outcome = error
            place, _ = left.pop(future.key)
            yield place, outcome
    finally:  # what is left was stopped
        if left:
            client.cancel([future for _, future in left.values()])


def _dead_worker() -> DeadWorker:
    return DeadWorker(
        f"The process died {2 * DEATHS} times under this, at last with nothing beside it: it was "
        "killed, for want of memory perhaps, or a library crashed. Take a smaller dtype, fewer or "
        "shorter sequences, or a machine with more memory."
    )


def _is_killed(outcome: object) -> bool:
    from distributed import KilledWorker

    return isinstance(outcome, KilledWorker)


@contextmanager
def _client(cluster: str | None, here: tuple) -> Iterator["Client"]:
    try:
        import distributed
    except ImportError as error:
        raise EsparseError(
            "A sweep on several processes needs Dask: run `pip install 'esparse_lab[sweep]'`, or "
            "sweep in this process alone with --workers 0."
        ) from error
    if cluster is not None:
        logging.getLogger("distributed.client").setLevel(_QUIET)
        try:
            client = distributed.Client(cluster, timeout=10)
        except (OSError, TimeoutError, ValueError) as error:
            raise EsparseError(
                f"No Dask scheduler answers at {cluster} ({error}). Start one with `dask "
                "scheduler` and give the address it prints, such as tcp://10.0.0.1:8786."
            ) from error
        with client:
            yield client
        return
    with _local_cluster(*here) as local, distributed.Client(local) as client:
        yield client
        with suppress(TimeoutError):  # a worker that is just being started again cannot be closed
            client.wait_for_workers(len(local.worker_spec), timeout=30)


@contextmanager
def _local_cluster(workers: int | None, most: int, device: str, memory_gib: float):
    """One process a GPU, else processes that share the cores; each dies and returns by itself."""
    import dask
    from distributed import Nanny, Scheduler, SpecCluster

    gpus = visible_gpus() if device == "cuda" else []
    count = min(workers or len(gpus) or processes_that_fit(memory_gib), most)
    threads = max(1, cores() // count)
    each = {"MKL_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    own_gpu = [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {} for i in range(count)]
    own = {"host": "127.0.0.1", "dashboard": False}
    # memory_limit=None: Dask counts its own objects; it would pause a worker for a model's weights.
    options = own | {"nthreads": 1, "memory_limit": None, "silence_logs": _QUIET}
    spec = {
        i: {"cls": Nanny, "options": options | {"env": each | own_gpu[i]}} for i in range(count)
    }
    # Without its address Dask takes port 8787 of every network, also where it shows no dashboard.
    ports = {"port": 0, "dashboard_address": "127.0.0.1:0"}
    scheduler = {"cls": Scheduler, "options": own | ports}
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": DEATHS - 1}),
        SpecCluster(workers=spec, scheduler=scheduler, silence_logs=_QUIET) as cluster,
    ):
        yield cluster


_QUIET = logging.CRITICAL  # deaths of workers are told by what became of their calls


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """The CUDA devices that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return (named.split(",") if named else [str(i) for i in range(count)])[:count]


def processes_that_fit(memory_gib: float) -> int:
    """How many processes of that size cores and free memory have room for; at least one."""
    import psutil
    from distributed.system import MEMORY_LIMIT

    free = min(psutil.virtual_memory().available, MEMORY_LIMIT) / 2**30
    return max(1, min(cores(), int(free / memory_gib) if memory_gib else cores()))
