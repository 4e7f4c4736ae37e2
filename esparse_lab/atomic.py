"""Files and folders that appear whole or not at all.

A file is written beside its final place and renamed over it. A folder is built as a hidden sibling
and renamed into place when it is finished, so a reader, Ctrl-C or a kill never meets a half of it.
"""

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from esparse_lab.errors import EsparseError


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file (text as UTF-8) so that `path` holds its old content or the new, never a part.

    Args:
        path: the file; its folder is made when missing.
        content: everything the file shall hold.

    Raises:
        EsparseError: the folder or the file cannot be written; the message says why.
    """
    data = content.encode() if isinstance(content, str) else content
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


@contextmanager
def building_folder(target: Path) -> Iterator[Path]:
    """A hidden empty sibling of `target` that takes its place when the block ends without an error.

    On any exception, Ctrl-C included, the sibling is removed and `target` stays as it was. What a
    killed process left behind is removed (or, when it was killed between the two renames, put
    back) the next time the same `target` is built.

    Args:
        target: the folder to make or to replace.

    Yields:
        The folder to fill.

    Raises:
        EsparseError: the parent folder cannot be written.
    """
    target = target.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent):
            _clear_remains(target)
            build = target.with_name(f".{target.name}.building-{secrets.token_hex(4)}")
            build.mkdir()
            # The lock lives as long as this process: it tells a folder in work from a left-over.
            lock = lock_folder(build)
    except OSError as error:
        raise cannot_write(target, error) from error
    try:
        yield build
        with _locked(target.parent):
            _swap(build, target)
    finally:
        shutil.rmtree(build, ignore_errors=True)
        os.close(lock)


def cannot_write(path: Path, error: OSError) -> EsparseError:
    """The error for a place that cannot be written, with the system's reason and the way out."""
    reason = error.strerror or str(error)
    advice = "Choose a folder that you may write to."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "Make room, or choose a folder on another disk."
    return EsparseError(f"Cannot write {path}: {reason}. {advice}")


def _swap(build: Path, target: Path) -> None:
    if not target.exists():
        build.rename(target)
        return
    previous = target.with_name(f".{target.name}.previous-{secrets.token_hex(4)}")
    target.rename(previous)
    try:
        build.rename(target)
    except BaseException:
        if not target.exists():
            previous.rename(target)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def _clear_remains(target: Path) -> None:
    names = [child.name for child in target.parent.iterdir()]
    for name in names:
        path = target.with_name(name)
        if name.startswith(f".{target.name}.previous-"):
            if target.exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.rename(target)
        elif name.startswith(f".{target.name}.building-"):
            with suppress(OSError):
                os.close(lock_folder(path, wait=False))
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = lock_folder(folder)
    try:
        yield
    finally:
        os.close(lock)


def lock_folder(folder: Path, *, wait: bool = True) -> int:
    """An open descriptor that holds the folder's advisory lock until it is closed.

    Raises:
        BlockingIOError: another process (or call) holds the lock and `wait` is off.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
