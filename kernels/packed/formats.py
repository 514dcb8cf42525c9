"""The packed formats: for each a type, a drawing, two to four small functions, and a row in LAYOUTS.

The drawings show the codes of 16 rows and 32 columns, of which a super-block has eight, and all scales of a block.
In nibbles u8[4][16][4], byte (j, r, c) holds row r's column 4 j + c in the low four bits and column 16 + 4 j + c in the
high four.  pack.py describes the planes, ones and twos.
"""

from __future__ import annotations

import numpy as np

from ..jit import inner
from ..quants import FORMATS, GGMLType
from ..quants.fp4 import TWICE
from ..quants.iq import STEPS
from ..simd import (
    SIGNED_BIAS,
    bits,
    convert,
    f32x16,
    half_to_f32,
    i8x16,
    i8x64,
    i32x16,
    load,
    lookup,
    maximum,
    splat,
    u8x16,
    u8x64,
    u16x16,
)
from .pack import put_16_bytes, put_32_bits, put_block, put_half, put_nibbles, put_ones, put_two_halves, put_twos
from .products import Layout, codes_of, layout_of, minimum_of, scale_of
from .tiles import packed_type


@inner
def line_of(w, i):
    """Load line i of the codes.  -> u8x64"""
    return load(u8x64, w.codes, 64 * i)


# For shifts by a variable: cheaper as words of four bytes, if a mask then takes away the bits that cross bytes.
ONE_BIT, TWO_BITS, FOUR_BITS = 0x01010101, 0x03030303, 0x0F0F0F0F


@inner
def words_of(w, i):
    """Load line i of the codes.  -> i32x16"""
    return load(i32x16, w.codes, 64 * i)


@inner
def half_at(w, at):
    """f16[16] at byte `at` of the scales.  -> f32x16"""
    return half_to_f32(load(u16x16, w.scales, at))


@inner
def scales_at(w, block):
    """Find where the scales of the block begin, or those of its super-block."""
    form = layout_of(w)
    return form.scale_bytes * (block & -form.n_sub)


# --- Q4_0
# codes   nibbles
# scales  f16[16]

Q4_0, IQ4_NL = packed_type("Q4_0", __name__), packed_type("IQ4_NL", __name__)


@put_block.case(Q4_0, IQ4_NL)
def put_q4_0(w, lines, i, r, blocks, at):
    put_half(w.scales, 32 * i, r, blocks, at)
    put_16_bytes(lines, 4 * i, r, blocks, at + 2)


# --- Q4_1
# codes   nibbles
# scales  f16[16] d, f16[16] m

Q4_1 = packed_type("Q4_1", __name__)


@put_block.case(Q4_1)
def put_q4_1(w, lines, i, r, blocks, at):
    put_two_halves(w.scales, 64 * i, r, blocks, at)
    put_16_bytes(lines, 4 * i, r, blocks, at + 4)


# --- Q5_0
# codes   nibbles, ones: the fifth bits
# scales  f16[16]

Q5_0 = packed_type("Q5_0", __name__)


@put_block.case(Q5_0)
def put_q5_0(w, lines, i, r, blocks, at):
    put_half(w.scales, 32 * i, r, blocks, at)
    put_32_bits(lines, 5 * i + 4, r, blocks, at + 2)
    put_16_bytes(lines, 5 * i, r, blocks, at + 6)


# --- Q5_1
# codes   as Q5_0
# scales  as Q4_1

Q5_1 = packed_type("Q5_1", __name__)


@put_block.case(Q5_1)
def put_q5_1(w, lines, i, r, blocks, at):
    put_two_halves(w.scales, 64 * i, r, blocks, at)
    put_32_bits(lines, 5 * i + 4, r, blocks, at + 4)
    put_16_bytes(lines, 5 * i, r, blocks, at + 8)


# --- Q8_0
# codes   i8[8][16][4]   byte (j, r, c) is row r's column 4 j + c
# scales  f16[16]

Q8_0 = packed_type("Q8_0", __name__)


@put_block.case(Q8_0)
def put_q8_0(w, lines, i, r, blocks, at):
    put_half(w.scales, 32 * i, r, blocks, at)
    put_16_bytes(lines, 8 * i, r, blocks, at + 2)
    put_16_bytes(lines, 8 * i + 4, r, blocks, at + 18)


@codes_of.case(Q8_0)
def codes_q8_0(w, block, half, j):
    return load(i8x64, w.codes, 512 * block + 256 * half + 64 * j)


# --- Q4_K
# codes   nibbles
# scales  f16[16] d, f16[16] dmin, then for each 32 columns u8[16] scales, u8[16] mins

Q4_K = packed_type("Q4_K", __name__)


@put_block.case(Q4_K)
def put_q4_k(w, lines, i, r, blocks, at):
    put_scales_and_mins(w.scales, 320 * i, r, blocks, at)
    for b in range(8):
        put_nibbles(lines, 4 * (8 * i + b), r, blocks, at + 16, 32, b)


@inner
def put_scales_and_mins(scales, place, r, blocks, at):
    """Write d, dmin and the 12 bytes of scales, unpacked."""
    put_two_halves(scales, place, r, blocks, at)
    for i in range(8):
        if i < 4:
            scale, least = blocks[at + 4 + i] & 63, blocks[at + 8 + i] & 63
        else:
            scale = (blocks[at + 8 + i] & 15) | (blocks[at + i] >> 6) << 4
            least = (blocks[at + 8 + i] >> 4) | (blocks[at + 4 + i] >> 6) << 4
        scales[place + 64 + 32 * i + r], scales[place + 80 + 32 * i + r] = scale, least


# --- Q5_K
# codes   nibbles, ones: the fifth bits
# scales  as Q4_K

Q5_K = packed_type("Q5_K", __name__)


@put_block.case(Q5_K)
def put_q5_k(w, lines, i, r, blocks, at):
    put_scales_and_mins(w.scales, 320 * i, r, blocks, at)
    for b in range(8):
        put_nibbles(lines, 5 * (8 * i + b), r, blocks, at + 48, 32, b)
        put_ones(lines, 5 * (8 * i + b) + 4, r, blocks, at + 16, 32, b)


@scale_of.case(Q4_K, Q5_K)
def scale_q4_k(w, block, part):
    at = scales_at(w, block)
    return half_at(w, at) * convert(f32x16, load(u8x16, w.scales, at + 64 + 32 * (block & 7)))


@minimum_of.case(Q4_K, Q5_K)
def minimum_q4_k(w, block, part):
    at = scales_at(w, block)
    return half_at(w, at + 32) * np.float32(-1) * convert(f32x16, load(u8x16, w.scales, at + 80 + 32 * (block & 7)))


# --- Q6_K
# codes   nibbles, twos: the upper two bits
# scales  f16[16] d, then for each 16 columns i8[16]

Q6_K = packed_type("Q6_K", __name__)


@put_block.case(Q6_K)
def put_q6_k(w, lines, i, r, blocks, at):
    put_half(w.scales, 288 * i, r, blocks, at + 208)
    for s in range(16):
        w.scales[288 * i + 32 + 16 * s + r] = blocks[at + 192 + s]
    for b in range(8):
        put_nibbles(lines, 6 * (8 * i + b), r, blocks, at, 64, b)
        put_twos(lines, 6 * (8 * i + b) + 4, r, blocks, at + 128, 32, b)


@codes_of.case(Q6_K)
def codes_q6_k(w, block, half, j):
    lower = words_of(w, 6 * block + j) >> 4 * half & FOUR_BITS
    upper = words_of(w, 6 * block + 4 + half) >> 2 * j & TWO_BITS
    return bits(u8x64, lower | upper << 4)


# --- Q3_K
# codes   twos, ones: the third bits
# scales  as Q6_K

Q3_K = packed_type("Q3_K", __name__)


@put_block.case(Q3_K)
def put_q3_k(w, lines, i, r, blocks, at):
    put_half(w.scales, 288 * i, r, blocks, at + 108)
    for s in range(16):
        low, high = blocks[at + 96 + s % 8] >> (s // 8 * 4), blocks[at + 104 + s % 4] >> (s // 4 * 2)
        w.scales[288 * i + 32 + 16 * s + r] = (low & 15 | (high & 3) << 4) - 32
    for b in range(8):
        put_twos(lines, 3 * (8 * i + b), r, blocks, at + 32, 32, b)
        put_ones(lines, 3 * (8 * i + b) + 2, r, blocks, at, 32, b)


@codes_of.case(Q3_K)
def codes_q3_k(w, block, half, j):
    third = (words_of(w, 3 * block + 2) >> 4 * half << 2 >> j) & ONE_BIT << 2
    return line_of(w, 3 * block + half) >> 2 * j & 3 | bits(u8x64, third)


@scale_of.case(Q6_K, Q3_K)
def scale_q6_k(w, block, part):
    at = scales_at(w, block)
    return half_at(w, at) * convert(f32x16, load(i8x16, w.scales, at + 32 + 32 * (block & 7) + 16 * part))


# --- Q2_K
# codes   twos
# scales  f16[16] d, f16[16] dmin, then for each 16 columns u8[16]: scale in the low four bits, min in the high four

Q2_K = packed_type("Q2_K", __name__)


@put_block.case(Q2_K)
def put_q2_k(w, lines, i, r, blocks, at):
    put_two_halves(w.scales, 320 * i, r, blocks, at + 80)
    for s in range(16):
        w.scales[320 * i + 64 + 16 * s + r] = blocks[at + s]
    for b in range(8):
        put_twos(lines, 2 * (8 * i + b), r, blocks, at + 16, 32, b)


@codes_of.case(Q2_K)
def codes_q2_k(w, block, half, j):
    return bits(u8x64, words_of(w, 2 * block + half) >> 2 * j & TWO_BITS)


@inner
def scale_and_min(w, block, part):
    return load(u8x16, w.scales, scales_at(w, block) + 64 + 32 * (block & 7) + 16 * part)


@scale_of.case(Q2_K)
def scale_q2_k(w, block, part):
    return half_at(w, scales_at(w, block)) * convert(f32x16, scale_and_min(w, block, part) & 15)


@minimum_of.case(Q2_K)
def minimum_q2_k(w, block, part):
    dmin = half_at(w, scales_at(w, block) + 32) * np.float32(-1)
    return dmin * convert(f32x16, scale_and_min(w, block, part) >> 4)


# --- IQ4_NL: a block has the fields of Q4_0's and is packed as one; a table of 16 values gives each code its meaning

IQ4_STEPS, FP4_TWICE = STEPS.astype(np.int8), TWICE.astype(np.int8)


# --- IQ4_XS
# codes   nibbles
# scales  f16[16], then for each 32 columns u8[16], stored with 32 added

IQ4_XS = packed_type("IQ4_XS", __name__)


@put_block.case(IQ4_XS)
def put_iq4_xs(w, lines, i, r, blocks, at):
    put_half(w.scales, 160 * i, r, blocks, at)
    for b in range(8):
        low, high = blocks[at + 4 + b // 2] >> (b % 2 * 4) & 15, blocks[at + 2 + b // 4] >> (b % 4 * 2) & 3
        w.scales[160 * i + 32 + 16 * b + r] = low | high << 4
        put_16_bytes(lines, 4 * (8 * i + b), r, blocks, at + 8 + 16 * b)


@codes_of.case(IQ4_NL, IQ4_XS)
def codes_iq4_nl(w, block, half, j):
    return lookup(load(i8x16, IQ4_STEPS, 0), line_of(w, 4 * block + j) >> 4 * half & 15)


@scale_of.case(IQ4_XS)
def scale_iq4_xs(w, block, part):
    at = scales_at(w, block)
    own = convert(i32x16, load(u8x16, w.scales, at + 32 + 16 * (block & 7))) - 32
    return half_at(w, at) * convert(f32x16, own)


# --- MXFP4
# codes   nibbles
# scales  u8[16] exponents

MXFP4 = packed_type("MXFP4", __name__)


@put_block.case(MXFP4)
def put_mxfp4(w, lines, i, r, blocks, at):
    w.scales[16 * i + r] = blocks[at]
    put_16_bytes(lines, 4 * i, r, blocks, at + 1)


@codes_of.case(MXFP4)
def codes_mxfp4(w, block, half, j):
    return lookup(load(i8x16, FP4_TWICE, 0), line_of(w, 4 * block + j) >> 4 * half & 15)


@scale_of.case(MXFP4)
def scale_mxfp4(w, block, part):
    """2^(e - 128) from its exponent, 0 where that would be below 2^-126: codes are twice the values."""
    e = convert(i32x16, load(u8x16, w.scales, 16 * block)) - 1
    return bits(f32x16, maximum(e, splat(i32x16, 0)) << 23)


# --- several formats


@codes_of.case(Q4_0, Q4_1, Q4_K)
def codes_nibbles(w, block, half, j):
    return line_of(w, 4 * block + j) >> 4 * half & 15


@codes_of.case(Q5_0, Q5_1, Q5_K)
def codes_nibbles_and_fifth(w, block, half, j):
    fifth = (words_of(w, 5 * block + 4) >> 4 * half << 4 - j) & ONE_BIT << 4
    return line_of(w, 5 * block + j) >> 4 * half & 15 | bits(u8x64, fifth)


@scale_of.case(Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL)
def scale_f16(w, block, part):
    return half_at(w, scales_at(w, block))


@minimum_of.case(Q4_1, Q5_1)
def minimum_f16(w, block, part):
    return half_at(w, scales_at(w, block) + 32)


def layout(format: type, code_bytes: int, scale_bytes: int, parts: int, bias: int) -> tuple[type, Layout]:
    """Complete a row of LAYOUTS by what is known of the file's format, and let kernels know the row."""
    file = FORMATS[GGMLType[format.__name__]]
    has_minimum = format in minimum_of.cases
    row = Layout(file.layout.itemsize, file.block_size // 32, code_bytes, scale_bytes, parts, bias, has_minimum)
    layout_of.case(format)(lambda w: row)
    return format, row


# fmt: off
LAYOUTS = dict([
    #              codes scales parts bias
    layout(Q4_0,     256,    32,  1,    8),
    layout(Q4_1,     256,    64,  1,    0),
    layout(Q5_0,     320,    32,  1,   16),
    layout(Q5_1,     320,    64,  1,    0),
    layout(Q8_0,     512,    32,  1,  SIGNED_BIAS),
    layout(Q2_K,     128,    40,  2,    0),
    layout(Q3_K,     192,    36,  2,    4),
    layout(Q4_K,     256,    40,  1,    0),
    layout(Q5_K,     320,    40,  1,    0),
    layout(Q6_K,     384,    36,  2,   32),
    layout(IQ4_NL,   256,    32,  1,  SIGNED_BIAS),
    layout(IQ4_XS,   256,    20,  1,  SIGNED_BIAS),
    layout(MXFP4,    256,    16,  1,  SIGNED_BIAS),
])
# fmt: on
