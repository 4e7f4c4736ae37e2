"""Results kept on disk by what they were computed from, so that a second run only reads them.

An entry's name is a hash of the caller's key, of the source of the package's core and of the
versions of the libraries that compute. Change any of these and the result is computed anew.
"""

import hashlib
import json
import warnings
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path

from esparse_lab.atomic import write_atomically
from esparse_lab.downloads import cache_dir
from esparse_lab.errors import EsparseError, InputError

COMPUTING = ("torch", "transformers", "numpy")
SHOWING = {"run_record", "sweep", "figures", "explorers", "reports", "cli"}
"""Rooms of the package that show or collect results but cannot change one."""


def cached(key: dict, compute: Callable[[], dict]) -> dict:
    """The result of `compute()`, read from disk when the same key was computed before.

    The result is always what JSON gives back (lists for tuples, string keys), on a miss as on a
    hit. A damaged entry is computed again. When the cache cannot be written the result is
    returned all the same, with a warning.

    Args:
        key: JSON values that name everything the result depends on beyond the package's source:
            model revision, data hash, recipe, dtype, device, seed.
        compute: makes the result, a dict of JSON values.

    Returns:
        The result.

    Raises:
        InputError: the key or the result holds something that JSON does not know.
    """
    full = {
        "key": json.loads(_json("key", key)),
        "source": core_hash(),
        "versions": {name: metadata.version(name) for name in COMPUTING},
    }
    digest = _sha256(json.dumps(full, sort_keys=True))
    path = cache_dir() / "results" / digest[:2] / f"{digest}.json"
    stored = _read(path, full)
    if stored is not None:
        return stored
    text = _json("result", compute())
    entry = {**full, "result_sha256": _sha256(text), "result": json.loads(text)}
    try:
        write_atomically(path, json.dumps(entry, indent=1))
    except EsparseError as error:
        warnings.warn(f"The result is not cached: {error}", RuntimeWarning, stacklevel=2)
    return entry["result"]


def _read(path: Path, full: dict) -> dict | None:
    try:
        entry = json.loads(path.read_text())
        result = entry.pop("result")
        whole = entry.pop("result_sha256") == _sha256(_json("result", result))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return result if whole and entry == full else None


@cache
def core_hash(package: Path = Path(__file__).parent) -> str:
    """sha256 of the core's source files with their names; the rooms in `SHOWING` do not count."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package)
        if name.with_suffix("").parts[0] not in SHOWING:
            digest.update(f"{name.as_posix()}\0{_sha256(path.read_text())}\n".encode())
    return digest.hexdigest()


def _json(kind: str, value: object) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"The {kind} of a cached result must be made of dicts, lists, strings, numbers, "
            f"booleans and None: {error}. Convert it, for example with float(...) or str(...)."
        ) from error


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
