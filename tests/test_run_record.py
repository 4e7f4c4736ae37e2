import json
import platform
import shutil
import subprocess
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from esparse_lab.corpora import Corpus, tokens_sha256
from esparse_lab.errors import EsparseError, InputError
from esparse_lab.run_record import Run, git_state

EVIL = "<img src=x onerror=alert(1)>"
CORPUS = Corpus("wikipedia", "train", ("one", "two"), "ab" * 32, "a wheel", "CC BY-SA")


def loaded(name="tiny"):
    return SimpleNamespace(model=torch.nn.Linear(2, 2), name=name, revision="sha256:12")


def test_a_record_says_what_was_measured_on_what(tmp_path):
    tokens = torch.arange(6).reshape(2, 3)
    run = Run("01_x", tmp_path / "new" / "folder")
    run.save_table("t", pd.DataFrame({"a": [1]}))
    record = run.finish(
        model=loaded(),
        tokens={"calibration": tokens},
        corpora={"calibration": CORPUS},
        seed=3,
        headline={"dense perplexity": torch.tensor(22.5), "diverged": float("nan")},
        alpha=0.5,
    )
    stored = json.loads((tmp_path / "new" / "folder" / "records" / "01_x.json").read_text())
    assert stored["model"] == {"name": "tiny", "revision": "sha256:12", "dtype": "float32"}
    assert stored["tokens"]["calibration"] == {"shape": [2, 3], "sha256": tokens_sha256(tokens)}
    assert stored["corpora"]["calibration"]["documents"] == 2
    assert stored["corpora"]["calibration"]["licence"] == "CC BY-SA"
    assert stored["headline"] == {"dense perplexity": 22.5, "diverged": "nan"}
    assert (stored["seed"], stored["facts"], stored["tables"]) == (3, {"alpha": 0.5}, ["01_x.t"])
    assert stored["versions"]["python"] == platform.python_version()
    assert stored["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert stored["peak_memory_mib"]["process"] > 50  # torch alone takes more
    assert 0 <= stored["seconds"] < 60
    assert stored == json.loads(record.to_json())


def test_a_record_shows_itself_escaped(tmp_path):
    record = Run("x", tmp_path).finish(model=loaded(EVIL), headline={EVIL: EVIL}, note=EVIL)
    page = record._repr_html_()
    assert "<img" not in page
    assert page.count("&lt;img src=x") == 4


def test_tables_come_back_as_they_were(tmp_path):
    frame = pd.DataFrame(
        {"x": [0.1, 1e-9, None], "n": [1, 2, 3]}, index=pd.Index(["a", "b", "ü"], name="layer")
    )
    run = Run("x", tmp_path)
    run.save_table("t", frame)
    run.save_table("t", frame)
    expected = frame.reset_index()
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "tables/x.t.parquet"), expected)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "tables/x.t.csv"), expected)
    assert run.tables == ["x.t"]
    assert len(list((tmp_path / "tables").iterdir())) == 2


@pytest.mark.parametrize("name", ["../x", "a b", "", "X", "a.b", "a\n"])
def test_names_that_are_no_plain_words_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="not usable as a file name"):
        Run(name, tmp_path)
    with pytest.raises(InputError, match="not usable as a file name"):
        Run("x", tmp_path).save_table(name, pd.DataFrame())


def test_columns_that_parquet_cannot_name_are_refused(tmp_path):
    run = Run("x", tmp_path)
    for columns in ([1, 2], ["a", "a"]):
        with pytest.raises(InputError, match="must be a string that occurs once"):
            run.save_table("t", pd.DataFrame([[1, 2]], columns=columns))
    assert list((tmp_path / "tables").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EsparseError, match="Cannot write"):
        Run("x", tmp_path / "file")


def test_git_state_is_that_of_the_packages_own_checkout(tmp_path):
    if not shutil.which("git"):
        pytest.skip("git is not installed")

    def git(*arguments):
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    package = tmp_path / "esparse_lab"
    package.mkdir()
    (package / "a.py").write_text("")
    assert git_state(package) is None
    git("init", "--quiet")
    assert git_state(package) is None  # no commit yet
    git("add", ".")
    git("commit", "--quiet", "--message", "x")
    assert git_state(package) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (package / "a.py").write_text("a = 1")
    assert git_state(package)["dirty"]
    # Installed inside somebody else's repository, its commit is not ours.
    assert git_state(tmp_path / "venv" / "esparse_lab") is None
    (tmp_path / "venv" / "esparse_lab").mkdir(parents=True)
    assert git_state(tmp_path / "venv" / "esparse_lab") is None
