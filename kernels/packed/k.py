"""Products with super-blocks of 256 weights: Q2_K Q3_K Q4_K Q5_K Q6_K.

A super-block becomes eight blocks of 32 columns in the layout of block32.py, and its scales whole bytes.  Bits above
the lower four, or all where there are fewer, lie in planes of 64 bytes u8[16][4]:

    ones    bit i of byte (r, c) belongs to column 4 i + c, i < 8
    twos    bits 2 i, 2 i + 1 of byte (r, c) belong to column 4 i + c, i < 4; columns 16 .. 31 have a second plane

Activations are rounded to Q8_K; its scale stands in all eight blocks of a token.
"""

from __future__ import annotations

import numpy as np
from numba import literally

from ..jit import inner, kernel
from ..simd import (
    broadcast,
    convert,
    dot4,
    f32x16,
    fma,
    half_to_f32,
    i8x16,
    i32x16,
    load,
    registers,
    store,
    u8x16,
    u8x64,
    u16x16,
    zero,
)
from ..threads import parallel_for
from .block32 import put_bytes
from .tiles import LANES, Packed, fetch_ahead, four_codes, multiply_tiles, new_tiles, place_of, put_sums, quantize_q8_k

# --- packing: bit fields to one byte a weight, and those to lines and planes


@inner
def add_field(blocks, at, n, bits, run, shift, q):
    """q |= what `n` bytes hold in fields of `bits`: of each run of bytes first all lowest fields, then the next.

    Runs are of 16 bytes or a multiple.
    """
    for i in range(0, n, 16):
        fields = load(u8x16, blocks, at + i)
        for s in range(8 // bits):
            to = i // run * run * (8 // bits) + s * run + i % run
            field = (fields >> (bits * s) & ((1 << bits) - 1)) << shift
            store(q, to, load(u8x16, q, to) | field)


@inner
def put_nibbles(codes, place, q, i):
    """Four lines: the lower four bits of columns 4 j .. and 16 + 4 j .. of block i.  q u32 [64], four weights each"""
    for j in range(4):
        codes[place + 16 * j] = (q[8 * i + j] & 0x0F0F0F0F) | (q[8 * i + 4 + j] & 0x0F0F0F0F) << 4


@inner
def put_ones(codes, place, q, i, shift):
    word = 0
    for j in range(8):
        word |= (q[8 * i + j] >> shift & 0x01010101) << j
    codes[place] = word


@inner
def put_twos(codes, place, q, i, shift):
    for half in range(2):
        word = 0
        for j in range(4):
            word |= (q[8 * i + 4 * half + j] >> shift & 0x03030303) << 2 * j
        codes[place + 16 * half] = word


# --- Q4_K
# codes   8 x u8[4][16][4] nibbles
# scales  f16[16] d, f16[16] dmin, then for each block u8[16] scales, u8[16] mins


@inner
def put_scales_and_mins(scales, place, blocks, at, r):
    """The 12 bytes of Q4_K's and Q5_K's scales, unpacked."""
    for i in range(8):
        if i < 4:
            scale, least = blocks[at + i] & 63, blocks[at + 4 + i] & 63
        else:
            scale = (blocks[at + 4 + i] & 15) | (blocks[at + i - 4] >> 6) << 4
            least = (blocks[at + 4 + i] >> 4) | (blocks[at + i] >> 6) << 4
        scales[place + 32 * i + r], scales[place + 32 * i + 16 + r] = scale, least


@inner(makes_arrays=True)
def pack_q4_k_part(blocks, w, codes, first, last):
    """Groups first .. last.  blocks u8, flat [n_out, n_block, 144]; codes is w.codes as i32"""
    q = np.empty(256, np.uint8)
    pack_q4_k_groups(blocks, w, codes, q, q.view(np.uint32), first, last)


@inner
def pack_q4_k_groups(blocks, w, codes, q, fours, first, last):
    """With room for the codes of a block: q u8 [256], which is fours u32 [64] too."""
    for g in range(first, last):
        for r in range(min(16, blocks.size // (144 * w.n_block) - 16 * g)):
            for b in range(w.n_block):
                source, target = 144 * ((16 * g + r) * w.n_block + b), g * w.n_block + b
                put_bytes(w.scales, 320 * target + 2 * r, blocks, source, 2)
                put_bytes(w.scales, 320 * target + 32 + 2 * r, blocks, source + 2, 2)
                put_scales_and_mins(w.scales, 320 * target + 64, blocks, source + 4, r)
                q[:] = 0
                add_field(blocks, source + 16, 128, 4, 32, 0, q)
                for i in range(8):
                    put_nibbles(codes, 512 * target + 64 * i + r, fours, i)


@kernel
def pack_q4_k(team, blocks, w, codes):
    parallel_for(team, pack_q4_k_part, (blocks, w, codes), w.n_group)


@inner
def dot_q4_k(w, x, y, m_first, m_last, T, g_first, g_last):
    """`T` tokens at a time of tiles m_first .. m_last, for groups g_first .. g_last."""
    literally(T)
    L, sums, s = min(T, LANES), registers(f32x16, T), registers(i32x16, T)
    for g in range(g_first, g_last):
        for m in range(m_first, m_last, T // L):
            for t in range(T):
                sums[t] = zero(f32x16)
            for b in range(8 * w.n_block):
                block, at = g * 8 * w.n_block + b, 320 * (g * w.n_block + b // 8)
                fetch_ahead(w, block, 256, 40)
                for t in range(T):
                    s[t] = zero(i32x16)
                for j in range(4):
                    q = load(u8x64, w.codes, 256 * block + 64 * j)
                    for t in range(T):
                        s[t] = dot4(s[t], q & 15, four_codes(x, m, b, j, t, L))
                    for t in range(T):
                        s[t] = dot4(s[t], q >> 4, four_codes(x, m, b, 4 + j, t, L))
                scale = half_to_f32(load(u16x16, w.scales, at))
                scale = scale * convert(f32x16, load(u8x16, w.scales, at + 64 + b % 8 * 32))
                least = half_to_f32(load(u16x16, w.scales, at + 32)) * np.float32(-1)
                least = least * convert(f32x16, load(u8x16, w.scales, at + 80 + b % 8 * 32))
                for t in range(T):
                    place = place_of(x, m, b, t, L)
                    sums[t] = fma(convert(f32x16, s[t]), scale * broadcast(f32x16, x.d, place), sums[t])
                    sums[t] = fma(least, broadcast(f32x16, x.sums, place), sums[t])
            for t in range(T):
                put_sums(y, w, g, m, t, L, sums[t])


@kernel
def matmul_q4_k(team, rows, codes, scales, n_tok, n_block, y):
    w, x = Packed(codes, scales, codes.size // (2048 * n_block), n_block), new_tiles(n_tok, 8 * n_block, 1)
    quantize_q8_k(team, rows, x, 0)
    multiply_tiles(team, dot_q4_k, w, x, y)


# --- Q5_K
# codes   8 x (nibbles, ones: the fifth bits)
# scales  as Q4_K


@inner(makes_arrays=True)
def pack_q5_k_part(blocks, w, codes, first, last):
    """As pack_q4_k_part, the fifth bits as ones."""
    q = np.empty(256, np.uint8)
    pack_q5_k_groups(blocks, w, codes, q, q.view(np.uint32), first, last)


@inner
def pack_q5_k_groups(blocks, w, codes, q, fours, first, last):
    """With room for the codes of a block: q u8 [256], which is fours u32 [64] too."""
    for g in range(first, last):
        for r in range(min(16, blocks.size // (176 * w.n_block) - 16 * g)):
            for b in range(w.n_block):
                source, target = 176 * ((16 * g + r) * w.n_block + b), g * w.n_block + b
                put_bytes(w.scales, 320 * target + 2 * r, blocks, source, 2)
                put_bytes(w.scales, 320 * target + 32 + 2 * r, blocks, source + 2, 2)
                put_scales_and_mins(w.scales, 320 * target + 64, blocks, source + 4, r)
                q[:] = 0
                add_field(blocks, source + 16, 32, 1, 32, 4, q)
                add_field(blocks, source + 48, 128, 4, 32, 0, q)
                for i in range(8):
                    put_nibbles(codes, 640 * target + 80 * i + r, fours, i)
                    put_ones(codes, 640 * target + 80 * i + 64 + r, fours, i, 4)


@kernel
def pack_q5_k(team, blocks, w, codes):
    parallel_for(team, pack_q5_k_part, (blocks, w, codes), w.n_group)


@inner
def dot_q5_k(w, x, y, m_first, m_last, T, g_first, g_last):
    """As dot_q4_k, the fifth bits put back on the nibbles."""
    literally(T)
    L, sums, s = min(T, LANES), registers(f32x16, T), registers(i32x16, T)
    for g in range(g_first, g_last):
        for m in range(m_first, m_last, T // L):
            for t in range(T):
                sums[t] = zero(f32x16)
            for b in range(8 * w.n_block):
                block, at = g * 8 * w.n_block + b, 320 * (g * w.n_block + b // 8)
                fetch_ahead(w, block, 320, 40)
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
                scale = half_to_f32(load(u16x16, w.scales, at))
                scale = scale * convert(f32x16, load(u8x16, w.scales, at + 64 + b % 8 * 32))
                least = half_to_f32(load(u16x16, w.scales, at + 32)) * np.float32(-1)
                least = least * convert(f32x16, load(u8x16, w.scales, at + 80 + b % 8 * 32))
                for t in range(T):
                    place = place_of(x, m, b, t, L)
                    sums[t] = fma(convert(f32x16, s[t]), scale * broadcast(f32x16, x.d, place), sums[t])
                    sums[t] = fma(least, broadcast(f32x16, x.sums, place), sums[t])
            for t in range(T):
                put_sums(y, w, g, m, t, L, sums[t])


@kernel
def matmul_q5_k(team, rows, codes, scales, n_tok, n_block, y):
    w, x = Packed(codes, scales, codes.size // (2560 * n_block), n_block), new_tiles(n_tok, 8 * n_block, 1)
    quantize_q8_k(team, rows, x, 0)
    multiply_tiles(team, dot_q5_k, w, x, y)


# --- Q6_K: a scale for 16 columns, so the low and the high nibbles of a block are two sums
# codes   8 x (nibbles, twos: the upper two bits)
# scales  f16[16] d, then for each 16 columns i8[16]


@inner(makes_arrays=True)
def pack_q6_k_part(blocks, w, codes, first, last):
    """As pack_q4_k_part, the upper two bits as twos."""
    q = np.empty(256, np.uint8)
    pack_q6_k_groups(blocks, w, codes, q, q.view(np.uint32), first, last)


@inner
def pack_q6_k_groups(blocks, w, codes, q, fours, first, last):
    """With room for the codes of a block: q u8 [256], which is fours u32 [64] too."""
    for g in range(first, last):
        for r in range(min(16, blocks.size // (210 * w.n_block) - 16 * g)):
            for b in range(w.n_block):
                source, target = 210 * ((16 * g + r) * w.n_block + b), g * w.n_block + b
                put_bytes(w.scales, 288 * target + 2 * r, blocks, source + 208, 2)
                for i in range(16):
                    w.scales[288 * target + 32 + 16 * i + r] = blocks[source + 192 + i]
                q[:] = 0
                add_field(blocks, source, 128, 4, 64, 0, q)
                add_field(blocks, source + 128, 64, 2, 32, 4, q)
                for i in range(8):
                    put_nibbles(codes, 768 * target + 96 * i + r, fours, i)
                    put_twos(codes, 768 * target + 96 * i + 64 + r, fours, i, 4)


@kernel
def pack_q6_k(team, blocks, w, codes):
    parallel_for(team, pack_q6_k_part, (blocks, w, codes), w.n_group)


@inner
def dot_q6_k(w, x, y, m_first, m_last, T, g_first, g_last):
    """As dot_q4_k, with two sums a block and no minima."""
    literally(T)
    L, sums, s = min(T, LANES), registers(f32x16, T), registers(i32x16, T)
    for g in range(g_first, g_last):
        for m in range(m_first, m_last, T // L):
            for t in range(T):
                sums[t] = zero(f32x16)
            for b in range(8 * w.n_block):
                block, at = g * 8 * w.n_block + b, 288 * (g * w.n_block + b // 8)
                fetch_ahead(w, block, 384, 36)
                d = half_to_f32(load(u16x16, w.scales, at))
                for t in range(T):
                    s[t] = broadcast(i32x16, x.start, start_of(x, m, b, 0, t, L))  # the codes stand for q - 32
                upper = load(u8x64, w.codes, 384 * block + 256)
                for j in range(4):
                    q = load(u8x64, w.codes, 384 * block + 64 * j) & 15 | (upper >> 2 * j & 3) << 4
                    for t in range(T):
                        s[t] = dot4(s[t], q, four_codes(x, m, b, j, t, L))
                scale = d * convert(f32x16, load(i8x16, w.scales, at + 32 + b % 8 * 32))
                for t in range(T):
                    sums[t] = fma(
                        convert(f32x16, s[t]), scale * broadcast(f32x16, x.d, place_of(x, m, b, t, L)), sums[t]
                    )
                for t in range(T):
                    s[t] = broadcast(i32x16, x.start, start_of(x, m, b, 1, t, L))
                upper = load(u8x64, w.codes, 384 * block + 320)
                for j in range(4):
                    q = load(u8x64, w.codes, 384 * block + 64 * j) >> 4 | (upper >> 2 * j & 3) << 4
                    for t in range(T):
                        s[t] = dot4(s[t], q, four_codes(x, m, b, 4 + j, t, L))
                scale = d * convert(f32x16, load(i8x16, w.scales, at + 48 + b % 8 * 32))
                for t in range(T):
                    sums[t] = fma(
                        convert(f32x16, s[t]), scale * broadcast(f32x16, x.d, place_of(x, m, b, t, L)), sums[t]
                    )
            for t in range(T):
                put_sums(y, w, g, m, t, L, sums[t])


@inner
def start_of(x, m, b, half, t, L):
    """Index of a half block's start in Tiles.start with two parts."""
    return (((m + (t >> 2)) * x.n_block + b) * 2 + half) * L + (t & 3)


@kernel
def matmul_q6_k(team, rows, codes, scales, n_tok, n_block, y):
    w, x = Packed(codes, scales, codes.size // (3072 * n_block), n_block), new_tiles(n_tok, 8 * n_block, 2)
    quantize_q8_k(team, rows, x, 32)
    multiply_tiles(team, dot_q6_k, w, x, y)


# --- Q3_K
# codes   8 x (twos, ones: the third bits)
# scales  f16[16] d, then for each 16 columns i8[16]


@inner(makes_arrays=True)
def pack_q3_k_part(blocks, w, codes, first, last):
    """As pack_q4_k_part: lower two bits as twos, the third as ones."""
    q = np.empty(256, np.uint8)
    pack_q3_k_groups(blocks, w, codes, q, q.view(np.uint32), first, last)


@inner
def pack_q3_k_groups(blocks, w, codes, q, fours, first, last):
    """With room for the codes of a block: q u8 [256], which is fours u32 [64] too."""
    for g in range(first, last):
        for r in range(min(16, blocks.size // (110 * w.n_block) - 16 * g)):
            for b in range(w.n_block):
                source, target = 110 * ((16 * g + r) * w.n_block + b), g * w.n_block + b
                put_bytes(w.scales, 288 * target + 2 * r, blocks, source + 108, 2)
                for i in range(16):
                    low, high = (
                        blocks[source + 96 + i % 8] >> (i // 8 * 4),
                        blocks[source + 104 + i % 4] >> (i // 4 * 2),
                    )
                    w.scales[288 * target + 32 + 16 * i + r] = (low & 15 | (high & 3) << 4) - 32
                q[:] = 0
                add_field(blocks, source, 32, 1, 32, 2, q)
                add_field(blocks, source + 32, 64, 2, 32, 0, q)
                for i in range(8):
                    put_twos(codes, 384 * target + 48 * i + r, fours, i, 0)
                    put_ones(codes, 384 * target + 48 * i + 32 + r, fours, i, 2)


@kernel
def pack_q3_k(team, blocks, w, codes):
    parallel_for(team, pack_q3_k_part, (blocks, w, codes), w.n_group)


@inner
def dot_q3_k(w, x, y, m_first, m_last, T, g_first, g_last):
    """As dot_q6_k, on codes of three bits."""
    literally(T)
    L, sums, s = min(T, LANES), registers(f32x16, T), registers(i32x16, T)
    for g in range(g_first, g_last):
        for m in range(m_first, m_last, T // L):
            for t in range(T):
                sums[t] = zero(f32x16)
            for b in range(8 * w.n_block):
                block, at = g * 8 * w.n_block + b, 288 * (g * w.n_block + b // 8)
                fetch_ahead(w, block, 192, 36)
                d = half_to_f32(load(u16x16, w.scales, at))
                third = load(u8x64, w.codes, 192 * block + 128)
                for half in range(2):
                    for t in range(T):
                        s[t] = broadcast(i32x16, x.start, start_of(x, m, b, half, t, L))  # the codes stand for q - 4
                    lower, upper = load(u8x64, w.codes, 192 * block + 64 * half), third >> 4 * half
                    for j in range(4):
                        q = lower >> 2 * j & 3 | (upper >> j & 1) << 2
                        for t in range(T):
                            s[t] = dot4(s[t], q, four_codes(x, m, b, 4 * half + j, t, L))
                    scale = d * convert(f32x16, load(i8x16, w.scales, at + 32 + b % 8 * 32 + 16 * half))
                    for t in range(T):
                        d_x = broadcast(f32x16, x.d, place_of(x, m, b, t, L))
                        sums[t] = fma(convert(f32x16, s[t]), scale * d_x, sums[t])
            for t in range(T):
                put_sums(y, w, g, m, t, L, sums[t])


@kernel
def matmul_q3_k(team, rows, codes, scales, n_tok, n_block, y):
    w, x = Packed(codes, scales, codes.size // (1536 * n_block), n_block), new_tiles(n_tok, 8 * n_block, 2)
    quantize_q8_k(team, rows, x, 4)
    multiply_tiles(team, dot_q3_k, w, x, y)


# --- Q2_K
# codes   8 x twos
# scales  f16[16] d, f16[16] dmin, then for each 16 columns u8[16]: scale in the low four bits, min in the high


@inner(makes_arrays=True)
def pack_q2_k_part(blocks, w, codes, first, last):
    """As pack_q4_k_part, all bits as twos."""
    q = np.empty(256, np.uint8)
    pack_q2_k_groups(blocks, w, codes, q, q.view(np.uint32), first, last)


@inner
def pack_q2_k_groups(blocks, w, codes, q, fours, first, last):
    """With room for the codes of a block: q u8 [256], which is fours u32 [64] too."""
    for g in range(first, last):
        for r in range(min(16, blocks.size // (84 * w.n_block) - 16 * g)):
            for b in range(w.n_block):
                source, target = 84 * ((16 * g + r) * w.n_block + b), g * w.n_block + b
                put_bytes(w.scales, 320 * target + 2 * r, blocks, source + 80, 2)
                put_bytes(w.scales, 320 * target + 32 + 2 * r, blocks, source + 82, 2)
                for i in range(16):
                    w.scales[320 * target + 64 + 16 * i + r] = blocks[source + i]
                q[:] = 0
                add_field(blocks, source + 16, 64, 2, 32, 0, q)
                for i in range(8):
                    put_twos(codes, 256 * target + 32 * i + r, fours, i, 0)


@kernel
def pack_q2_k(team, blocks, w, codes):
    parallel_for(team, pack_q2_k_part, (blocks, w, codes), w.n_group)


@inner
def dot_q2_k(w, x, y, m_first, m_last, T, g_first, g_last):
    """As dot_q4_k, with two sums and two minima a block."""
    literally(T)
    L, sums, s = min(T, LANES), registers(f32x16, T), registers(i32x16, T)
    for g in range(g_first, g_last):
        for m in range(m_first, m_last, T // L):
            for t in range(T):
                sums[t] = zero(f32x16)
            for b in range(8 * w.n_block):
                block, at = g * 8 * w.n_block + b, 320 * (g * w.n_block + b // 8)
                fetch_ahead(w, block, 128, 40)
                d = half_to_f32(load(u16x16, w.scales, at))
                dmin = half_to_f32(load(u16x16, w.scales, at + 32)) * np.float32(-1)
                for half in range(2):
                    for t in range(T):
                        s[t] = zero(i32x16)
                    codes = load(u8x64, w.codes, 128 * block + 64 * half)
                    for j in range(4):
                        for t in range(T):
                            s[t] = dot4(s[t], codes >> 2 * j & 3, four_codes(x, m, b, 4 * half + j, t, L))
                    both = load(u8x16, w.scales, at + 64 + b % 8 * 32 + 16 * half)
                    scale, least = d * convert(f32x16, both & 15), dmin * convert(f32x16, both >> 4)
                    for t in range(T):
                        d_x = broadcast(f32x16, x.d, place_of(x, m, b, t, L))
                        sum_x = convert(f32x16, broadcast(i32x16, x.start, start_of(x, m, b, half, t, L)))  # bias -1
                        sums[t] = fma(convert(f32x16, s[t]), scale * d_x, sums[t])
                        sums[t] = fma(least, sum_x * d_x, sums[t])
            for t in range(T):
                put_sums(y, w, g, m, t, L, sums[t])


@kernel
def matmul_q2_k(team, rows, codes, scales, n_tok, n_block, y):
    w, x = Packed(codes, scales, codes.size // (1024 * n_block), n_block), new_tiles(n_tok, 8 * n_block, 2)
    quantize_q8_k(team, rows, x, -1)
    multiply_tiles(team, dot_q2_k, w, x, y)
