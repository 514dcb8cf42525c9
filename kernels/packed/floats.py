"""Products with plain numbers: F32 F16 BF16.  A block is one column, a token's block one float32: Tiles.d.

codes   number[n_in][16]   16 rows side by side
"""

from __future__ import annotations

import numpy as np
from numba import literally

from ..jit import inner, kernel
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
from .tiles import LANES, WIDE, Packed, fetch_ahead, multiply_tiles, new_tiles, place_of, put_sums

F32, F16, BF16 = 0, 1, 2
SUMS = 2 * WIDE  # of two groups: 24 of 32 registers, which leaves some for columns

# --- packing, and filling tiles


@inner
def pack_numbers_part(blocks, codes, n_block, first, last):
    for g in range(first, last):
        for r in range(min(16, blocks.size // n_block - 16 * g)):
            for i in range(n_block):
                codes[(g * n_block + i) * 16 + r] = blocks[(16 * g + r) * n_block + i]


@kernel
def pack_32_bits(team, blocks, w, codes):
    parallel_for(team, pack_numbers_part, (blocks.view(np.int32), codes, w.n_block), w.n_group)


@kernel
def pack_16_bits(team, blocks, w, codes):
    parallel_for(team, pack_numbers_part, (blocks.view(np.int16), codes.view(np.int16), w.n_block), w.n_group)


@inner
def put_numbers(team, rows, x, kind):
    parallel_for(team, put_numbers_part, (rows, x, kind), x.n_tile)


@inner(makes_arrays=True)
def put_numbers_part(rows, x, kind, first, last):
    """Tiles first .. last of f32 `rows`, rounded."""
    n = x.n_block
    if x.n_tok == 1:
        for i in range(n):
            x.d[i] = rounded(rows[i], kind)
        return
    nothing = np.zeros(n, np.float32)
    for tile in range(first, last):
        a, b = row_of(rows, nothing, 4 * tile, x), row_of(rows, nothing, 4 * tile + 1, x)
        c, e = row_of(rows, nothing, 4 * tile + 2, x), row_of(rows, nothing, 4 * tile + 3, x)
        d = x.d[4 * tile * n : 4 * (tile + 1) * n]
        for i in range(n):
            d[4 * i], d[4 * i + 1] = rounded(a[i], kind), rounded(b[i], kind)
            d[4 * i + 2], d[4 * i + 3] = rounded(c[i], kind), rounded(e[i], kind)


@inner(makes_arrays=True)
def row_of(rows, nothing, t, x):
    return rows[t * x.n_block : (t + 1) * x.n_block] if t < x.n_tok else nothing


@inner
def rounded(value, kind):
    """As ggml rounds a token's number before it meets weights of `kind`."""
    if kind == F16:
        return round_to_half(value)
    return round_to_bf16(value) if kind == BF16 else value


# --- products


@inner
def column_of(w, block, kind):
    """The block-th column of 16 rows as f32x16."""
    literally(kind)
    if kind == F32:
        fetch_ahead(w, block, 64, 0)
        return load(f32x16, w.codes, block * 64)
    fetch_ahead(w, block, 32, 0)
    halves = load(u16x16, w.codes, block * 32)
    return half_to_f32(halves) if kind == F16 else bits(f32x16, convert(i32x16, halves) << 16)


@inner
def dot_numbers(w, x, y, m_first, m_last, T, g_first, g_last, kind):
    """`T` tokens at a time of tiles m_first .. m_last, for groups g_first .. g_last, two groups at a time.

    A token's number, once broadcast, serves both: loads bound this loop before products do.
    """
    literally(T)
    literally(kind)
    for g in range(g_first, g_last - 1, 2):
        sum_groups(w, x, y, m_first, m_last, T, g, 2, kind)
    if (g_last - g_first) % 2:
        sum_groups(w, x, y, m_first, m_last, T, g_last - 1, 1, kind)


@inner
def sum_groups(w, x, y, m_first, m_last, T, g, G, kind):
    """As dot_numbers, for groups g .. g + G - 1."""
    literally(T)
    literally(G)
    literally(kind)
    L, sums, columns = min(T, LANES), registers(f32x16, SUMS), registers(f32x16, 2)
    for m in range(m_first, m_last, T // L):
        for s in range(T * G):
            sums[s] = zero(f32x16)
        for i in range(w.n_block):
            for u in range(G):
                columns[u] = column_of(w, (g + u) * w.n_block + i, kind)
            for t in range(T):
                number = broadcast(f32x16, x.d, place_of(x, m, i, t, L))
                for u in range(G):
                    sums[G * t + u] = fma(columns[u], number, sums[G * t + u])
        for t in range(T):
            for u in range(G):
                put_sums(y, w, g + u, m, t, L, sums[G * t + u])


@inner
def dot_f32(w, x, y, m_first, m_last, T, g_first, g_last):
    literally(T)
    dot_numbers(w, x, y, m_first, m_last, T, g_first, g_last, F32)


@inner
def dot_f16(w, x, y, m_first, m_last, T, g_first, g_last):
    literally(T)
    dot_numbers(w, x, y, m_first, m_last, T, g_first, g_last, F16)


@inner
def dot_bf16(w, x, y, m_first, m_last, T, g_first, g_last):
    literally(T)
    dot_numbers(w, x, y, m_first, m_last, T, g_first, g_last, BF16)


@kernel
def matmul_f32(team, rows, codes, scales, n_tok, n_block, y):
    w, x = Packed(codes, scales, codes.size // (64 * n_block), n_block), new_tiles(n_tok, n_block, 0)
    put_numbers(team, rows, x, F32)
    multiply_tiles(team, dot_f32, w, x, y)


@kernel
def matmul_f16(team, rows, codes, scales, n_tok, n_block, y):
    w, x = Packed(codes, scales, codes.size // (32 * n_block), n_block), new_tiles(n_tok, n_block, 0)
    put_numbers(team, rows, x, F16)
    multiply_tiles(team, dot_f16, w, x, y)


@kernel
def matmul_bf16(team, rows, codes, scales, n_tok, n_block, y):
    w, x = Packed(codes, scales, codes.size // (32 * n_block), n_block), new_tiles(n_tok, n_block, 0)
    put_numbers(team, rows, x, BF16)
    multiply_tiles(team, dot_bf16, w, x, y)
