import json

import pytest

from esparse_lab.errors import InputError
from esparse_lab.result_cache import cached, core_hash


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ESPARSE_CACHE", str(tmp_path))
    return tmp_path / "results"


class Counted:
    """A computation that counts how often it ran."""

    def __init__(self, result):
        self.result, self.calls = result, 0

    def __call__(self):
        self.calls += 1
        return self.result


def test_a_second_call_reads_and_gives_the_same(cache):
    compute = Counted({"shape": (2, 3), 4: 0.1, "inf": float("inf")})
    first = cached({"a": 1}, compute)
    assert first == cached({"a": 1}, compute) == {"shape": [2, 3], "4": 0.1, "inf": float("inf")}
    assert list(first) == list(cached({"a": 1}, compute)) == ["shape", "4", "inf"]
    assert compute.calls == 1
    (entry,) = cache.rglob("*.json")
    assert json.loads(entry.read_text())["key"] == {"a": 1}


def test_another_key_is_another_result():
    assert cached({"seed": 0}, Counted({"x": 0}))["x"] == 0
    assert cached({"seed": 1}, Counted({"x": 1}))["x"] == 1
    assert cached({"seed": 0}, Counted({"x": 2}))["x"] == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("0.25", "0.75"),
        lambda text: text.replace('"a": 1', '"a": 2'),
        lambda text: "[1]",
        lambda text: "\udcff",
    ],
    ids=["empty", "truncated", "number changed", "key changed", "list", "not utf-8"],
)
def test_a_damaged_entry_is_computed_again(cache, damage):
    compute = Counted({"share": 0.25})
    cached({"a": 1}, compute)
    (entry,) = cache.rglob("*.json")
    entry.write_text(damage(entry.read_text()), errors="surrogateescape")
    assert cached({"a": 1}, compute) == {"share": 0.25}
    assert compute.calls == 2
    assert cached({"a": 1}, compute) == {"share": 0.25}
    assert compute.calls == 2


def test_an_error_leaves_no_entry(cache):
    with pytest.raises(ZeroDivisionError):
        cached({"a": 1}, lambda: {"x": 1 / 0})
    assert list(cache.rglob("*")) == []


def test_what_json_does_not_know_is_refused():
    with pytest.raises(InputError, match="The key of a cached result"):
        cached({"a": object()}, Counted({}))
    with pytest.raises(InputError, match="The result of a cached result"):
        cached({"a": 1}, Counted({"x": object()}))


def test_a_cache_that_cannot_be_written_costs_only_a_warning(cache):
    cache.write_text("a file where the folder should be")
    with pytest.warns(RuntimeWarning, match="not cached"):
        assert cached({"a": 1}, Counted({"x": 1})) == {"x": 1}


def test_the_core_counts_and_what_shows_results_does_not(tmp_path):
    (tmp_path / "reports").mkdir()
    (tmp_path / "masks.py").write_text("a = 1")
    (tmp_path / "cli.py").write_text("a = 1")
    (tmp_path / "reports" / "html.py").write_text("a = 1")
    hashes = [core_hash.__wrapped__(tmp_path)]
    for name, same in (("cli.py", True), ("reports/html.py", True), ("masks.py", False)):
        (tmp_path / name).write_text("a = 2")
        hashes.append(core_hash.__wrapped__(tmp_path))
        assert (hashes[-1] == hashes[-2]) is same, name
