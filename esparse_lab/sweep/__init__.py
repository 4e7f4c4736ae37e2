"""Sweeps: models × recipes × calibrations × seeds × evaluations as independent cells.

A file says what (`read_sweep`), `run_sweep` measures what has no result yet, and tables say what
the cells mean together, with error bars.
"""

from esparse_lab.sweep.ablation import ablation_table, parts_table
from esparse_lab.sweep.cells import CellStore, load_cells, load_failures
from esparse_lab.sweep.plan import Sweep, read_sweep, without_pattern
from esparse_lab.sweep.recorded import kept_cells, recorded_cells, unmeasured
from esparse_lab.sweep.run import SweepOutcome, missing_jobs, run_sweep
from esparse_lab.sweep.summary import paired_bootstrap, paired_table, summary_table

__all__ = [
    "CellStore",
    "Sweep",
    "SweepOutcome",
    "ablation_table",
    "kept_cells",
    "load_cells",
    "load_failures",
    "missing_jobs",
    "paired_bootstrap",
    "paired_table",
    "parts_table",
    "read_sweep",
    "recorded_cells",
    "run_sweep",
    "summary_table",
    "unmeasured",
    "without_pattern",
]
