"""A product with a compressed N:M weight for few tokens, where reading the weight takes the time.

The tensor cores skip zeros for 2:4 alone; but with few tokens the arithmetic is nearly free and the
bytes are not, so any N:M weight that lies compressed in memory can be faster than a dense one. The
kernel reads kept values and one bit a column (`storage.Compressed`), puts the values in their
columns in registers, and multiplies dense tiles.

Eight columns are one byte of bits; their kept values (two of 1:4, four of 2:4 and 4:8) are one
register or two. A table of byte permutations (`permute_table`), one entry for each of the 256
bytes, says where each value goes (PTX `prmt`, whose second operand 0 supplies the zeros).
"""

import triton
import triton.language as tl

# The table is read inside the assembly, since Triton would send a load that it sees, and that leads
# to a dot, through shared memory.


@triton.jit
def _spread_four(values, bits, table):
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b32 lo, hi, s, t, w0, w1, w2, w3;
        .reg .b64 at;
        mad.wide.u32 at, $5, 16, $6;
        ld.global.nc.v4.b32 {w0, w1, w2, w3}, [at];
        mov.b64 {lo, hi}, $4;
        prmt.b32 $0, lo, 0, w0;
        shr.b32 s, w0, 16;
        prmt.b32 $1, lo, 0, s;
        prmt.b32 t, hi, 0, w2;
        or.b32 $1, $1, t;
        shr.b32 s, w2, 16;
        prmt.b32 $2, lo, 0, s;
        prmt.b32 t, hi, 0, w1;
        or.b32 $2, $2, t;
        shr.b32 s, w1, 16;
        prmt.b32 $3, hi, 0, s;
        }
        """,
        "=&r,=&r,=&r,=&r,l,r,l",
        [values, bits, table],
        dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def _spread_within_four(values, bits, table):
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b32 lo, hi, s, w0, w1;
        .reg .b64 at;
        mad.wide.u32 at, $5, 16, $6;
        ld.global.nc.v2.b32 {w0, w1}, [at];
        mov.b64 {lo, hi}, $4;
        prmt.b32 $0, lo, 0, w0;
        shr.b32 s, w0, 16;
        prmt.b32 $1, lo, 0, s;
        prmt.b32 $2, hi, 0, w1;
        shr.b32 s, w1, 16;
        prmt.b32 $3, hi, 0, s;
        }
        """,
        "=&r,=&r,=&r,=&r,l,r,l",
        [values, bits, table],
        dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def _spread_two(values, bits, table):
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b32 s, w0, w1;
        .reg .b64 at;
        mad.wide.u32 at, $5, 16, $6;
        ld.global.nc.v2.b32 {w0, w1}, [at];
        prmt.b32 $0, $4, 0, w0;
        shr.b32 s, w0, 16;
        prmt.b32 $1, $4, 0, s;
        prmt.b32 $2, $4, 0, w1;
        shr.b32 s, w1, 16;
        prmt.b32 $3, $4, 0, s;
        }
        """,
        "=&r,=&r,=&r,=&r,r,r,l",
        [values, bits, table],
        dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def _halves(pair, dtype: tl.constexpr):
    low = (pair & 0xFFFF).to(tl.int16).to(dtype, bitcast=True)
    high = (pair >> 16).to(tl.int16).to(dtype, bitcast=True)
    return tl.join(low, high)


@triton.jit
def nm_linear_kernel(
    x_ptr,  # [tokens, columns]
    values_ptr,  # [rows, columns / 8] of one word each: the kept values of eight columns
    bits_ptr,  # [rows, columns / 8]
    table_ptr,  # [256, 4]
    bias_ptr,
    y_ptr,  # [tokens, rows]
    partial_ptr,  # float32 [splits, tokens, rows]
    counter_ptr,  # int32 [row blocks], zero before and after
    tokens,
    rows,
    words,  # columns / 8
    words_a_split,
    KEPT: tl.constexpr,
    WITHIN_FOUR: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Add up one block of rows over one part of the columns; the last part to end writes y."""
    block, split = tl.program_id(0), tl.program_id(1)
    row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    token = tl.arange(0, TOKENS)
    word = tl.arange(0, BLOCK_WORDS)
    column = tl.arange(0, BLOCK_WORDS * 8)
    dtype = x_ptr.dtype.element_ty
    first = split * words_a_split
    last = tl.minimum(first + words_a_split, words)
    row_start = row.to(tl.int64)[:, None] * words
    table = table_ptr.to(tl.int64)
    sums = tl.zeros([BLOCK_ROWS, TOKENS], tl.float32)
    for start in range(first, last, BLOCK_WORDS):
        here = start + word
        inside = (row < rows)[:, None] & (here < last)[None, :]
        place = row_start + here[None, :]
        bits = tl.load(bits_ptr + place, inside, 0).to(tl.int32)
        values = tl.load(values_ptr + place, inside, 0)
        if KEPT == 2:
            p0, p1, p2, p3 = _spread_two(values, bits, table)
        elif WITHIN_FOUR:
            p0, p1, p2, p3 = _spread_within_four(values, bits, table)
        else:
            p0, p1, p2, p3 = _spread_four(values, bits, table)
        # Columns 0 1 | 2 3 | 4 5 | 6 7: join puts the newest axis last, so pairs go in by halves.
        d0, d1, d2, d3 = (
            _halves(p0, dtype),
            _halves(p1, dtype),
            _halves(p2, dtype),
            _halves(p3, dtype),
        )
        even = tl.join(d0, d2)  # [rows, words, half, 0 or 2]
        odd = tl.join(d1, d3)
        dense = tl.join(even, odd)  # [rows, words, half, high pair, low pair]
        dense = tl.permute(dense, (0, 1, 3, 4, 2))
        dense = tl.reshape(dense, [BLOCK_ROWS, BLOCK_WORDS * 8])
        at = start * 8 + column
        x = tl.load(
            x_ptr + token[None, :] * (words * 8) + at[:, None],
            (token < tokens)[None, :] & (at < last * 8)[:, None],
            0.0,
        )
        sums = tl.dot(dense, x, sums)
    where = token[None, :] * rows + row[:, None]
    valid = (token < tokens)[None, :] & (row < rows)[:, None]
    if SPLITS > 1:
        tl.store(partial_ptr + split * tokens * rows + where, sums, valid)
        tl.debug_barrier()
        arrived = tl.atomic_add(counter_ptr + block, 1, sem="acq_rel")
        if arrived == SPLITS - 1:
            # The last to come adds all parts in one order, so the result does not depend on who
            # was last.
            total = tl.zeros([BLOCK_ROWS, TOKENS], tl.float32)
            for part in range(SPLITS):
                total += tl.load(
                    partial_ptr + part * tokens * rows + where, valid, 0.0, cache_modifier=".cg"
                )
            if HAS_BIAS:
                total += tl.load(bias_ptr + row, row < rows, 0.0).to(tl.float32)[:, None]
            tl.store(y_ptr + where, total.to(dtype), valid)
            tl.store(counter_ptr + block, 0)
    else:
        if HAS_BIAS:
            sums += tl.load(bias_ptr + row, row < rows, 0.0).to(tl.float32)[:, None]
        tl.store(y_ptr + where, sums.to(dtype), valid)
