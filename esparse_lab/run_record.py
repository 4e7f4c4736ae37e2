"""What a run was measured on: model, data, seed, versions, device, time and memory.

Every notebook makes one `Run`, saves its tables through it and ends with `Run.finish`, whose
`RunRecord` shows itself on the page and is kept as JSON beside the tables.
"""

import io
import json
import math
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from html import escape
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import esparse_lab
from esparse_lab.atomic import cannot_write, write_atomically
from esparse_lab.errors import InputError
from esparse_lab.result_cache import core_hash

if TYPE_CHECKING:  # not loaded at run time, so that the command line starts at once
    import pandas as pd
    import torch

PACKAGES = ("torch", "transformers", "numpy", "pandas", "plotly", "papermill")
"""The packages whose versions a record names, beside Python's own and ours."""


@dataclass(frozen=True)
class RunRecord:
    """One finished run; shows itself as a table in a notebook.

    Attributes:
        name: the run's name, that of its notebook.
        started: start in UTC, ISO 8601.
        seconds: wall time from `Run(...)` to `finish`.
        model: `name`, `revision` and `dtype`, or None when no model took part.
        tokens: per use ("calibration", "test"): `shape` [sequence, position] and `sha256`.
        corpora: per use: `name`, `split`, `documents` (a count), `sha256`, `source`, `licence`.
        seed: the seed given, or None.
        device: what the model ran on, in words.
        peak_memory_mib: highest resident memory of the process ("process") and, with CUDA, of
            torch's allocator on the current device ("cuda"), in MiB.
        versions: package -> version, None for one that is not installed.
        source_sha256: hash of the package's core source, which tells the code also outside a
            checkout.
        git: `commit` and `dirty` of the checkout, or None outside one.
        headline: the numbers that stand for the run in the index of reports.
        facts: whatever else the run wants kept.
        tables: names of the tables saved.
    """

    name: str
    started: str
    seconds: float
    model: dict | None
    tokens: dict
    corpora: dict
    seed: int | None
    device: str
    peak_memory_mib: dict
    versions: dict
    source_sha256: str
    git: dict | None
    headline: dict
    facts: dict
    tables: list

    def to_json(self) -> str:
        """The record as JSON, readable by any strict parser."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th scope='row' style='text-align:left'>{escape(label)}</th>"
            f"<td style='text-align:left'>{escape(text)}</td></tr>"
            for label, text in self._rows()
        )
        return (
            "<table class='run-record'><caption style='text-align:left'>"
            f"Run record of {escape(self.name)}</caption><tbody>{rows}</tbody></table>"
        )

    def __repr__(self) -> str:
        return "\n".join(f"{label}: {text}" for label, text in self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        rows = []
        if self.model:
            rows.append(("model", f"{self.model['name']} ({self.model['dtype']})"))
            rows.append(("revision", str(self.model["revision"])))
        for use, corpus in self.corpora.items():
            text = f"{corpus['name']}, {corpus['split']} split, {corpus['documents']} documents"
            rows.append((f"{use} text", f"{text}, sha256 {corpus['sha256'][:12]}"))
        for use, tokens in self.tokens.items():
            shape = " × ".join(str(size) for size in tokens["shape"])
            rows.append((f"{use} tokens", f"{shape}, sha256 {tokens['sha256'][:12]}"))
        if self.seed is not None:
            rows.append(("seed", str(self.seed)))
        rows += [(name, _shown(value)) for name, value in self.headline.items()]
        rows += [(name, _shown(value)) for name, value in self.facts.items()]
        memory = ", ".join(f"{size:,.0f} MiB ({of})" for of, size in self.peak_memory_mib.items())
        rows += [
            ("device", self.device),
            ("started", self.started),
            ("time", f"{self.seconds:.1f} s"),
            ("peak memory", memory),
            ("versions", ", ".join(f"{name} {found}" for name, found in self.versions.items())),
        ]
        rows.append(("core source", f"sha256 {self.source_sha256[:12]}"))
        if self.git:
            changes = " + local changes" if self.git["dirty"] else ""
            rows.append(("git commit", f"{self.git['commit']}{changes}"))
        return rows


class Run:
    """The running clock of one notebook, and the place where its results go.

    Args:
        name: lower-case letters, digits and `_`; the notebook's name.
        out_dir: where `tables/` and `records/` are made.

    Raises:
        InputError: the name has other characters.
        EsparseError: `out_dir` cannot be made or written.
    """

    def __init__(self, name: str, out_dir: str | os.PathLike[str]):
        self.name = _checked_name("run", name)
        self.out_dir = Path(out_dir)
        self.tables: list[str] = []
        for folder in (self.out_dir / "tables", self.out_dir / "records"):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise cannot_write(folder, error) from error
        import torch

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self._clock = time.perf_counter()

    def save_table(self, name: str, frame: "pd.DataFrame") -> None:
        """Keep a tidy table as `tables/<run>.<name>.csv` and `.parquet`.

        Args:
            name: lower-case letters, digits and `_`.
            frame: columns named by unique strings; an index with a name is kept as a column.

        Raises:
            InputError: the name or the columns cannot be saved.
            EsparseError: the files cannot be written.
        """
        stem = f"{self.name}.{_checked_name('table', name)}"
        named = [level for level in frame.index.names if level is not None]
        frame = frame.reset_index(named) if named else frame
        columns = list(frame.columns)
        if not all(isinstance(column, str) for column in columns) or len({*columns}) < len(columns):
            raise InputError(
                f"The columns of table {name!r} are {columns}; "
                "each must be a string that occurs once. Rename them."
            )
        parquet = io.BytesIO()
        frame.to_parquet(parquet, index=False)
        folder = self.out_dir / "tables"
        write_atomically(folder / f"{stem}.csv", frame.to_csv(index=False, lineterminator="\n"))
        write_atomically(folder / f"{stem}.parquet", parquet.getvalue())
        if stem not in self.tables:
            self.tables.append(stem)

    def finish(
        self,
        *,
        model: object = None,
        tokens: "Mapping[str, torch.Tensor] | None" = None,
        corpora: Mapping[str, object] | None = None,
        seed: int | None = None,
        device: str | None = None,
        headline: Mapping[str, object] | None = None,
        **facts: object,
    ) -> RunRecord:
        """Stop the clock, write `records/<run>.json` and return the record.

        Args:
            model: a `LoadedModel`.
            tokens: token windows by use, each int64 [sequence, position].
            corpora: a `Corpus` by use.
            seed: the seed that drew the windows.
            device: what was measured on, in words; the model's when None.
            headline: label -> number, for the index of reports.
            **facts: anything else worth keeping; what JSON does not know is kept as its `repr`.

        Raises:
            EsparseError: the record cannot be written.
        """
        from esparse_lab.corpora import tokens_sha256

        record = RunRecord(
            name=self.name,
            started=self.started,
            seconds=round(time.perf_counter() - self._clock, 3),
            model=_model_facts(model),
            tokens={
                use: {"shape": list(windows.shape), "sha256": tokens_sha256(windows)}
                for use, windows in (tokens or {}).items()
            },
            corpora={use: _corpus_facts(corpus) for use, corpus in (corpora or {}).items()},
            seed=seed,
            device=device or _device_name(model),
            peak_memory_mib=_peak_memory_mib(),
            versions=versions(),
            source_sha256=core_hash(),
            git=git_state(),
            headline=_plain(headline or {}),
            facts=_plain(facts),
            tables=list(self.tables),
        )
        write_atomically(self.out_dir / "records" / f"{self.name}.json", record.to_json())
        return record


def versions() -> dict[str, str | None]:
    """The versions of Python and of `PACKAGES`; None for a package that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found | {"esparse_lab": esparse_lab.__version__}


def git_state(package: Path = Path(__file__).parent) -> dict[str, object] | None:
    """`commit` and `dirty` of the checkout that holds the package; None outside a checkout.

    A package installed into an environment inside somebody's own repository is not a checkout of
    esparse_lab, so the repository's top folder must be the package's parent.
    """

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(package.parent), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    top = git("rev-parse", "--show-toplevel")
    commit = git("rev-parse", "HEAD")
    if not top or not commit or Path(top).resolve() != package.parent.resolve():
        return None
    return {"commit": commit, "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}


def _checked_name(kind: str, name: str) -> str:
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise InputError(
            f"The {kind} name {name!r} is not usable as a file name; "
            "use lower-case letters, digits and '_', as in '01_channel_statistics'."
        )
    return name


def _model_facts(model) -> dict | None:
    if model is None:
        return None
    dtype = str(next(model.model.parameters()).dtype).removeprefix("torch.")
    return {"name": model.name, "revision": model.revision, "dtype": dtype}


def _corpus_facts(corpus) -> dict:
    facts = {key: getattr(corpus, key) for key in ("name", "split", "sha256", "source", "licence")}
    return facts | {"documents": len(corpus.documents)}


def _device_name(model) -> str:
    import torch

    cuda = torch.cuda.is_available()
    device = next(model.model.parameters()).device if model else torch.device("cpu")
    if device.type == "cuda" and cuda:
        return torch.cuda.get_device_name(device)
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")  # Linux alone; elsewhere the architecture has to do
    if cpuinfo.exists():
        name = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        processor = name[1] if name else processor
    return f"CPU: {processor}, {torch.get_num_threads()} threads"


def _peak_memory_mib() -> dict[str, float]:
    import torch

    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux (getrusage(2))
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20}
    if torch.cuda.is_available():
        peak["cuda"] = torch.cuda.max_memory_allocated() / 2**20
    return {of: round(size, 1) for of, size in peak.items()}


def _plain(value: object) -> object:
    """The value in JSON's own types; non-finite numbers as text, unknown objects as `repr`."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if not isinstance(value, bool | int | float | str) and hasattr(value, "item"):
        value = value.item() if getattr(value, "ndim", 0) == 0 else value.tolist()
        return _plain(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return repr(value)


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
