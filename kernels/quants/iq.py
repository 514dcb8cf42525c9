"""IQ formats: codes that index a codebook (IQ1, IQ2, IQ3) or a table of 16 uneven steps (IQ4).

The codebooks are in iq_grids.py.  The encoders of IQ1, IQ2 and IQ3 are not implemented: they search the codebooks for
neighbours and mostly need an importance matrix.  Layouts are those of ggml-common.h, 0c1e57098; if ggml packs two
things into one array, they are two fields here.
"""

from __future__ import annotations

import numpy as np

from .arithmetic import extreme, nearest_int, quotient, sum_in_order
from .bits import pack, unpack
from .iq_grids import codebook
from .k import GROUP_MAX_EPS, by_group

# Seven sign bits encode eight: the number of minus signs is even, which determines bit 7.
EVEN_SIGNS = np.arange(128, dtype=np.uint8)
EVEN_SIGNS |= (np.bitwise_count(EVEN_SIGNS) & 1) << 7


def signs(packed):
    """Return -1 for each bit that is set, else 1, lowest bit of the first byte first.  u8 [n, m] -> f32 [n, 8 m]"""
    return 1 - 2 * unpack(packed, bits=1, run=1).astype(np.float32)


def even_signs(words):
    """Return the signs in the lower 28 bits of `words`, seven bits for eight signs.  u32 [n, m] -> f32 [n, 32 m]"""
    sevens = words[..., None] >> np.arange(0, 28, 7, dtype=np.uint32) & 127
    return signs(EVEN_SIGNS[sevens].reshape(len(words), -1))


def scaled(d, scales, points, signs=1):
    """Compute d * scale * point * sign, with a scale for each of g equal groups.

    d f32 [n], scales f32 [n, g], points f32 [n, ..., 8 or so], signs f32 [n, 256] -> f32 [n, 256]
    """
    db = d[:, None] * scales
    groups = points.reshape(*scales.shape, -1)
    return (db[..., None] * groups).reshape(-1, 256) * signs


# ------------------------------------------------------------------------------------------------------------ IQ2_XXS
# IQ2_XXS: 256 weights in 66 bytes, 8 groups of 32.  w = d * (scale + 1/2) / 4 * point * sign
#   d   f16
#   qs  group i:  code   u8[4]  four points of eight weights
#                 signs  u32    bits 7 l .. 7 l + 6: signs of the eight weights of point l; bits 28..31: scale
IQ2_XXS = np.dtype([("d", "<f2"), ("qs", [("code", "u1", 4), ("signs", "<u4")], 8)])


def dequantize_iq2_xxs(blocks):
    """Dequantize blocks.  IQ2_XXS [n] -> f32 [n, 256]"""
    words = blocks["qs"]["signs"].astype(np.uint32)
    scales = ((words >> 28).astype(np.float32) + np.float32(0.5)) * np.float32(0.25)
    points = codebook("IQ2_XXS")[blocks["qs"]["code"]]
    return scaled(blocks["d"].astype(np.float32), scales, points, even_signs(words))


# ------------------------------------------------------------------------------------------------------------- IQ2_XS
# IQ2_XS: 256 weights in 74 bytes, 16 groups of 16.  w = d * (scale + 1/2) / 4 * point * sign
#   d       f16
#   qs      u16[32]  bits 0..8: a point of eight weights; bits 9..15: their signs, seven for eight
#   scales  u8[8]    group 2 j in the low four bits, 2 j + 1 in the high four
IQ2_XS = np.dtype([("d", "<f2"), ("qs", "<u2", 32), ("scales", "u1", 8)])


def dequantize_iq2_xs(blocks):
    """Dequantize blocks.  IQ2_XS [n] -> f32 [n, 256]"""
    scales = (unpack(blocks["scales"], bits=4, run=1).astype(np.float32) + np.float32(0.5)) * np.float32(0.25)
    points = codebook("IQ2_XS")[blocks["qs"] & 511]
    return scaled(blocks["d"].astype(np.float32), scales, points, signs(EVEN_SIGNS[blocks["qs"] >> 9]))


# -------------------------------------------------------------------------------------------------------------- IQ2_S
# IQ2_S: 256 weights in 82 bytes, 16 groups of 16.  w = d * (scale + 1/2) / 4 * point * sign
#   d       f16
#   qs      u8[32]  lower eight bits of the codes, each a point of eight weights
#   signs   u8[32]  bit i of byte j: weight 8 j + i is negative
#   qh      u8[8]   upper two bits of the codes, four codes per byte, lowest bits first
#   scales  u8[8]   as in IQ2_XS
IQ2_S = np.dtype([("d", "<f2"), ("qs", "u1", 32), ("signs", "u1", 32), ("qh", "u1", 8), ("scales", "u1", 8)])


def dequantize_iq2_s(blocks):
    """Dequantize blocks.  IQ2_S [n] -> f32 [n, 256]"""
    scales = (unpack(blocks["scales"], bits=4, run=1).astype(np.float32) + np.float32(0.5)) * np.float32(0.25)
    codes = blocks["qs"] | unpack(blocks["qh"], bits=2, run=1).astype(np.uint16) << 8
    return scaled(blocks["d"].astype(np.float32), scales, codebook("IQ2_S")[codes], signs(blocks["signs"]))


# ------------------------------------------------------------------------------------------------------------ IQ3_XXS
# IQ3_XXS: 256 weights in 98 bytes, 8 groups of 32.  w = d * (scale + 1/2) / 2 * point * sign
#   d      f16
#   qs     u8[64]  codes, each a point of four weights
#   signs  u32[8]  group i: signs and scale as in IQ2_XXS
IQ3_XXS = np.dtype([("d", "<f2"), ("qs", "u1", 64), ("signs", "<u4", 8)])


def dequantize_iq3_xxs(blocks):
    """Dequantize blocks.  IQ3_XXS [n] -> f32 [n, 256]"""
    words = blocks["signs"].astype(np.uint32)
    scales = ((words >> 28).astype(np.float32) + np.float32(0.5)) * np.float32(0.5)
    return scaled(blocks["d"].astype(np.float32), scales, codebook("IQ3_XXS")[blocks["qs"]], even_signs(words))


# -------------------------------------------------------------------------------------------------------------- IQ3_S
# IQ3_S: 256 weights in 110 bytes, 8 groups of 32.  w = d * (2 * scale + 1) * point * sign
#   d       f16
#   qs      u8[64]  lower eight bits of the codes, each a point of four weights
#   qh      u8[8]   bit i of byte j: ninth bit of code 8 j + i
#   signs   u8[32]  as in IQ2_S
#   scales  u8[4]   group 2 j in the low four bits, 2 j + 1 in the high four
IQ3_S = np.dtype([("d", "<f2"), ("qs", "u1", 64), ("qh", "u1", 8), ("signs", "u1", 32), ("scales", "u1", 4)])


def dequantize_iq3_s(blocks):
    """Dequantize blocks.  IQ3_S [n] -> f32 [n, 256]"""
    scales = 2 * unpack(blocks["scales"], bits=4, run=1).astype(np.float32) + 1
    codes = blocks["qs"] | unpack(blocks["qh"], bits=1, run=1).astype(np.uint16) << 8
    return scaled(blocks["d"].astype(np.float32), scales, codebook("IQ3_S")[codes], signs(blocks["signs"]))


# -------------------------------------------------------------------------------------------------------------- IQ1_S
# IQ1_S: 256 weights in 50 bytes, 8 groups of 32.  w = d * (2 * scale + 1) * (point + delta),  delta = 1/8 or -1/8
#   d   f16
#   qs  u8[32]  lower eight bits of the codes, each a point of eight weights in -1, 0, 1
#   qh  u16[8]  bits 3 l .. 3 l + 2: upper bits of the group's code l; bits 12..14: scale; bit 15: delta is negative
IQ1_S = np.dtype([("d", "<f2"), ("qs", "u1", 32), ("qh", "<u2", 8)])


def dequantize_iq1_s(blocks):
    """Dequantize blocks.  IQ1_S [n] -> f32 [n, 256]"""
    qh = blocks["qh"].astype(np.uint16)
    scales = 2 * (qh >> 12 & 7).astype(np.float32) + 1
    upper = (qh[..., None] >> np.arange(0, 12, 3, dtype=np.uint16) & 7).reshape(-1, 32)
    delta = np.where(qh >> 15, np.float32(-0.125), np.float32(0.125))  # [n, 8]
    points = codebook("IQ1_S")[blocks["qs"] | upper << 8].reshape(-1, 8, 32)
    return scaled(blocks["d"].astype(np.float32), scales, points + delta[..., None])


# -------------------------------------------------------------------------------------------------------------- IQ1_M
# IQ1_M: 256 weights in 56 bytes, 16 groups of 16.  w = d * (2 * scale + 1) * (point + delta),  delta = 1/8 or -1/8
#   qs      u8[32]  lower eight bits of the codes, each a point of IQ1_S's codebook
#   qh      u8[16]  codes 2 j (low four bits) and 2 j + 1 (high): three upper bits of the code, then: delta is negative
#   scales  u16[4]  bits 3 l .. 3 l + 2: scale of group 4 j + l; bits 12..15: four bits of d, an f16, lowest first
IQ1_M = np.dtype([("qs", "u1", 32), ("qh", "u1", 16), ("scales", "<u2", 4)])


def dequantize_iq1_m(blocks):
    """Dequantize blocks.  IQ1_M [n] -> f32 [n, 256]"""
    packed = blocks["scales"].astype(np.uint16)
    shifts = np.arange(0, 12, 3, dtype=np.uint16)
    scales = 2 * (packed[..., None] >> shifts & 7).reshape(-1, 16).astype(np.float32) + 1
    d = np.bitwise_or.reduce(packed >> 12 << np.arange(0, 16, 4, dtype=np.uint16), axis=1).view(np.float16)
    qh = unpack(blocks["qh"], bits=4, run=1).astype(np.uint16)
    delta = np.where(qh >> 3, np.float32(-0.125), np.float32(0.125))  # [n, 32]
    points = codebook("IQ1_S")[blocks["qs"] | (qh & 7) << 8]
    return scaled(d.astype(np.float32), scales, points + delta[..., None])


# ------------------------------------------------------------------------------------------------------------- IQ4_NL
# IQ4_NL: 32 weights in 18 bytes.  w = d * STEPS[q],  q in 0..15
#   d   f16     scale, signed
#   qs  u8[16]  as in Q4_0
#   STEPS widen away from zero: -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113
IQ4_NL = np.dtype([("d", "<f2"), ("qs", "u1", 16)])

# ggml-common.h, kvalues_iq4nl
STEPS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def dequantize_iq4_nl(blocks):
    """Dequantize blocks.  IQ4_NL [n] -> f32 [n, 32]"""
    q = unpack(blocks["qs"], bits=4, run=16)
    return blocks["d"].astype(np.float32)[:, None] * STEPS[q]


def quantize_iq4_nl(x):
    """Quantize weights.  f32 [n, 32] -> IQ4_NL [n].  As in ggml-quants.c quantize_row_iq4_nl_impl, 0c1e57098."""
    groups = by_group(x, 32)
    scale = search_step_scale(groups)
    blocks = np.empty(len(x), IQ4_NL)
    blocks["d"] = scale
    blocks["qs"] = pack(nearest_step(quotient(1, scale) * groups).T, bits=4, run=16)
    return blocks


def quantize_iq4_nl_once(x):
    """Quantize numbers that are only kept for a while, as in a cache: the codes of one trial, then their best scale.

    f32 [n, 32] -> IQ4_NL [n].  As in ggml-quants.c quantize_row_iq4_nl_ref, 0c1e57098.
    """
    groups = by_group(x, 32)
    peak = extreme(groups, axis=0)[0]
    codes = nearest_step(quotient(1, peak / STEPS[0]) * groups)
    weights, step = groups * groups, STEPS[codes]
    sum_qq = sum_in_order(weights * step * step)
    scale = np.where(sum_qq > 0, sum_in_order(weights * step * groups) / sum_qq, np.float32(0))
    blocks = np.empty(len(x), IQ4_NL)
    blocks["d"] = np.where(np.abs(peak) < GROUP_MAX_EPS, np.float32(0), scale)
    blocks["qs"] = pack(codes.T, bits=4, run=16)
    return blocks


# For each integer i in -128..127: the code of the first step above i, clipped to 1..15.
UPPER = np.clip(np.searchsorted(STEPS, np.arange(-128, 128), side="right"), 1, 15)


def nearest_step(x):
    """Return the code of the step nearest to x, of the upper one if halfway.  f32 [...] -> u8 [...]"""
    upper = UPPER[np.floor(np.fmax(np.fmin(x, 127), -128)).astype(np.int16) + 128]
    return np.where(x - STEPS[upper - 1] < STEPS[upper] - x, upper - 1, upper).astype(np.uint8)


def search_step_scale(x):
    """Search each group's scale so that x is about scale * step; weights are x**2.  f32 [32, g] -> f32 [g]

    The first trial maps the extreme value to the lowest step, the others map it to -134 .. -120.  The least-squares
    scale with the smallest error wins.
    """
    peak = extreme(x, axis=0)[0]
    weights = x * x

    def fit(inverse):
        step = STEPS[nearest_step(inverse * x)]
        return sum_in_order(weights * step * x), sum_in_order(weights * step * step)

    sum_xq, sum_qq = fit(1 / (-peak / STEPS[0]))
    scale = np.where(sum_qq > 0, sum_xq / sum_qq, np.float32(0))
    best = scale * sum_xq
    for trial in range(-7, 8):
        sum_xq, sum_qq = fit((trial + STEPS[0]) / peak)
        better = (sum_qq > 0) & (sum_xq * sum_xq > best * sum_qq)
        scale = np.where(better, sum_xq / sum_qq, scale)
        best = np.where(better, scale * sum_xq, best)
    return np.where(np.abs(peak) < GROUP_MAX_EPS, np.float32(0), scale)


# ------------------------------------------------------------------------------------------------------------- IQ4_XS
# IQ4_XS: 256 weights in 136 bytes, 8 groups of 32.  w = d * (scale - 32) * STEPS[q],  scale in 0..63, q in 0..15
#   d         f16
#   scales_h  u16     bits 2 i and 2 i + 1: upper two bits of scale i
#   scales_l  u8[4]   lower four bits of scale 2 j (low) and 2 j + 1 (high)
#   qs        u8[128] group i in bytes 16 i .. 16 i + 15, as in Q4_0
IQ4_XS = np.dtype([("d", "<f2"), ("scales_h", "<u2"), ("scales_l", "u1", 4), ("qs", "u1", 128)])


def dequantize_iq4_xs(blocks):
    """Dequantize blocks.  IQ4_XS [n] -> f32 [n, 256]"""
    upper = blocks["scales_h"].astype(np.uint16)[:, None] >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales = unpack(blocks["scales_l"], bits=4, run=1) | upper << 4
    q = unpack(blocks["qs"], bits=4, run=16)
    return scaled(blocks["d"].astype(np.float32), scales.astype(np.float32) - 32, STEPS[q])


def quantize_iq4_xs(x):
    """Quantize weights.  f32 [n, 256] -> IQ4_XS [n].  As in ggml-quants.c quantize_row_iq4_nl_impl, 0c1e57098."""
    groups = by_group(x, 32)
    scale = search_step_scale(groups).reshape(-1, 8)
    d = -extreme(scale, axis=1) / 32
    scales = np.clip(nearest_int(quotient(1, d) * scale), -32, 31)
    per_weight = quotient(1, d * scales.astype(np.float32)).reshape(-1)
    packed = (scales + 32).astype(np.uint16)
    blocks = np.empty(len(x), IQ4_XS)
    blocks["d"] = d[:, 0]
    blocks["scales_h"] = np.bitwise_or.reduce(packed >> 4 << np.arange(0, 16, 2, dtype=np.uint16), axis=1)
    blocks["scales_l"] = pack((packed & 15).astype(np.uint8), bits=4, run=1)
    blocks["qs"] = pack(nearest_step(per_weight * groups).T.reshape(-1, 256), bits=4, run=16)
    return blocks
