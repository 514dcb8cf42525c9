"""Products with four-bit codes that a table of 16 values explains: IQ4_NL IQ4_XS MXFP4.

The codes lie as in Q4_0 (block32.py); a byte shuffle looks up 64 of them at a time, and dot4_signed goes on from there.
"""

from __future__ import annotations

import numpy as np
from numba import literally

from ..jit import inner, kernel
from ..quants.fp4 import TWICE
from ..quants.iq import STEPS
from ..simd import (
    SIGNED_BIAS,
    bits,
    broadcast,
    convert,
    dot4_signed,
    f32x16,
    fma,
    half_to_f32,
    i8x16,
    i32x4,
    i32x16,
    load,
    lookup,
    maximum,
    registers,
    scatter,
    splat,
    u8x16,
    u8x64,
    u16x16,
    zero,
)
from ..threads import parallel_for
from .block32 import pack_q4_0, put_bytes
from .tiles import (
    LANES,
    Packed,
    fetch_ahead,
    four_codes,
    multiply_tiles,
    new_tiles,
    place_of,
    put_sums,
    quantize_q8_0,
    quantize_q8_k,
)

IQ4_STEPS, FP4_TWICE = STEPS.astype(np.int8), TWICE.astype(np.int8)


@kernel(inline="always")  # a call here would keep the sums in memory: LLVM inlines no body as long as that for 8 tokens
def add_block(w, x, values, block, m, b, s, T):
    """s[t] becomes the dot product of a group's `block` and block b of token t."""
    L = min(T, LANES)
    for t in range(T):
        s[t] = broadcast(i32x16, x.start, place_of(x, m, b, t, L))
    for j in range(4):
        q = load(u8x64, w.codes, 256 * block + 64 * j)
        low, high = lookup(values, q & 15), lookup(values, q >> 4)
        for t in range(T):
            s[t] = dot4_signed(s[t], low, four_codes(x, m, b, j, t, L))
        for t in range(T):
            s[t] = dot4_signed(s[t], high, four_codes(x, m, b, 4 + j, t, L))


# --- IQ4_NL
# codes   u8[4][16][4]
# scales  f16[16];  a block has the fields of Q4_0's and is packed as one

pack_iq4_nl = pack_q4_0


@inner
def dot_iq4_nl(w, x, y, m_first, m_last, T, g_first, g_last):
    """`T` tokens at a time of tiles m_first .. m_last, for groups g_first .. g_last."""
    literally(T)
    L, sums, s, values = min(T, LANES), registers(f32x16, T), registers(i32x16, T), load(i8x16, IQ4_STEPS, 0)
    for g in range(g_first, g_last):
        for m in range(m_first, m_last, T // L):
            for t in range(T):
                sums[t] = zero(f32x16)
            for b in range(w.n_block):
                block = g * w.n_block + b
                fetch_ahead(w, block, 256, 32)
                add_block(w, x, values, block, m, b, s, T)
                d = half_to_f32(load(u16x16, w.scales, 32 * block))
                for t in range(T):
                    sums[t] = fma(convert(f32x16, s[t]), d * broadcast(f32x16, x.d, place_of(x, m, b, t, L)), sums[t])
            for t in range(T):
                put_sums(y, w, g, m, t, L, sums[t])


@kernel
def matmul_iq4_nl(team, rows, codes, scales, n_tok, n_block, y):
    w, x = Packed(codes, scales, codes.size // (256 * n_block), n_block), new_tiles(n_tok, n_block, 1)
    quantize_q8_0(team, rows, x, SIGNED_BIAS)
    multiply_tiles(team, dot_iq4_nl, w, x, y)


# --- MXFP4
# codes   as IQ4_NL
# scales  u8[16] exponents


@inner
def pack_mxfp4_part(blocks, w, codes, first, last):
    """Groups first .. last.  blocks u8, flat [n_out, n_block, 17]; codes is w.codes as i32"""
    for g in range(first, last):
        for r in range(min(16, blocks.size // (17 * w.n_block) - 16 * g)):
            for b in range(w.n_block):
                source, target = 17 * ((16 * g + r) * w.n_block + b), g * w.n_block + b
                w.scales[16 * target + r] = blocks[source]
                scatter(codes, 64 * target + r, 16, bits(i32x4, load(u8x16, blocks, source + 1)))


@kernel
def pack_mxfp4(team, blocks, w, codes):
    parallel_for(team, pack_mxfp4_part, (blocks, w, codes), w.n_group)


@inner
def dot_mxfp4(w, x, y, m_first, m_last, T, g_first, g_last):
    """As dot_iq4_nl; 2^(e - 128) is put together from its exponent, 0 where that would be below 2^-126."""
    literally(T)
    L, sums, s, values = min(T, LANES), registers(f32x16, T), registers(i32x16, T), load(i8x16, FP4_TWICE, 0)
    for g in range(g_first, g_last):
        for m in range(m_first, m_last, T // L):
            for t in range(T):
                sums[t] = zero(f32x16)
            for b in range(w.n_block):
                block = g * w.n_block + b
                fetch_ahead(w, block, 256, 16)
                add_block(w, x, values, block, m, b, s, T)
                e = convert(i32x16, load(u8x16, w.scales, 16 * block)) - 1
                d = bits(f32x16, maximum(e, splat(i32x16, 0)) << 23)
                for t in range(T):
                    sums[t] = fma(convert(f32x16, s[t]), d * broadcast(f32x16, x.d, place_of(x, m, b, t, L)), sums[t])
            for t in range(T):
                put_sums(y, w, g, m, t, L, sums[t])


@kernel
def matmul_mxfp4(team, rows, codes, scales, n_tok, n_block, y):
    w, x = Packed(codes, scales, codes.size // (256 * n_block), n_block), new_tiles(n_tok, n_block, 1)
    quantize_q8_0(team, rows, x, SIGNED_BIAS)
    multiply_tiles(team, dot_mxfp4, w, x, y)


# --- IQ4_XS
# codes   8 x u8[4][16][4]
# scales  f16[16], then for each block of 32 columns u8[16], 32 more than they are


@inner
def pack_iq4_xs_part(blocks, w, codes, first, last):
    """Groups first .. last.  blocks u8, flat [n_out, n_block, 136]; codes is w.codes as i32"""
    for g in range(first, last):
        for r in range(min(16, blocks.size // (136 * w.n_block) - 16 * g)):
            for b in range(w.n_block):
                source, target = 136 * ((16 * g + r) * w.n_block + b), g * w.n_block + b
                put_bytes(w.scales, 160 * target + 2 * r, blocks, source, 2)
                for i in range(8):
                    low = blocks[source + 4 + i // 2] >> (i % 2 * 4) & 15
                    high = blocks[source + 2 + i // 4] >> (i % 4 * 2) & 3
                    w.scales[160 * target + 32 + 16 * i + r] = low | high << 4
                    sixteen = load(u8x16, blocks, source + 8 + 16 * i)
                    scatter(codes, 512 * target + 64 * i + r, 16, bits(i32x4, sixteen))


@kernel
def pack_iq4_xs(team, blocks, w, codes):
    parallel_for(team, pack_iq4_xs_part, (blocks, w, codes), w.n_group)


@inner
def dot_iq4_xs(w, x, y, m_first, m_last, T, g_first, g_last):
    """As dot_iq4_nl, a super-block's scale times that of each of its eight blocks."""
    literally(T)
    L, sums, s, values = min(T, LANES), registers(f32x16, T), registers(i32x16, T), load(i8x16, IQ4_STEPS, 0)
    for g in range(g_first, g_last):
        for m in range(m_first, m_last, T // L):
            for t in range(T):
                sums[t] = zero(f32x16)
            for b in range(8 * w.n_block):
                block, at = g * 8 * w.n_block + b, 160 * (g * w.n_block + b // 8)
                fetch_ahead(w, block, 256, 20)
                add_block(w, x, values, block, m, b, s, T)
                scale = convert(i32x16, load(u8x16, w.scales, at + 32 + b % 8 * 16)) - 32
                d = half_to_f32(load(u16x16, w.scales, at)) * convert(f32x16, scale)
                for t in range(T):
                    sums[t] = fma(convert(f32x16, s[t]), d * broadcast(f32x16, x.d, place_of(x, m, b, t, L)), sums[t])
            for t in range(T):
                put_sums(y, w, g, m, t, L, sums[t])


@kernel
def matmul_iq4_xs(team, rows, codes, scales, n_tok, n_block, y):
    w, x = Packed(codes, scales, codes.size // (2048 * n_block), n_block), new_tiles(n_tok, 8 * n_block, 1)
    quantize_q8_k(team, rows, x, SIGNED_BIAS)
    multiply_tiles(team, dot_iq4_xs, w, x, y)
