import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from esparse_lab import wikipedia
from esparse_lab.corpora import CORPORA
from esparse_lab.downloads import WheelFile, build_once, cache_dir, fetch_wheel_file
from esparse_lab.errors import EsparseError
from esparse_lab.models import EMBEDDED_MODELS

CONTENT = bytes(range(256)) * 40
FILE = WheelFile(
    requirement="toy-data==1.5",
    member="toy_data/numbers.bin",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)


def write_wheel(folder: Path, content: bytes = CONTENT) -> Path:
    """A wheel that pip accepts, with its member uncompressed."""
    folder.mkdir(exist_ok=True)
    path = folder / "toy_data-1.5-py3-none-any.whl"
    info = "toy_data-1.5.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("toy_data/numbers.bin", content)
        # A dependency that does not exist: only the wheel alone can be had.
        metadata = (
            "Metadata-Version: 2.1\nName: toy-data\nVersion: 1.5\nRequires-Dist: no-such-thing"
        )
        wheel.writestr(f"{info}/METADATA", metadata + "\n")
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", tags)
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ESPARSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path, cache, monkeypatch):
    """The one wheel of an index that is a folder."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return write_wheel(tmp_path / "index")


def files_under(folder: Path) -> set[str]:
    return {p.name for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"}


def silent(message):
    pass


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("ESPARSE_CACHE", str(tmp_path / "here"))
    assert cache_dir() == tmp_path / "here"
    assert not cache_dir().exists()


def test_a_checkout_has_its_own_cache(monkeypatch):
    monkeypatch.delenv("ESPARSE_CACHE", raising=False)
    assert cache_dir() == Path(__file__).parents[1] / "data" / "cache"


def test_an_installed_package_uses_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("ESPARSE_CACHE", raising=False)
    monkeypatch.setattr("esparse_lab.downloads.__file__", str(tmp_path / "esparse_lab" / "d.py"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_dir() == tmp_path / ".cache" / "esparse_lab"


def test_a_member_is_fetched_once_and_alone(wheel, cache):
    messages = []
    path = fetch_wheel_file(FILE, say=messages.append)
    assert path.read_bytes() == CONTENT
    assert files_under(cache) == {"numbers.bin"}
    assert "toy-data==1.5" in messages[0]
    wheel.unlink()  # no index any more
    assert fetch_wheel_file(FILE, say=messages.append) == path
    assert len(messages) == 1


def test_another_platform_can_be_asked_for(wheel, cache):
    target = ("--python-version=3.9", "--implementation=cp", "--abi=cp39", "--platform=win_amd64")
    wheel.rename(wheel.with_name("toy_data-1.5-cp39-cp39-win_amd64.whl"))
    assert fetch_wheel_file(replace(FILE, pip_target=target), say=silent).read_bytes() == CONTENT


def test_another_content_is_refused(wheel, cache):
    write_wheel(wheel.parent, CONTENT + b"!")
    with pytest.raises(EsparseError) as error:
        fetch_wheel_file(FILE, say=silent)
    found = hashlib.sha256(CONTENT + b"!").hexdigest()
    for part in (FILE.sha256, found, "10,240 bytes", "10,241 bytes", "Run `esparse fetch` again"):
        assert part in str(error.value)
    assert files_under(cache) == set()


def test_a_damaged_wheel_is_refused(wheel, cache):
    data = bytearray(wheel.read_bytes())
    data[1000] ^= 1  # inside the member, which pip does not look at
    wheel.write_bytes(data)
    with pytest.raises(EsparseError, match=r"is damaged \(Bad CRC-32"):
        fetch_wheel_file(FILE, say=silent)
    assert files_under(cache) == set()


def test_a_truncated_wheel_is_refused(wheel, cache):
    wheel.write_bytes(wheel.read_bytes()[:5000])
    with pytest.raises(EsparseError, match=r"toy.data"):
        fetch_wheel_file(FILE, say=silent)
    assert files_under(cache) == set()


def test_a_wheel_without_the_member_is_refused(wheel, cache):
    with pytest.raises(EsparseError, match=r"has no toy_data/letters.bin"):
        fetch_wheel_file(replace(FILE, member="toy_data/letters.bin"), say=silent)


def test_a_file_altered_in_the_cache_is_noticed(wheel, cache):
    path = fetch_wheel_file(FILE, say=silent)
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(EsparseError, match=r"was altered.*Delete the folder"):
        fetch_wheel_file(FILE, say=silent)


def test_no_such_release_quotes_pip(wheel, cache):
    with pytest.raises(EsparseError) as error:
        fetch_wheel_file(replace(FILE, requirement="toy-data==2.0"), say=silent)
    assert "No matching distribution found for toy-data==2.0" in str(error.value)
    assert "PIP_FIND_LINKS" in str(error.value)
    assert files_under(cache) == set()


def test_no_pip_says_how_to_get_it(cache, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(EsparseError, match=r"has no pip.*ensurepip"):
        fetch_wheel_file(FILE, say=silent)


def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ESPARSE_CACHE", str(tmp_path / "file"))
    with pytest.raises(EsparseError, match=r"Cannot write .*ESPARSE_CACHE"):
        fetch_wheel_file(FILE, say=silent)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_what_stops_half_way_leaves_nothing(tmp_path, stop):
    def build(folder):
        (folder / "half").write_text("...")
        raise stop

    with pytest.raises(stop):
        build_once(tmp_path / "target", build)
    assert files_under(tmp_path) == set()
    build_once(tmp_path / "target", lambda folder: (folder / "whole").touch())
    assert files_under(tmp_path) == {"whole"}


def test_a_killed_process_leaves_nothing_in_the_way(tmp_path):
    script = """
import sys, time, pathlib
from esparse_lab.downloads import build_once
def build(folder):
    (folder / "half").write_text("...")
    print("building", flush=True)
    time.sleep(60)
build_once(pathlib.Path(sys.argv[1]), build)
"""
    target = tmp_path / "target"
    command = [sys.executable, "-c", script, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "building\n"
        os.kill(process.pid, signal.SIGKILL)
    assert not target.exists()
    build_once(target, lambda folder: (folder / "whole").touch())
    assert files_under(tmp_path) == {"whole"}


def test_several_at_once_build_once(tmp_path):
    built = []

    def build(folder):
        built.append(folder)
        time.sleep(0.1)

    threads = [
        threading.Thread(target=build_once, args=(tmp_path / "target", build)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert (tmp_path / "target").is_dir()


def test_the_manifest_says_what_the_code_fetches():
    manifest = json.loads((Path(__file__).parents[1] / "data" / "MANIFEST.json").read_text())

    def facts(file: WheelFile) -> dict:
        return {
            "requirement": file.requirement,
            "member": file.member,
            "size_bytes": file.size,
            "sha256": file.sha256,
        }

    assert manifest["models"] == {
        name: {
            "title": model.title,
            "source": model.source,
            "licence": model.licence,
            "n_parameters": model.n_parameters,
            "file": facts(model.file),
        }
        for name, model in EMBEDDED_MODELS.items()
    }
    wikipedia_facts = manifest["corpora"]["wikipedia"]
    assert wikipedia_facts.pop("file") == facts(wikipedia.ARCHIVE)
    assert wikipedia_facts.pop("split_sha256") == wikipedia.SPLIT_SHA256
    assert manifest["corpora"] == {
        name: {"source": corpus.source, "licence": corpus.licence, "splits": list(corpus.splits)}
        for name, corpus in CORPORA.items()
    }
