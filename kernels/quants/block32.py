"""Blocks of 32 weights under one scale: Q4_0 Q4_1 Q5_0 Q5_1 Q8_0, and Q8_1 for activations.

Encoders follow ggml-quants.c quantize_row_*_ref, 0c1e57098, operation by operation in float32: their bytes are
llama-quantize's, down to the sign of a zero.
"""

from __future__ import annotations

import numpy as np

from .rounding import round_half_away, truncate


def reciprocal(d):
    """1 / d, and 0 where d is 0.  f32 [...] -> f32 [...]"""
    return np.where(d == 0, np.float32(0), 1 / d)


def extreme(x):
    """The value largest in magnitude in each row, the first among equals; +0 for a row of zeros.  f32 [n, k] -> f32 [n, 1]"""
    return np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1) + np.float32(0)


def lowest_and_highest(x):
    """Minimum and maximum of each row; of a +0 and a -0 the one met first.  f32 [n, k] -> f32 [n, 1], f32 [n, 1]"""
    low = np.take_along_axis(x, x.argmin(axis=1)[:, None], axis=1)
    high = np.take_along_axis(x, x.argmax(axis=1)[:, None], axis=1)
    return low, high


def pack_nibbles(q):
    """Byte j: value j in the low four bits, value j + k/2 in the high four.  u8 [n, k] -> u8 [n, k/2]"""
    low, high = np.split(q & 15, 2, axis=1)
    return low | high << 4


def unpack_nibbles(qs):
    """The inverse of `pack_nibbles`.  u8 [n, k/2] -> u8 [n, k]"""
    return np.concatenate([qs & 15, qs >> 4], axis=1)


def pack_fifth_bits(q):
    """Bit j of the 32: bit 4 of value j, least significant first.  u8 [n, 32] -> u8 [n, 4]"""
    return np.packbits(q >> 4, axis=1, bitorder="little")


def unpack_fifth_bits(qh):
    """16 where bit j is set, else 0.  u8 [n, 4] -> u8 [n, 32]"""
    return np.unpackbits(qh, axis=1, bitorder="little") << 4


# Q4_0: 32 weights in 18 bytes.  w = d * (q - 8),  q in 0..15
#   d   f16     scale; its sign is opposite to that of the weight largest in magnitude, which gets q = 0
#   qs  u8[16]  byte j holds weight j in the low four bits and weight j + 16 in the high four
Q4_0 = np.dtype([("d", "<f2"), ("qs", "u1", 16)])


def dequantize_q4_0(blocks):
    """Q4_0 [n] -> f32 [n, 32]"""
    q = unpack_nibbles(blocks["qs"])
    return (q.astype(np.float32) - 8) * blocks["d"].astype(np.float32)[:, None]


def quantize_q4_0(x):
    """f32 [n, 32] -> Q4_0 [n]"""
    d = extreme(x) / -8
    q = np.minimum(15, truncate(x * reciprocal(d) + np.float32(8.5)).astype(np.int8)).view(np.uint8)
    blocks = np.empty(len(x), Q4_0)
    blocks["d"] = d[:, 0]
    blocks["qs"] = pack_nibbles(q)
    return blocks


# Q4_1: 32 weights in 20 bytes.  w = d * q + m,  q in 0..15
#   d   f16     scale, never negative
#   m   f16     the smallest weight
#   qs  u8[16]  as in Q4_0
Q4_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)])


def dequantize_q4_1(blocks):
    """Q4_1 [n] -> f32 [n, 32]"""
    d, m = (blocks[name].astype(np.float32)[:, None] for name in "dm")
    q = unpack_nibbles(blocks["qs"])
    return q.astype(np.float32) * d + m


def quantize_q4_1(x):
    """f32 [n, 32] -> Q4_1 [n]"""
    m, high = lowest_and_highest(x)
    d = (high - m) / 15
    q = np.minimum(15, truncate((x - m) * reciprocal(d) + np.float32(0.5)).astype(np.int8)).view(np.uint8)
    blocks = np.empty(len(x), Q4_1)
    blocks["d"] = d[:, 0]
    blocks["m"] = m[:, 0]
    blocks["qs"] = pack_nibbles(q)
    return blocks


# Q5_0: 32 weights in 22 bytes.  w = d * (q - 16),  q in 0..31
#   d   f16     scale, signed as in Q4_0
#   qh  u8[4]   bit j, counted from the lowest of the first byte, is the fifth bit of weight j
#   qs  u8[16]  the lower four bits, as in Q4_0
Q5_0 = np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])


def dequantize_q5_0(blocks):
    """Q5_0 [n] -> f32 [n, 32]"""
    q = unpack_nibbles(blocks["qs"]) | unpack_fifth_bits(blocks["qh"])
    return (q.astype(np.float32) - 16) * blocks["d"].astype(np.float32)[:, None]


def quantize_q5_0(x):
    """f32 [n, 32] -> Q5_0 [n]"""
    d = extreme(x) / -16
    q = np.minimum(31, truncate(x * reciprocal(d) + np.float32(16.5)).astype(np.int8)).view(np.uint8)
    blocks = np.empty(len(x), Q5_0)
    blocks["d"] = d[:, 0]
    blocks["qh"] = pack_fifth_bits(q & 16)
    blocks["qs"] = pack_nibbles(q)
    return blocks


# Q5_1: 32 weights in 24 bytes.  w = d * q + m,  q in 0..31
#   d   f16     scale, never negative
#   m   f16     the smallest weight
#   qh  u8[4]   the fifth bits, as in Q5_0
#   qs  u8[16]  the lower four bits, as in Q4_0
Q5_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])


def dequantize_q5_1(blocks):
    """Q5_1 [n] -> f32 [n, 32]"""
    d, m = (blocks[name].astype(np.float32)[:, None] for name in "dm")
    q = unpack_nibbles(blocks["qs"]) | unpack_fifth_bits(blocks["qh"])
    return q.astype(np.float32) * d + m


def quantize_q5_1(x):
    """f32 [n, 32] -> Q5_1 [n]"""
    m, high = lowest_and_highest(x)
    d = (high - m) / 31
    q = truncate((x - m) * reciprocal(d) + np.float32(0.5)).astype(np.uint8)
    blocks = np.empty(len(x), Q5_1)
    blocks["d"] = d[:, 0]
    blocks["m"] = m[:, 0]
    blocks["qh"] = pack_fifth_bits(q & 16)
    blocks["qs"] = pack_nibbles(q)
    return blocks


# Q8_0: 32 weights in 34 bytes.  w = d * q,  q in -127..127
#   d   f16     scale: the largest magnitude / 127
#   qs  i8[32]
Q8_0 = np.dtype([("d", "<f2"), ("qs", "i1", 32)])


def dequantize_q8_0(blocks):
    """Q8_0 [n] -> f32 [n, 32]"""
    return blocks["qs"].astype(np.float32) * blocks["d"].astype(np.float32)[:, None]


def quantize_q8_0(x):
    """f32 [n, 32] -> Q8_0 [n]"""
    d = np.abs(x).max(axis=1, keepdims=True) / 127
    blocks = np.empty(len(x), Q8_0)
    blocks["d"] = d[:, 0]
    blocks["qs"] = truncate(round_half_away(x * reciprocal(d)))
    return blocks


# Q8_1: 32 activations in 36 bytes.  x = d * q,  q in -127..127
#   d   f16     scale, as in Q8_0
#   s   f16     d * sum(q): what a minimum m in the weights is multiplied by, so that it costs one product a block
#   qs  i8[32]
Q8_1 = np.dtype([("d", "<f2"), ("s", "<f2"), ("qs", "i1", 32)])


def dequantize_q8_1(blocks):
    """Q8_1 [n] -> f32 [n, 32]"""
    return blocks["qs"].astype(np.float32) * blocks["d"].astype(np.float32)[:, None]


def quantize_q8_1(x):
    """f32 [n, 32] -> Q8_1 [n]"""
    d = np.abs(x).max(axis=1, keepdims=True) / 127
    blocks = np.empty(len(x), Q8_1)
    blocks["d"] = d[:, 0]
    blocks["qs"] = truncate(round_half_away(x * reciprocal(d)))
    blocks["s"] = blocks["qs"].sum(axis=1, dtype=np.int32).astype(np.float32) * d[:, 0]
    return blocks
