"""Where the kept values of eight columns go: byte permutations for PTX `prmt`; see `nm_kernels`."""

from functools import cache

import torch
from torch import Tensor

ZERO, FIRST, SECOND = 0x44, 0x10, 0x32
"""Two nibbles of a `prmt` selector: a zero, the low or the high half of a register."""


@cache
def permutations(kept: int, device: torch.device) -> Tensor:
    """Selectors for the eight columns of each byte of bits: int32 [256, 4].

    With values v0 v1 in register lo (and v2 v3 in hi) the columns 2p and 2p + 1 are pair p. For two
    kept values the words hold the selectors of pairs 0 and 1, and 2 and 3, all from lo. For four:
    pairs 0 and 1 from lo; 2 and 3 from hi; 1 from hi and 2 from lo, which 2:4 has no use for.
    """
    table = torch.zeros(256, 4, dtype=torch.int64)
    places = [[(0, 0), (1, 0)], [(2, 0), (3, 0)]]
    if kept == 4:
        places = [[(0, 0), (1, 0)], [(2, 1), (3, 1)], [(1, 1), (2, 0)]]
    for byte in range(256):
        rank = [(byte & ((1 << column) - 1)).bit_count() for column in range(8)]

        def selector(pair, register, byte=byte, rank=rank):
            halves = [ZERO, ZERO]
            for half in (0, 1):
                column = 2 * pair + half
                if byte >> column & 1 and rank[column] // 2 == register:
                    halves[half] = (FIRST, SECOND)[rank[column] % 2]
            return halves[0] | halves[1] << 8

        for word, (low, high) in enumerate(places):
            table[byte, word] = selector(*low) | selector(*high) << 16
    table = torch.where(table >= 1 << 31, table - (1 << 32), table)
    return table.to(torch.int32).to(device)
