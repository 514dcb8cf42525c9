"""Products with blocks of 32 weights: Q4_0 Q4_1 Q5_0 Q5_1 Q8_0.

In all of them byte (j, r, c) of 64-byte line j holds what row r has at column 4 j + c: one dot4 with four columns of a
token, broadcast, serves 16 rows.
"""

from __future__ import annotations

import numpy as np
from numba import literally

from ..jit import inner, kernel
from ..simd import (
    SIGNED_BIAS,
    bits,
    broadcast,
    convert,
    dot4,
    dot4_signed,
    f32x16,
    fma,
    half_to_f32,
    i8x64,
    i32x4,
    i32x16,
    load,
    registers,
    scatter,
    u8x16,
    u8x64,
    u16x16,
    zero,
)
from ..threads import parallel_for
from .tiles import LANES, Packed, fetch_ahead, four_codes, multiply_tiles, new_tiles, place_of, put_sums, quantize_q8_0

# --- Q4_0
# codes   u8[4][16][4]   column 4 j + c in the low four bits, column 16 + 4 j + c in the high
# scales  f16[16]


@inner
def pack_q4_0_part(blocks, w, codes, first, last):
    """Groups first .. last.  blocks u8, flat [n_out, n_block, 18]; codes is w.codes as i32: four bytes move together"""
    for g in range(first, last):
        for r in range(min(16, blocks.size // (18 * w.n_block) - 16 * g)):
            for b in range(w.n_block):
                source, target = 18 * ((16 * g + r) * w.n_block + b), g * w.n_block + b
                put_bytes(w.scales, 32 * target + 2 * r, blocks, source, 2)
                scatter(codes, 64 * target + r, 16, bits(i32x4, load(u8x16, blocks, source + 2)))


@inner
def put_bytes(to, i, blocks, j, n):
    for k in range(n):
        to[i + k] = blocks[j + k]


@kernel
def pack_q4_0(team, blocks, w, codes):
    parallel_for(team, pack_q4_0_part, (blocks, w, codes), w.n_group)


@inner
def dot_q4_0(w, x, y, m_first, m_last, T, g_first, g_last):
    """`T` tokens at a time of tiles m_first .. m_last, for groups g_first .. g_last."""
    literally(T)
    L, sums, s = min(T, LANES), registers(f32x16, T), registers(i32x16, T)
    for g in range(g_first, g_last):
        for m in range(m_first, m_last, T // L):
            for t in range(T):
                sums[t] = zero(f32x16)
            for b in range(w.n_block):
                block = g * w.n_block + b
                fetch_ahead(w, block, 256, 32)
                for t in range(T):
                    s[t] = broadcast(i32x16, x.start, place_of(x, m, b, t, L))  # the codes stand for q - 8
                for j in range(4):
                    q = load(u8x64, w.codes, 256 * block + 64 * j)
                    for t in range(T):
                        s[t] = dot4(s[t], q & 15, four_codes(x, m, b, j, t, L))
                    for t in range(T):
                        s[t] = dot4(s[t], q >> 4, four_codes(x, m, b, 4 + j, t, L))
                d = half_to_f32(load(u16x16, w.scales, 32 * block))
                for t in range(T):
                    sums[t] = fma(convert(f32x16, s[t]), d * broadcast(f32x16, x.d, place_of(x, m, b, t, L)), sums[t])
            for t in range(T):
                put_sums(y, w, g, m, t, L, sums[t])


@kernel
def matmul_q4_0(team, rows, codes, scales, n_tok, n_block, y):
    w, x = Packed(codes, scales, codes.size // (256 * n_block), n_block), new_tiles(n_tok, n_block, 1)
    quantize_q8_0(team, rows, x, 8)
    multiply_tiles(team, dot_q4_0, w, x, y)


# --- Q4_1
# codes   as Q4_0
# scales  f16[16] d, f16[16] m;  y gets m times the sum of a token's block


@inner
def pack_q4_1_part(blocks, w, codes, first, last):
    """As pack_q4_0_part, minima beside the scales."""
    for g in range(first, last):
        for r in range(min(16, blocks.size // (20 * w.n_block) - 16 * g)):
            for b in range(w.n_block):
                source, target = 20 * ((16 * g + r) * w.n_block + b), g * w.n_block + b
                put_bytes(w.scales, 64 * target + 2 * r, blocks, source, 2)
                put_bytes(w.scales, 64 * target + 32 + 2 * r, blocks, source + 2, 2)
                scatter(codes, 64 * target + r, 16, bits(i32x4, load(u8x16, blocks, source + 4)))


@kernel
def pack_q4_1(team, blocks, w, codes):
    parallel_for(team, pack_q4_1_part, (blocks, w, codes), w.n_group)


@inner
def dot_q4_1(w, x, y, m_first, m_last, T, g_first, g_last):
    """As dot_q4_0, plus a block's minimum times the sum of the token's block."""
    literally(T)
    L, sums, s = min(T, LANES), registers(f32x16, T), registers(i32x16, T)
    for g in range(g_first, g_last):
        for m in range(m_first, m_last, T // L):
            for t in range(T):
                sums[t] = zero(f32x16)
            for b in range(w.n_block):
                block = g * w.n_block + b
                fetch_ahead(w, block, 256, 64)
                for t in range(T):
                    s[t] = zero(i32x16)
                for j in range(4):
                    q = load(u8x64, w.codes, 256 * block + 64 * j)
                    for t in range(T):
                        s[t] = dot4(s[t], q & 15, four_codes(x, m, b, j, t, L))
                    for t in range(T):
                        s[t] = dot4(s[t], q >> 4, four_codes(x, m, b, 4 + j, t, L))
                d = half_to_f32(load(u16x16, w.scales, 64 * block))
                low = half_to_f32(load(u16x16, w.scales, 64 * block + 32))
                for t in range(T):
                    place = place_of(x, m, b, t, L)
                    sums[t] = fma(convert(f32x16, s[t]), d * broadcast(f32x16, x.d, place), sums[t])
                    sums[t] = fma(low, broadcast(f32x16, x.sums, place), sums[t])
            for t in range(T):
                put_sums(y, w, g, m, t, L, sums[t])


@kernel
def matmul_q4_1(team, rows, codes, scales, n_tok, n_block, y):
    w, x = Packed(codes, scales, codes.size // (256 * n_block), n_block), new_tiles(n_tok, n_block, 1)
    quantize_q8_0(team, rows, x, 0)
    multiply_tiles(team, dot_q4_1, w, x, y)


# --- Q5_0
# codes   as Q4_0, then u8[16][4] fifth bits: bit i of byte (r, c) is that of column 4 i + c
# scales  f16[16]


@inner
def put_fifth_bits(codes, i, blocks, j):
    """The 32 bits of a row, at byte j of blocks, to the four bytes codes[i]: bit 4 i + c becomes bit i of byte c."""
    bit = np.uint32(0)
    for k in range(4):
        bit |= np.uint32(blocks[j + k]) << np.uint32(8 * k)
    word = np.uint32(0)
    for k in range(32):
        word |= ((bit >> np.uint32(k)) & np.uint32(1)) << np.uint32(8 * (k % 4) + k // 4)
    codes[i] = np.int32(word)


@inner
def pack_q5_0_part(blocks, w, codes, first, last):
    """As pack_q4_0_part, the fifth bits after the nibbles."""
    for g in range(first, last):
        for r in range(min(16, blocks.size // (22 * w.n_block) - 16 * g)):
            for b in range(w.n_block):
                source, target = 22 * ((16 * g + r) * w.n_block + b), g * w.n_block + b
                put_bytes(w.scales, 32 * target + 2 * r, blocks, source, 2)
                put_fifth_bits(codes, 80 * target + 64 + r, blocks, source + 2)
                scatter(codes, 80 * target + r, 16, bits(i32x4, load(u8x16, blocks, source + 6)))


@kernel
def pack_q5_0(team, blocks, w, codes):
    parallel_for(team, pack_q5_0_part, (blocks, w, codes), w.n_group)


@inner
def dot_q5_0(w, x, y, m_first, m_last, T, g_first, g_last):
    """As dot_q4_0, the fifth bits put back on the nibbles."""
    literally(T)
    L, sums, s = min(T, LANES), registers(f32x16, T), registers(i32x16, T)
    for g in range(g_first, g_last):
        for m in range(m_first, m_last, T // L):
            for t in range(T):
                sums[t] = zero(f32x16)
            for b in range(w.n_block):
                block = g * w.n_block + b
                fetch_ahead(w, block, 320, 32)
                for t in range(T):
                    s[t] = broadcast(i32x16, x.start, place_of(x, m, b, t, L))  # the codes stand for q - 16
                fifth = load(u8x64, w.codes, 320 * block + 256)
                for j in range(4):
                    q = load(u8x64, w.codes, 320 * block + 64 * j)
                    low, high = q & 15 | (fifth << (4 - j)) & 16, q >> 4 | (fifth >> j) & 16
                    for t in range(T):
                        s[t] = dot4(s[t], low, four_codes(x, m, b, j, t, L))
                    for t in range(T):
                        s[t] = dot4(s[t], high, four_codes(x, m, b, 4 + j, t, L))
                d = half_to_f32(load(u16x16, w.scales, 32 * block))
                for t in range(T):
                    sums[t] = fma(convert(f32x16, s[t]), d * broadcast(f32x16, x.d, place_of(x, m, b, t, L)), sums[t])
            for t in range(T):
                put_sums(y, w, g, m, t, L, sums[t])


@kernel
def matmul_q5_0(team, rows, codes, scales, n_tok, n_block, y):
    w, x = Packed(codes, scales, codes.size // (320 * n_block), n_block), new_tiles(n_tok, n_block, 1)
    quantize_q8_0(team, rows, x, 16)
    multiply_tiles(team, dot_q5_0, w, x, y)


# --- Q5_1
# codes   as Q5_0
# scales  f16[16] d, f16[16] m


@inner
def pack_q5_1_part(blocks, w, codes, first, last):
    """As pack_q5_0_part, minima beside the scales."""
    for g in range(first, last):
        for r in range(min(16, blocks.size // (24 * w.n_block) - 16 * g)):
            for b in range(w.n_block):
                source, target = 24 * ((16 * g + r) * w.n_block + b), g * w.n_block + b
                put_bytes(w.scales, 64 * target + 2 * r, blocks, source, 2)
                put_bytes(w.scales, 64 * target + 32 + 2 * r, blocks, source + 2, 2)
                put_fifth_bits(codes, 80 * target + 64 + r, blocks, source + 4)
                scatter(codes, 80 * target + r, 16, bits(i32x4, load(u8x16, blocks, source + 8)))


@kernel
def pack_q5_1(team, blocks, w, codes):
    parallel_for(team, pack_q5_1_part, (blocks, w, codes), w.n_group)


@inner
def dot_q5_1(w, x, y, m_first, m_last, T, g_first, g_last):
    """As dot_q5_0, plus a block's minimum times the sum of the token's block."""
    literally(T)
    L, sums, s = min(T, LANES), registers(f32x16, T), registers(i32x16, T)
    for g in range(g_first, g_last):
        for m in range(m_first, m_last, T // L):
            for t in range(T):
                sums[t] = zero(f32x16)
            for b in range(w.n_block):
                block = g * w.n_block + b
                fetch_ahead(w, block, 320, 64)
                for t in range(T):
                    s[t] = zero(i32x16)
                fifth = load(u8x64, w.codes, 320 * block + 256)
                for j in range(4):
                    q = load(u8x64, w.codes, 320 * block + 64 * j)
                    low, high = q & 15 | (fifth << (4 - j)) & 16, q >> 4 | (fifth >> j) & 16
                    for t in range(T):
                        s[t] = dot4(s[t], low, four_codes(x, m, b, j, t, L))
                    for t in range(T):
                        s[t] = dot4(s[t], high, four_codes(x, m, b, 4 + j, t, L))
                d = half_to_f32(load(u16x16, w.scales, 64 * block))
                least = half_to_f32(load(u16x16, w.scales, 64 * block + 32))
                for t in range(T):
                    place = place_of(x, m, b, t, L)
                    sums[t] = fma(convert(f32x16, s[t]), d * broadcast(f32x16, x.d, place), sums[t])
                    sums[t] = fma(least, broadcast(f32x16, x.sums, place), sums[t])
            for t in range(T):
                put_sums(y, w, g, m, t, L, sums[t])


@kernel
def matmul_q5_1(team, rows, codes, scales, n_tok, n_block, y):
    w, x = Packed(codes, scales, codes.size // (320 * n_block), n_block), new_tiles(n_tok, n_block, 1)
    quantize_q8_0(team, rows, x, 0)
    multiply_tiles(team, dot_q5_1, w, x, y)


# --- Q8_0
# codes   i8[8][16][4]
# scales  f16[16]


@inner
def pack_q8_0_part(blocks, w, codes, first, last):
    """As pack_q4_0_part, for bytes."""
    for g in range(first, last):
        for r in range(min(16, blocks.size // (34 * w.n_block) - 16 * g)):
            for b in range(w.n_block):
                source, target = 34 * ((16 * g + r) * w.n_block + b), g * w.n_block + b
                put_bytes(w.scales, 32 * target + 2 * r, blocks, source, 2)
                scatter(codes, 128 * target + r, 16, bits(i32x4, load(u8x16, blocks, source + 2)))
                scatter(codes, 128 * target + 64 + r, 16, bits(i32x4, load(u8x16, blocks, source + 18)))


@kernel
def pack_q8_0(team, blocks, w, codes):
    parallel_for(team, pack_q8_0_part, (blocks, w, codes), w.n_group)


@inner
def dot_q8_0(w, x, y, m_first, m_last, T, g_first, g_last):
    """As dot_q4_0, for signed bytes."""
    literally(T)
    L, sums, s = min(T, LANES), registers(f32x16, T), registers(i32x16, T)
    for g in range(g_first, g_last):
        for m in range(m_first, m_last, T // L):
            for t in range(T):
                sums[t] = zero(f32x16)
            for b in range(w.n_block):
                block = g * w.n_block + b
                fetch_ahead(w, block, 512, 32)
                for t in range(T):
                    s[t] = broadcast(i32x16, x.start, place_of(x, m, b, t, L))
                for j in range(8):
                    q = load(i8x64, w.codes, 512 * block + 64 * j)
                    for t in range(T):
                        s[t] = dot4_signed(s[t], q, four_codes(x, m, b, j, t, L))
                d = half_to_f32(load(u16x16, w.scales, 32 * block))
                for t in range(T):
                    sums[t] = fma(convert(f32x16, s[t]), d * broadcast(f32x16, x.d, place_of(x, m, b, t, L)), sums[t])
            for t in range(T):
                put_sums(y, w, g, m, t, L, sums[t])


@kernel
def matmul_q8_0(team, rows, codes, scales, n_tok, n_block, y):
    w, x = Packed(codes, scales, codes.size // (512 * n_block), n_block), new_tiles(n_tok, n_block, 1)
    quantize_q8_0(team, rows, x, SIGNED_BIAS)
    multiply_tiles(team, dot_q8_0, w, x, y)
