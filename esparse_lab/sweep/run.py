"""Running a sweep: what is missing is measured, each cell on disk as soon as it is there."""

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm.std import tqdm

from esparse_lab.footprint import meta_model
from esparse_lab.models import dtype_of
from esparse_lab.sweep.cells import CellStore
from esparse_lab.sweep.execution import call_each
from esparse_lab.sweep.measure import failure, measure
from esparse_lab.sweep.plan import Job, Sweep


@dataclass(frozen=True)
class SweepOutcome:
    """What became of a sweep's cells; counts.

    Attributes:
        found: were there before.
        measured: are new.
        failed: have no result; `load_failures` says why.
    """

    found: int
    measured: int
    failed: int


def missing_jobs(sweep: Sweep, folder: str | Path) -> list[Job]:
    """The jobs that are left to do, each with the cells that have no result yet."""
    store = CellStore(folder)
    left = [
        replace(job, cells=tuple(cell for cell in job.cells if not store.has(cell)))
        for job in sweep.jobs
    ]
    return [job for job in left if job.cells]


def run_sweep(
    sweep: Sweep,
    folder: str | Path,
    *,
    workers: int | None = None,
    cluster: str | None = None,
    progress: bool = True,
) -> SweepOutcome:
    """Measure every cell of a sweep that has no result in `folder`.

    A cell that fails keeps its error in `folder` and is tried again by the next run.

    Args:
        sweep: as from `read_sweep`.
        folder: takes the results; see `load_cells`.
        workers: as in `call_each`.
        cluster: likewise.
        progress: show a bar, one step a cell, with the time left.

    Raises:
        EsparseError: a result cannot be written, or there is no Dask to run on.
    """
    store, jobs = CellStore(folder), missing_jobs(sweep, folder)
    wanted, left = len(sweep.cells), sum(len(job.cells) for job in jobs)
    failed = 0
    if not jobs:
        return SweepOutcome(wanted, 0, 0)
    memory = max(map(memory_gib, {job.model: job for job in jobs}.values()))
    where = {"workers": workers, "cluster": cluster, "device": jobs[0].device}
    outcomes = call_each(measure, jobs, **where, memory_gib=memory)
    bar = tqdm(
        total=wanted, initial=wanted - left, desc=sweep.name, unit="cell", disable=not progress
    )
    with closing(outcomes), bar:
        for place, outcome in outcomes:
            job = jobs[place]
            if isinstance(outcome, Exception):
                outcome = [failure(outcome)] * len(job.cells)
            for cell, facts in zip(job.cells, outcome, strict=True):
                store.keep(cell, job.label, facts)
                failed += "error" in facts
            bar.set_postfix_str(f"{failed} failed, " * bool(failed) + job.label)
            bar.update(len(job.cells))
    return SweepOutcome(wanted - left, left - failed, failed)


def memory_gib(job: Job) -> float:
    """What a process needs for a job, roughly: libraries and batches, and the weights thrice.

    Loading holds them twice for a moment; while pruned, the prunable ones lie there as a copy, and
    Gram matrices and scores beside them.
    """
    weights = sum(tensor.numel() for tensor in meta_model(job.model.model).parameters())
    return 1.5 + 3 * weights * dtype_of(job.model.dtype).itemsize / 2**30
