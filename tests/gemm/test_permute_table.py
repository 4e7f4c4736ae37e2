"""Byte permutations against PTX `prmt`, written out from its manual, on random values."""

import random

import pytest
import torch

from esparse_lab.gemm.permute_table import permutations

CPU = torch.device("cpu")


def prmt(a: int, b: int, selector: int) -> int:
    """PTX `prmt.b32` in its default mode: each nibble picks one of the eight bytes of {b, a}.

    The nibble's top bit would copy the picked byte's sign over the whole byte.
    """
    source = a.to_bytes(4, "little") + b.to_bytes(4, "little")
    picked = []
    for place in range(4):
        nibble = selector >> 4 * place & 0xF
        byte = source[nibble & 7]
        picked.append((0xFF if byte >> 7 else 0) if nibble & 8 else byte)
    return int.from_bytes(bytes(picked), "little")


def spread(byte: int, values: list[int], table: torch.Tensor, within_four: bool) -> list[int]:
    """The eight columns, as the assembly of the kernels puts them together."""
    w = [word & 0xFFFFFFFF for word in table[byte].tolist()]
    low, high = ([word & 0xFFFF for word in w], [word >> 16 for word in w])
    lo = values[0] | values[1] << 16
    hi = values[2] | values[3] << 16 if len(values) == 4 else 0
    if len(values) == 2:
        pairs = [prmt(lo, 0, s) for s in (low[0], high[0], low[1], high[1])]
    elif within_four:
        pairs = [prmt(lo, 0, low[0]), prmt(lo, 0, high[0])]
        pairs += [prmt(hi, 0, low[1]), prmt(hi, 0, high[1])]
    else:
        pairs = [
            prmt(lo, 0, low[0]),
            prmt(lo, 0, high[0]) | prmt(hi, 0, low[2]),
            prmt(lo, 0, high[2]) | prmt(hi, 0, low[1]),
            prmt(hi, 0, high[1]),
        ]
    return [half for pair in pairs for half in (pair & 0xFFFF, pair >> 16)]


def kept_columns(byte: int) -> list[int]:
    return [column for column in range(8) if byte >> column & 1]


def holds(byte: int, n: int, m: int) -> bool:
    """Whether these bits are eight columns of an n:m weight, groups full as they are stored."""
    return all((byte >> start & (1 << m) - 1).bit_count() == n for start in range(0, 8, m))


@pytest.mark.parametrize(
    ("n", "m", "count"), [(1, 4, 16), (2, 8, 28), (2, 4, 36), (4, 8, 70)], ids=str
)
def test_every_kept_value_lands_in_its_column_and_zeros_elsewhere(n, m, count):
    kept = n * 8 // m
    table = permutations(kept, CPU)
    assert (table.shape, table.dtype) == ((256, 4), torch.int32)
    draw = random.Random(n * 8 + m)
    possible = [byte for byte in range(256) if holds(byte, n, m)]
    assert len(possible) == count
    for byte in possible:
        values = [draw.randrange(1 << 16) for _ in range(kept)]
        wanted = [0] * 8
        for column, value in zip(kept_columns(byte), values, strict=True):
            wanted[column] = value
        assert spread(byte, values, table, m == 4) == wanted, f"{byte:08b}"


@pytest.mark.parametrize(("kept", "words"), [(2, 2), (4, 3)])
def test_all_256_bytes_pick_whole_values_or_zeros(kept, words):
    """No selector splits a 16-bit value, reads a sign, or shows a column that is not kept."""
    table = permutations(kept, CPU)
    for byte in range(256):
        selectors = [
            word >> shift & 0xFF for word in table[byte, :words] for shift in (0, 8, 16, 24)
        ]
        assert {int(selector) for selector in selectors} <= {0x44, 0x10, 0x32}
        columns = spread(byte, [0xFFFF] * kept, table, within_four=False)
        assert {c for c in range(8) if columns[c]} <= set(kept_columns(byte))
