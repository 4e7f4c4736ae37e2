"""The store of searches: what is put comes back, what cannot be trusted is not used."""

import json
from dataclasses import replace

import pytest
import torch

from esparse_lab.gemm.algorithms import AlgorithmStore, Found
from esparse_lab.gemm.cusparselt import Algorithm, Product

HERE = {"device": "a card", "driver": "13.0", "library": "0.8.0", "cuda": "13.0"}
PRODUCT = Product(64, 32, 16, torch.float16)
FOUND = Found(Algorithm(7, 2, "ONE_KERNEL"), 0.5, None, 0.75, 31)
OTHER = Found(Algorithm(1), 0.25, 1.5, 0.75, 3)


def store(path, **changes):
    return AlgorithmStore(torch.device("cuda"), path, made_on=HERE | changes)


def test_a_second_start_finds_what_was_put(tmp_path):
    path = tmp_path / "new" / "found.json"
    first = store(path)
    assert first.get(PRODUCT) is None
    first.put(PRODUCT, FOUND)
    assert first.get(PRODUCT) == FOUND
    assert store(path).get(PRODUCT) == FOUND


@pytest.mark.parametrize(
    "other",
    [
        Product(32, 64, 16, torch.float16),
        Product(64, 32, 24, torch.float16),
        Product(64, 32, 16, torch.bfloat16),
        Product(64, 32, 16, torch.float16, x_by_feature=True),
        Product(64, 32, 16, torch.float16, y_by_feature=True),
    ],
)
def test_an_answer_is_for_exactly_one_product(tmp_path, other):
    kept = store(tmp_path / "found.json")
    kept.put(PRODUCT, FOUND)
    assert kept.get(other) is None
    kept.put(other, OTHER)
    again = store(tmp_path / "found.json")
    assert (again.get(PRODUCT), again.get(other)) == (FOUND, OTHER)


def test_two_processes_keep_each_others_searches(tmp_path):
    one, two = (store(tmp_path / "found.json") for _ in range(2))
    one.put(PRODUCT, FOUND)
    other = Product(32, 64, 16, torch.float16)
    two.put(other, OTHER)
    again = store(tmp_path / "found.json")
    assert (again.get(PRODUCT), again.get(other)) == (FOUND, OTHER)


DAMAGED = [
    b"",
    b"{",
    b"\xff\xfe\x00",
    b"[]",
    b"null",
    b"{}",
    json.dumps({"made_on": HERE, "found": [1]}).encode(),
    json.dumps({"made_on": HERE, "found": {"a": {"algorithm": {}}}}).encode(),
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_is_told_of_not_used_and_replaced(tmp_path, content):
    path = tmp_path / "found.json"
    path.write_bytes(content)
    with pytest.warns(RuntimeWarning, match="is damaged"):
        kept = store(path)
    assert kept.get(PRODUCT) is None
    kept.put(PRODUCT, FOUND)
    assert store(path).get(PRODUCT) == FOUND


@pytest.mark.parametrize("changed", HERE)
def test_what_was_found_elsewhere_is_told_of_not_used_and_replaced(tmp_path, changed):
    path = tmp_path / "found.json"
    store(path, **{changed: "another"}).put(PRODUCT, FOUND)
    with pytest.warns(RuntimeWarning, match="another.*not used"):
        kept = store(path)
    assert kept.get(PRODUCT) is None
    kept.put(PRODUCT, OTHER)
    assert store(path).get(PRODUCT) == OTHER


def test_a_place_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    kept = store(tmp_path / "file" / "found.json")
    with pytest.warns(RuntimeWarning, match="The search is not kept: Cannot write"):
        kept.put(PRODUCT, FOUND)
    assert kept.get(PRODUCT) == FOUND


def test_kernels_that_crashed_are_known_for_the_dtype_and_layout(tmp_path):
    kept = store(tmp_path / "found.json")
    kept.put(PRODUCT, FOUND, crashed=["kernel 7", "in 2, ONE_KERNEL"])
    other_shape = Product(2 * PRODUCT.rows, 2 * PRODUCT.columns, 4096, PRODUCT.dtype)
    store(tmp_path / "found.json").put(other_shape, OTHER, crashed=["kernel 9"])
    for one in (kept, store(tmp_path / "found.json")):
        one.put(replace(PRODUCT, columns=4 * PRODUCT.columns), OTHER)
        crashed = {"in 2, ONE_KERNEL", "kernel 7", "kernel 9"}
        assert one.crashing(PRODUCT) == one.crashing(other_shape) == crashed
        assert one.crashing(replace(PRODUCT, dtype=torch.bfloat16)) == set()
        assert one.crashing(replace(PRODUCT, y_by_feature=True)) == set()
