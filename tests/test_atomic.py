import errno
import os
import signal
import subprocess
import sys

import pytest

from esparse_lab.atomic import building_folder, cannot_write, write_atomically
from esparse_lab.errors import EsparseError


def test_a_file_is_replaced_whole_and_nothing_else_stays(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    write_atomically(path, "one")
    write_atomically(path, "zwei ä")
    assert path.read_text(encoding="utf-8") == "zwei ä"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EsparseError, match=r"Cannot write .*file.*Choose a folder"):
        write_atomically(tmp_path / "file" / "x", "")
    with (
        pytest.raises(EsparseError, match=r"Cannot write .*file"),
        building_folder(tmp_path / "file" / "x"),
    ):
        pass


def test_a_folder_takes_the_place_of_the_old_one(tmp_path):
    target = tmp_path / "report"
    for text in ("old", "new"):
        with building_folder(target) as folder:
            assert folder.parent == tmp_path
            (folder / text).write_text(text)
    assert [p.name for p in tmp_path.iterdir()] == ["report"]
    assert [p.name for p in target.iterdir()] == ["new"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_folder(tmp_path, error):
    target = tmp_path / "report"
    target.mkdir()
    (target / "old").write_text("")

    def build():
        with building_folder(target) as folder:
            (folder / "half").write_text("")
            raise error

    with pytest.raises(error):
        build()
    assert [p.name for p in tmp_path.rglob("*")] == ["report", "old"]


def test_a_second_builder_does_not_remove_the_first_ones_work(tmp_path):
    target = tmp_path / "report"
    with building_folder(target) as first:
        (first / "a").write_text("")
        with building_folder(target) as second:
            (second / "b").write_text("")
        assert (first / "a").exists()
    assert [p.name for p in target.iterdir()] == ["a"]


def test_what_a_killed_builder_left_is_cleared_and_a_half_swap_undone(tmp_path):
    target = tmp_path / "report"
    program = (
        "import sys, time\nfrom pathlib import Path\n"
        "from esparse_lab.atomic import building_folder\n"
        "with building_folder(Path(sys.argv[1])) as f:\n"
        "    print('in', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(target)], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline() == "in\n"
        os.kill(process.pid, signal.SIGKILL)
    assert [p.name.startswith(".report.building-") for p in tmp_path.iterdir()] == [True]
    # As if killed between the renames: the old one is aside, the new one not in place.
    aside = tmp_path / ".report.previous-0"
    aside.mkdir()
    (aside / "old").write_text("")

    def build():
        with building_folder(target):
            assert (target / "old").exists()
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        build()
    assert [p.name for p in tmp_path.rglob("*")] == ["report", "old"]


def test_a_full_disk_is_told_from_a_place_without_permission(tmp_path):
    full = str(cannot_write(tmp_path, OSError(errno.ENOSPC, "No space left on device")))
    assert "Make room" in full
    closed = str(cannot_write(tmp_path, OSError(errno.EACCES, "Permission denied")))
    assert "may write to" in closed
