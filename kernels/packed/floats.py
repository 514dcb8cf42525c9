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
from .tiles import LANES, Packed, fetch_ahead, lanes, multiply_tiles, new_tiles, place_of, put_sums

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
def put_numbers(rows, x):
    for t in range(lanes(x) * x.n_tile):
        for i in range(x.n_block):
            value = rows[t * x.n_block + i] if t < x.n_tok else np.float32(0)
            x.d[place_of(x, 0, i, t, lanes(x))] = value


@inner
def round_all(d, to_half):
    """As ggml rounds a token before it meets F16 or BF16 weights."""
    for i in range(d.size):
        d[i] = round_to_half(d[i]) if to_half else round_to_bf16(d[i])


# --- F32


@inner
def dot_f32(w, x, y, m_first, m_last, T, g_first, g_last):
    """`T` tokens at a time of tiles m_first .. m_last, for groups g_first .. g_last."""
    literally(T)
    L, sums = min(T, LANES), registers(f32x16, T)
    for g in range(g_first, g_last):
        for m in range(m_first, m_last, T // L):
            for t in range(T):
                sums[t] = zero(f32x16)
            for i in range(w.n_block):
                fetch_ahead(w, g * w.n_block + i, 64, 0)
                column = load(f32x16, w.codes, (g * w.n_block + i) * 64)
                for t in range(T):
                    sums[t] = fma(column, broadcast(f32x16, x.d, place_of(x, m, i, t, L)), sums[t])
            for t in range(T):
                put_sums(y, w, g, m, t, L, sums[t])


@kernel
def matmul_f32(team, rows, codes, scales, n_tok, n_block, y):
    w, x = Packed(codes, scales, codes.size // (64 * n_block), n_block), new_tiles(n_tok, n_block, 0)
    put_numbers(rows, x)
    multiply_tiles(team, dot_f32, w, x, y)


# --- F16


@inner
def dot_f16(w, x, y, m_first, m_last, T, g_first, g_last):
    """As dot_f32, each half made a float on its way."""
    literally(T)
    L, sums = min(T, LANES), registers(f32x16, T)
    for g in range(g_first, g_last):
        for m in range(m_first, m_last, T // L):
            for t in range(T):
                sums[t] = zero(f32x16)
            for i in range(w.n_block):
                fetch_ahead(w, g * w.n_block + i, 32, 0)
                column = half_to_f32(load(u16x16, w.codes, (g * w.n_block + i) * 32))
                for t in range(T):
                    sums[t] = fma(column, broadcast(f32x16, x.d, place_of(x, m, i, t, L)), sums[t])
            for t in range(T):
                put_sums(y, w, g, m, t, L, sums[t])


@kernel
def matmul_f16(team, rows, codes, scales, n_tok, n_block, y):
    w, x = Packed(codes, scales, codes.size // (32 * n_block), n_block), new_tiles(n_tok, n_block, 0)
    put_numbers(rows, x)
    round_all(x.d, True)
    multiply_tiles(team, dot_f16, w, x, y)


# --- BF16


@inner
def dot_bf16(w, x, y, m_first, m_last, T, g_first, g_last):
    """As dot_f32; a bfloat16 is the upper half of a float."""
    literally(T)
    L, sums = min(T, LANES), registers(f32x16, T)
    for g in range(g_first, g_last):
        for m in range(m_first, m_last, T // L):
            for t in range(T):
                sums[t] = zero(f32x16)
            for i in range(w.n_block):
                fetch_ahead(w, g * w.n_block + i, 32, 0)
                column = bits(f32x16, convert(i32x16, load(u16x16, w.codes, (g * w.n_block + i) * 32)) << 16)
                for t in range(T):
                    sums[t] = fma(column, broadcast(f32x16, x.d, place_of(x, m, i, t, L)), sums[t])
            for t in range(T):
                put_sums(y, w, g, m, t, L, sums[t])


@kernel
def matmul_bf16(team, rows, codes, scales, n_tok, n_block, y):
    w, x = Packed(codes, scales, codes.size // (32 * n_block), n_block), new_tiles(n_tok, n_block, 0)
    put_numbers(rows, x)
    round_all(x.d, False)
    multiply_tiles(team, dot_bf16, w, x, y)
