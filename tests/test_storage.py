"""Compressed N:M weights: worked by hand, against a plain loop, and by their laws."""

import math

import pytest
import torch

from esparse_lab import InputError, Pattern, Unstructured, compress, nm_mask, require_nm, storage
from esparse_lab.storage import (
    bits_per_weight,
    compressed_bytes,
    first_violation,
    two_bit_indices,
)

PATTERNS = [Pattern(n, m) for n, m in [(2, 4), (4, 8), (1, 4), (3, 4), (1, 2), (5, 7), (3, 32)]]
COLUMNS = [1, 3, 8, 29, 64]
DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int8,
]

HAND = torch.tensor(
    [
        [1.0, 0, 0, 2, 0, 3, 4, 0],
        [0, 0, 5, 0, 0, 0, 0, 0],
        [0, 6, 7, 0, 8, 9, 0, 0],
        [0, 0, 0, -1, -2, 0, 0, -3],
    ]
)


def pruned(pattern: Pattern, columns: int, dtype=torch.float32, rows: int = 5, density=0.7):
    """A random N:M weight, some groups of which keep fewer than n."""
    draw = torch.Generator().manual_seed(columns)
    weight = torch.randint(1, 9, (rows, columns), generator=draw).float()
    weight *= torch.rand(rows, columns, generator=draw) < density
    return (weight * nm_mask(weight, pattern)).to(dtype)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def test_a_matrix_compressed_by_hand():
    stored = compress(HAND, Pattern(2, 4))
    # Row 1 has one weight and row 3 one in its first group: their lowest zeros fill up.
    assert stored.values.tolist() == [[1, 2, 3, 4], [0, 5, 0, 0], [6, 7, 8, 9], [0, -1, -2, -3]]
    assert stored.bits.tolist() == [[0b01101001], [0b00110101], [0b00110110], [0b10011001]]
    assert two_bit_indices(stored).tolist() == [
        [0, 3, 1, 2],
        [0, 2, 0, 1],
        [1, 2, 0, 1],
        [0, 3, 0, 3],
    ]
    assert stored.nbytes == 4 * 4 * 4 + 4
    assert same_bits(stored.decompress(), HAND)


def test_a_shorter_last_group_keeps_what_padding_would():
    weight = torch.tensor([[0.0, 1, 2, 0, 0, 3, 0, 0, 0, 4]])  # groups of 4, 4 and 2
    stored = compress(weight, Pattern(3, 4))
    assert stored.values.tolist() == [[0, 1, 2, 0, 3, 0, 0, 4]]
    assert stored.bits.tolist() == [[0b01110111, 0b11]]
    assert same_bits(stored.decompress(), weight)


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_form_read_by_a_plain_loop_is_the_weight(pattern, columns, dtype):
    weight = pruned(pattern, columns, dtype)
    stored = compress(weight, pattern)
    assert (stored.values.dtype, stored.bits.dtype) == (dtype, torch.uint8)
    for row, values, bits in zip(
        weight.tolist(), stored.values.tolist(), stored.bits.tolist(), strict=True
    ):
        whole = int.from_bytes(bytes(bits), "little")
        kept = [c for c in range(8 * len(bits)) if whole >> c & 1]
        assert len(bits) == math.ceil(columns / 8)
        assert len(kept) == len(values)
        for start in range(0, columns, pattern.m):
            stop = min(start + pattern.m, columns)
            assert sum(start <= c < stop for c in kept) == min(pattern.n, stop - start)
        read = [0.0] * columns
        for column, value in zip(kept, values, strict=True):
            read[column] = value
        assert read == row
    assert same_bits(stored.decompress(), weight)
    assert stored.nbytes == compressed_bytes(
        5, columns, pattern, value_bits=8 * weight.element_size()
    )


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_in_parts_and_at_once_are_the_same(pattern, monkeypatch):
    weight = pruned(pattern, 64, rows=11)
    at_once = compress(weight, pattern)
    monkeypatch.setattr(storage, "_CHUNK_WEIGHTS", 3 * 64)
    in_parts = compress(weight, pattern)
    assert torch.equal(in_parts.values, at_once.values)
    assert torch.equal(in_parts.bits, at_once.bits)
    assert torch.equal(in_parts.decompress(), weight)
    weight[7, pattern.m : 2 * pattern.m] = 1  # in the third part, for 64 columns the second group
    expected = None if pattern.m == 32 and pattern.m >= 64 else (7, 1, pattern.m)
    assert first_violation(weight, pattern) == expected


def test_strange_values_come_back_bit_for_bit_save_negative_zeros_that_are_not_kept():
    bits = [0x7FC12345, 0x7F800000, 0x00000001, -0x80000000, -0x80000000, -0x80000000, 0, 0]
    weight = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
    # NaN with a payload, infinity, a subnormal and -0.0; then -0.0 twice and 0.0 twice.
    stored = compress(weight, Pattern(3, 4))
    back = stored.decompress().view(torch.int32)[0].tolist()
    assert back == [0x7FC12345, 0x7F800000, 1, 0, -0x80000000, -0x80000000, 0, 0]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_first_violation_is_the_first_in_reading_order(pattern):
    weight = pruned(pattern, 64)
    assert first_violation(weight, pattern) is None
    require_nm(weight, pattern)
    weight[3, :] = 1
    weight[4, :] = 1
    weight[2, -pattern.m :] = float("nan")  # 64 = 9 x 7 + 1: the last group of 5:7 has one member
    found = first_violation(weight, pattern)
    counts = [
        (r, g, sum(v != 0 for v in row[g * pattern.m : (g + 1) * pattern.m]))
        for r, row in enumerate(weight.tolist())
        for g in range(math.ceil(64 / pattern.m))
    ]
    assert found == next(c for c in counts if c[2] > pattern.n)


def test_a_weight_that_is_not_sparse_enough_is_named_with_its_group_and_values():
    weight = torch.tensor([[1.0, 0, 0, 2, 0, 0, 0, 0], [0, 0, 0, 0, 1, 2, 0.25, 0]])
    require_nm(weight, Pattern(3, 4))
    words = r"down_proj is not 2:4: row 1, channels 4 to 7 hold 3 .*\(1, 2, 0.25, 0\).*prune_model"
    with pytest.raises(InputError, match=words):
        require_nm(weight, Pattern(2, 4), "model.layers.3.mlp.down_proj")
    with pytest.raises(InputError, match=words):
        compress(weight, Pattern(2, 4), name="model.layers.3.mlp.down_proj")


def test_a_dense_short_last_group_is_a_violation_of_its_own_channels():
    with pytest.raises(InputError, match="channels 4 to 5 hold 2 "):
        require_nm(torch.tensor([[0.0, 0, 0, 1, 1, 1]]), Pattern(1, 4))


@pytest.mark.parametrize("shape", [(8,), (2, 4, 8), (0, 8), (8, 0)])
def test_only_matrices_are_compressed(shape):
    with pytest.raises(InputError, match=r"bias has shape .*expected a matrix"):
        compress(torch.zeros(shape), Pattern(2, 4), name="bias")


def test_what_cannot_be_stored_says_so():
    with pytest.raises(InputError, match=r"only N:M such as 2:4 .*got 50%"):
        compress(HAND, Unstructured(0.5))
    with pytest.raises(InputError, match="more than two bits"):
        two_bit_indices(compress(HAND, Pattern(4, 8)))
    with pytest.raises(InputError, match="Did you mean 'bitmask'"):
        bits_per_weight(Pattern(2, 4), index="bitmap")
    with pytest.raises(InputError, match="Did you mean 'hardware'"):
        compressed_bytes(4, 4, Pattern(2, 4), index="hardwear")


@pytest.mark.parametrize(
    ("pattern", "value_bits", "hardware", "bitmask"),
    [
        (Pattern(2, 4), 16, 9, 9),  # 9/16 either way
        (Pattern(4, 8), 16, 9.5, 9),
        (Pattern(1, 4), 16, 4.5, 5),
        (Pattern(3, 6), 16, 9.5, 9),  # a place among 6 takes 3 bits
        (Pattern(2, 4), 8, 5, 5),
        (Pattern(2, 4), 32, 17, 17),
    ],
)
def test_bits_of_storage_by_hand(pattern, value_bits, hardware, bitmask):
    assert bits_per_weight(pattern, value_bits) == hardware
    assert bits_per_weight(pattern, value_bits, "bitmask") == bitmask
    size = 96  # whole groups and whole bytes
    for index, bits in [("hardware", hardware), ("bitmask", bitmask)]:
        n_bytes = compressed_bytes(size, size, pattern, value_bits=value_bits, index=index)
        assert n_bytes == size * size * bits / 8


@pytest.mark.gpu
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cpu_and_gpu_store_the_same(pattern, dtype):
    weight = pruned(pattern, 64, dtype)
    here, there = compress(weight, pattern), compress(weight.cuda(), pattern)
    assert same_bits(there.values.cpu(), here.values)
    assert same_bits(there.bits.cpu(), here.bits)
    assert same_bits(there.decompress().cpu(), weight)
