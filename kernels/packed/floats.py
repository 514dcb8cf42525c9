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

FULL, HALF, BF16 = 0, 1, 2  # what activations are rounded to

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
def put_numbers_part(rows, x, kind, first, last):
    """Tiles first .. last of f32 `rows`, rounded as ggml does before they meet weights of that `kind`."""
    n_block, n_lane = x.n_block, lanes(x)
    for tile in range(first, last):
        d = x.d[tile * n_block * n_lane : (tile + 1) * n_block * n_lane]
        for lane in range(n_lane):
            t = tile * n_lane + lane
            if t < x.n_tok:
                row = rows[t * n_block : (t + 1) * n_block]
                for i in range(row.size):
                    d[i * n_lane + lane] = row[i]
            else:
                for i in range(n_block):
                    d[i * n_lane + lane] = 0
        if kind == HALF:
            for i in range(d.size):
                d[i] = round_to_half(d[i])
        elif kind == BF16:
            for i in range(d.size):
                d[i] = round_to_bf16(d[i])


@inner
def put_numbers(team, rows, x, kind):
    parallel_for(team, put_numbers_part, (rows, x, kind), x.n_tile)


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
    put_numbers(team, rows, x, FULL)
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
    put_numbers(team, rows, x, HALF)
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
    put_numbers(team, rows, x, BF16)
    multiply_tiles(team, dot_bf16, w, x, y)
