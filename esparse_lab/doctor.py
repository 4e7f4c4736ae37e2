"""What this machine has of what esparse_lab needs."""

import os
import platform
import re
import shutil
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement

from esparse_lab.downloads import cache_dir

REPORT_GIB = 4
"""Memory that a quick report of the embedded model may take, in GiB."""


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes:
        what: the thing looked at.
        found: its state, and what to do when it is not well.
        mark: "ok", "--" (optional or can be had later) or "NO" (needed and missing).
    """

    what: str
    found: str
    mark: str = "ok"

    @property
    def needed(self) -> bool:
        """Whether nothing works without it and it is missing."""
        return self.mark == "NO"


def examine() -> list[Finding]:
    """Look at Python, packages, device, memory, disk and cache; changes nothing."""
    findings = [Finding("python", platform.python_version())]
    requirements = [Requirement(line) for line in metadata.requires("esparse_lab") or []]
    for requirement in requirements:
        findings.append(_package(requirement))
    if not any(finding.needed for finding in findings):
        findings += [_device(), _sparse_products(), *_embedded()]
    return [*findings, _memory(), _disk()]


def _package(requirement: Requirement) -> Finding:
    extra = "extra" in str(requirement.marker)
    missing = "--" if extra else "NO"
    kind = re.search(r"extra == ['\"](\w+)", str(requirement.marker))[1] if extra else ""
    note = f", for the extra {kind!r}" if extra else ""
    wanted = str(requirement.specifier) or "any version"
    advice = f"pip install '{requirement.name}{requirement.specifier}'"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding(requirement.name, f"not installed{note}: {advice}", missing)
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(requirement.name, f"{version}, needs {wanted}{note}: {advice}", missing)
    return Finding(requirement.name, f"{version} ({wanted}{note})")


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return Finding("device", f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB")
    return Finding("device", f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads")


def _sparse_products() -> Finding:
    from esparse_lab.gemm.cusparselt import unavailable

    reason = unavailable()
    return Finding("sparse products", reason or "cuSPARSELt runs", "--" if reason else "ok")


def _embedded() -> list[Finding]:
    from esparse_lab.models import EMBEDDED_MODELS, embedded_model_folder
    from esparse_lab.wikipedia import corpus_folder

    places = {f"model {name}": embedded_model_folder(name) for name in EMBEDDED_MODELS}
    places["corpus wikipedia"] = corpus_folder()
    return [
        Finding(what, f"in {folder}")
        if folder.exists()
        else Finding(what, "not fetched yet: esparse fetch", "--")
        for what, folder in places.items()
    ]


def _memory() -> Finding:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    if total < REPORT_GIB:
        return Finding("memory", f"{total:.1f} GiB; a report takes up to {REPORT_GIB}", "--")
    return Finding("memory", f"{total:.1f} GiB")


def _disk() -> Finding:
    cache = cache_dir()
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(place).free / 2**30
    text = f"{free:.1f} GiB free for the cache {cache}"
    if not os.access(place, os.W_OK):
        return Finding("disk", f"{cache} cannot be written: set ESPARSE_CACHE to a folder", "--")
    return Finding("disk", text) if free >= 2 else Finding("disk", f"{text}; keep 2 free", "--")
