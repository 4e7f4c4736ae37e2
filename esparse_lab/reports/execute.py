"""Run one notebook with papermill in a fresh kernel of this Python, with progress shown."""

import logging
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, ClassVar

import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

REFRESH_SECONDS = 1.0
LOG_SECONDS = 30.0
LOG_BYTES = 4000  # of what a dead kernel wrote
CURSOR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # terminal codes; nested bars move the cursor


@dataclass(frozen=True)
class NotebookRun:
    """What came of running a notebook.

    Attributes:
        error: None when every cell ran, else the error in one line.
        traceback: the error at length, when no cell shows it (a dead kernel); else "".
        cell: index in the executed notebook of the cell that failed, or None.
        seconds: wall time, kernel start included.
    """

    error: str | None
    traceback: str
    cell: int | None
    seconds: float


class SamePythonKernel(AsyncKernelManager):
    """A kernel of the Python that runs this program, whatever kernels the user has installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """The command of the kernel; `log_level` 40 leaves out its start-up warnings."""
        return KernelSpec(
            argv=[
                *(sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"),
                "--IPKernelApp.log_level=40",
            ],
            display_name="Python 3 (esparse_lab)",
            language="python",
            metadata={"debugger": False},
        )

    process_output: ClassVar[IO[bytes] | None] = None
    """Where the process itself writes; what cells print takes another way."""

    async def start_kernel(self, **options):
        """Start the kernel; plotly figures stay data, which the page exporter draws offline."""
        options["env"] = {**os.environ, "PLOTLY_RENDERER": "plotly_mimetype"}
        return await super().start_kernel(
            **options, stdout=self.process_output, stderr=self.process_output
        )


def run_notebook(
    source: Path, executed: Path, parameters: Mapping[str, object], *, label: str
) -> NotebookRun:
    """Run `source` with the parameters and keep it, outputs included, as `executed`.

    Whether it failed is judged by the exception, because a notebook's own metadata calls a
    timed-out cell "completed".

    Args:
        source: the notebook.
        executed: where the executed notebook goes; it is kept after a failure too.
        parameters: complete and checked; papermill would pass over a wrong name.
        label: what the progress line calls the run.

    Returns:
        How it ended. KeyboardInterrupt passes through, after the kernel was shut down.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    # Its warnings are about parameters that its own reader could not parse; ours are checked.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    # papermill writes a tuple as a string, a list as a list.
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in parameters.items()}
    notebook = nbformat.read(source, as_version=4)
    started = time.perf_counter()
    error, details, cell = None, "", None
    with TemporaryFile() as log, Progress(label, notebook) as progress:
        kernel = type("Kernel", (SamePythonKernel,), {"process_output": log})
        try:
            papermill.execute_notebook(
                str(source),
                str(executed),
                parameters=values,
                progress_bar=False,
                store_widget_state=False,
                kernel_manager_class=kernel,
                on_cell_start=progress.start_cell,
                stderr_file=progress,
            )
        except PapermillExecutionError as failure:
            error = f"{failure.ename}: {failure.evalue}" if failure.evalue else failure.ename
            cell = failure.cell_index
        except Exception as failure:
            # A dead kernel and whatever else papermill meets: the other notebooks still run.
            error = f"{type(failure).__name__}: {failure}"
            log.seek(0)
            said = log.read()[-LOG_BYTES:].decode(errors="replace")
            details = "".join(traceback.format_exception(failure)) + said
        progress.failed = error is not None
    if not executed.exists():
        nbformat.write(notebook, executed)
    if error is None:
        cell = _first_cell_not_run(nbformat.read(executed, as_version=4))
        if cell is not None:
            error = "The run ended before this cell: one above called exit or quit."
    return NotebookRun(error, details, cell, round(time.perf_counter() - started, 3))


def _first_cell_not_run(notebook) -> int | None:
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None:
            return index
    return None


class Progress:
    """One line on the terminal: which notebook, which cell, seconds, the cell's own progress bar.

    On a terminal the line is rewritten each second; in a log there is one line every half minute.
    """

    def __init__(self, label: str, notebook):
        self.label = label
        self.failed = False
        code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
        self.n_cells = len(code) + 1  # papermill injects one
        self.cell = 0
        self.bar = ""
        self._live = sys.stderr.isatty()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._refresh, daemon=True)
        self._started = time.perf_counter()

    def __enter__(self) -> "Progress":
        if not self._live:
            self._print(f"{self.label} ...")
        self._thread.start()
        return self

    def __exit__(self, kind, *_) -> None:
        self._stop.set()
        self._thread.join()
        end = "stopped" if kind else "FAILED" if self.failed else "done"
        clear = "\r\x1b[K" if self._live else ""
        self._print(f"{clear}{self.label}  {end} in {self._seconds():.1f} s")

    def start_cell(self, **_) -> None:
        """Count a code cell; nbclient calls this before it runs."""
        self.cell = min(self.cell + 1, self.n_cells)
        self.bar = ""

    def write(self, text: str) -> None:
        """A piece of the cell's stderr: the latest state of a progress bar is its last line."""
        lines = [line.strip() for line in CURSOR.sub("", text).splitlines()]
        self.bar = next((line for line in reversed(lines) if line), self.bar)

    def flush(self) -> None:
        """Nothing is held back."""

    def _refresh(self) -> None:
        while not self._stop.wait(REFRESH_SECONDS if self._live else LOG_SECONDS):
            line = f"{self.label}  cell {self.cell} of {self.n_cells}, {self._seconds():.0f} s"
            line += f"  {self.bar}" if self.bar else ""
            if self._live:
                width = os.get_terminal_size(sys.stderr.fileno()).columns - 1
                sys.stderr.write(f"\r\x1b[K{line[:width]}")
                sys.stderr.flush()
            else:
                self._print(line)

    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    @staticmethod
    def _print(line: str) -> None:
        print(line, file=sys.stderr, flush=True)
