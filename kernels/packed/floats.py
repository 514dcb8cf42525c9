"""Products with plain numbers: F32 F16 BF16.  A block is one column, a token's block one float32: Tiles.d.

codes   number[n_in][16]   16 rows side by side
"""

from __future__ import annotations

import numpy as np
from numba import literally

from ..jit import by_type, inner
from ..simd import (
    bits,
    broadcast,
    convert,
    f32x16,
    fma,
    half_to_f32,
    i32x16,
    load,
    registers,
    round_to_bf16,
    round_to_half,
    u16x16,
    zero,
)
from ..threads import parallel_for
from .pack import put_block
from .tiles import (
    LANES,
    WIDE_TOKENS,
    block_of,
    fetch_ahead,
    kernel_for,
    multiply_tiles,
    packed_type,
    put_sums,
    tiles_in,
)

F32, F16, BF16 = packed_type("F32", __name__), packed_type("F16", __name__), packed_type("BF16", __name__)
CODE_BYTES = {F32: 64, F16: 32, BF16: 32}  # of a column of 16 rows
SUMS = 2 * WIDE_TOKENS  # of two groups: 24 of 32 registers, which leaves some for columns

column_of = by_type("column_of")  # (w, i) -> f32x16, the i-th column of 16 rows, counted over all groups
rounded_for = by_type("rounded_for")  # (w, x) -> f32, as ggml rounds a token's number before it meets such weights


@put_block.case(F32)
def put_f32(w, lines, i, r, blocks, at):
    for k in range(4):
        w.codes[64 * i + 4 * r + k] = blocks[at + k]


@put_block.case(F16, BF16)
def put_f16(w, lines, i, r, blocks, at):
    for k in range(2):
        w.codes[32 * i + 2 * r + k] = blocks[at + k]


@column_of.case(F32)
def column_f32(w, i):
    fetch_ahead(w, i, 64, 0)
    return load(f32x16, w.codes, 64 * i)


@column_of.case(F16)
def column_f16(w, i):
    fetch_ahead(w, i, 32, 0)
    return half_to_f32(load(u16x16, w.codes, 32 * i))


@column_of.case(BF16)
def column_bf16(w, i):
    fetch_ahead(w, i, 32, 0)
    return bits(f32x16, convert(i32x16, load(u16x16, w.codes, 32 * i)) << 16)


@rounded_for.case(F32)
def not_rounded(w, x):
    return x


@rounded_for.case(F16)
def rounded_to_half(w, x):
    return round_to_half(x)


@rounded_for.case(BF16)
def rounded_to_bf16(w, x):
    return round_to_bf16(x)


# --- filling tiles


@inner
def fill_some_numbers(w, rows, x, first, last):
    """Round f32 `rows` to tiles first .. last; a lane without a token gets zeros."""
    n = x.n_block
    if x.n_tok == 1:
        for i in range(n):
            x.d[i] = rounded_for(w, rows[i])
        return
    for tile in range(first, last):
        t, d = LANES * tile, x.d[LANES * tile * n : LANES * (tile + 1) * n]
        if t + LANES <= x.n_tok:
            a, b = rows[t * n : (t + 1) * n], rows[(t + 1) * n : (t + 2) * n]
            c, e = rows[(t + 2) * n : (t + 3) * n], rows[(t + 3) * n : (t + 4) * n]
            for i in range(n):
                d[4 * i], d[4 * i + 1] = rounded_for(w, a[i]), rounded_for(w, b[i])
                d[4 * i + 2], d[4 * i + 3] = rounded_for(w, c[i]), rounded_for(w, e[i])
        else:
            for lane in range(LANES):
                for i in range(n):
                    d[4 * i + lane] = rounded_for(w, rows[(t + lane) * n + i]) if t + lane < x.n_tok else np.float32(0)


# --- products


@inner
def dot_numbers(w, x, y, m_first, m_last, T, g_first, g_last):
    """Multiply tiles m_first .. m_last, T tokens at a time, with groups g_first .. g_last, two groups at a time.

    A token's number, once broadcast, serves both groups: loads bound this loop before products do.
    """
    literally(T)
    for g in range(g_first, g_last - 1, 2):
        sum_groups(w, x, y, m_first, m_last, int(T), g, 2)
    if (g_last - g_first) % 2:
        sum_groups(w, x, y, m_first, m_last, int(T), g_last - 1, 1)


@inner(copied=True)
def sum_groups(w, x, y, m_first, m_last, T, g, G):
    """As dot_numbers, for groups g .. g + G - 1: Numba compiles the loop once, and LLVM once for each T and G."""
    L, sums, columns = min(T, LANES), registers(f32x16, SUMS), registers(f32x16, 2)
    for m in range(m_first, m_last, T // L):
        for s in range(T * G):
            sums[s] = zero(f32x16)
        for i in range(w.n_block):
            for u in range(G):
                columns[u] = column_of(w, (g + u) * w.n_block + i)
            for t in range(T):
                number = broadcast(f32x16, x.d, block_of(x, m, i, t) * L + (t & 3))
                for u in range(G):
                    sums[G * t + u] = fma(columns[u], number, sums[G * t + u])
        for t in range(T):
            for u in range(G):
                put_sums(y, w, g + u, m, t, L, sums[G * t + u])


def matmul_for_numbers(format: type):
    """Make the kernel that multiplies with weights packed as `format`, as products.matmul_for does."""
    n_code = CODE_BYTES[format]

    def matmul(team, rows, codes, scales, n_tok, n_block, memory, y):
        w, x = format(codes, scales, codes.size // (n_code * n_block), n_block), tiles_in(memory, n_tok, n_block, 0, 0)
        parallel_for(team, fill_some_numbers, (w, rows, x), x.n_tile)
        multiply_tiles(team, dot_numbers, w, x, y)

    return kernel_for(format, matmul)
