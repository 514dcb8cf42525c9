"""Blocks of 32 weights under one scale: Q4_0 Q4_1 Q5_0 Q5_1 Q8_0, and Q8_1 for activations.

Encoders follow ggml-quants.c quantize_row_*_ref, 0c1e57098, operation by operation in float32.  Their bytes equal
llama-quantize's, including the sign of a zero.
"""

from __future__ import annotations

import numpy as np

from .arithmetic import extreme, quotient, round_half_away, truncate
from .bits import pack, unpack

# --------------------------------------------------------------------------------------------------------------- Q4_0
# Q4_0: 32 weights in 18 bytes.  w = d * (q - 8),  q in 0..15
#   d   f16     scale; the weight largest in magnitude gets q = 0, so d has the opposite sign
#   qs  u8[16]  byte j holds weight j in the low four bits and weight j + 16 in the high four
Q4_0 = np.dtype([("d", "<f2"), ("qs", "u1", 16)])


def dequantize_q4_0(blocks):
    """Dequantize blocks.  Q4_0 [n] -> f32 [n, 32]"""
    q = unpack(blocks["qs"], bits=4, run=16)
    return (q.astype(np.float32) - 8) * blocks["d"].astype(np.float32)[:, None]


def quantize_q4_0(x):
    """Quantize weights.  f32 [n, 32] -> Q4_0 [n]"""
    d = extreme(x, axis=1) / -8
    q = np.minimum(15, truncate(x * quotient(1, d) + np.float32(8.5)).astype(np.int8)).view(np.uint8)
    blocks = np.empty(len(x), Q4_0)
    blocks["d"] = d[:, 0]
    blocks["qs"] = pack(q, bits=4, run=16)
    return blocks


# --------------------------------------------------------------------------------------------------------------- Q4_1
# Q4_1: 32 weights in 20 bytes.  w = d * q + m,  q in 0..15
#   d   f16     scale, never negative
#   m   f16     the smallest weight
#   qs  u8[16]  as in Q4_0
Q4_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)])


def dequantize_q4_1(blocks):
    """Dequantize blocks.  Q4_1 [n] -> f32 [n, 32]"""
    d, m = (blocks[name].astype(np.float32)[:, None] for name in ("d", "m"))
    q = unpack(blocks["qs"], bits=4, run=16)
    return q.astype(np.float32) * d + m


def quantize_q4_1(x):
    """Quantize weights.  f32 [n, 32] -> Q4_1 [n]"""
    m, high = lowest_and_highest(x)
    d = (high - m) / 15
    q = np.minimum(15, truncate((x - m) * quotient(1, d) + np.float32(0.5)).astype(np.int8)).view(np.uint8)
    blocks = np.empty(len(x), Q4_1)
    blocks["d"] = d[:, 0]
    blocks["m"] = m[:, 0]
    blocks["qs"] = pack(q, bits=4, run=16)
    return blocks


def lowest_and_highest(x):
    """Return each row's minimum and maximum; of +0 and -0, the first one.  f32 [n, k] -> f32 [n, 1], f32 [n, 1]"""
    low = np.take_along_axis(x, x.argmin(axis=1, keepdims=True), axis=1)
    high = np.take_along_axis(x, x.argmax(axis=1, keepdims=True), axis=1)
    return low, high


# --------------------------------------------------------------------------------------------------------------- Q5_0
# Q5_0: 32 weights in 22 bytes.  w = d * (q - 16),  q in 0..31
#   d   f16     scale, signed as in Q4_0
#   qh  u8[4]   bit j, counted from the lowest of the first byte, is the fifth bit of weight j
#   qs  u8[16]  the lower four bits, as in Q4_0
Q5_0 = np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])


def dequantize_q5_0(blocks):
    """Dequantize blocks.  Q5_0 [n] -> f32 [n, 32]"""
    q = unpack(blocks["qs"], bits=4, run=16) | unpack(blocks["qh"], bits=1, run=1) << 4
    return (q.astype(np.float32) - 16) * blocks["d"].astype(np.float32)[:, None]


def quantize_q5_0(x):
    """Quantize weights.  f32 [n, 32] -> Q5_0 [n]"""
    d = extreme(x, axis=1) / -16
    q = np.minimum(31, truncate(x * quotient(1, d) + np.float32(16.5)).astype(np.int8)).view(np.uint8)
    blocks = np.empty(len(x), Q5_0)
    blocks["d"] = d[:, 0]
    blocks["qh"] = pack(q >> 4 & 1, bits=1, run=1)
    blocks["qs"] = pack(q & 15, bits=4, run=16)
    return blocks


# --------------------------------------------------------------------------------------------------------------- Q5_1
# Q5_1: 32 weights in 24 bytes.  w = d * q + m,  q in 0..31
#   d   f16     scale, never negative
#   m   f16     the smallest weight
#   qh  u8[4]   the fifth bits, as in Q5_0
#   qs  u8[16]  the lower four bits, as in Q4_0
Q5_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])


def dequantize_q5_1(blocks):
    """Dequantize blocks.  Q5_1 [n] -> f32 [n, 32]"""
    d, m = (blocks[name].astype(np.float32)[:, None] for name in ("d", "m"))
    q = unpack(blocks["qs"], bits=4, run=16) | unpack(blocks["qh"], bits=1, run=1) << 4
    return q.astype(np.float32) * d + m


def quantize_q5_1(x):
    """Quantize weights.  f32 [n, 32] -> Q5_1 [n]"""
    m, high = lowest_and_highest(x)
    d = (high - m) / 31
    q = truncate((x - m) * quotient(1, d) + np.float32(0.5)).astype(np.uint8)
    blocks = np.empty(len(x), Q5_1)
    blocks["d"] = d[:, 0]
    blocks["m"] = m[:, 0]
    blocks["qh"] = pack(q >> 4 & 1, bits=1, run=1)
    blocks["qs"] = pack(q & 15, bits=4, run=16)
    return blocks


# --------------------------------------------------------------------------------------------------------------- Q8_0
# Q8_0: 32 weights in 34 bytes.  w = d * q,  q in -127..127
#   d   f16     scale: the largest magnitude / 127
#   qs  i8[32]
Q8_0 = np.dtype([("d", "<f2"), ("qs", "i1", 32)])


def dequantize_q8_0(blocks):
    """Dequantize blocks.  Q8_0 [n] -> f32 [n, 32]"""
    return blocks["qs"].astype(np.float32) * blocks["d"].astype(np.float32)[:, None]


def quantize_q8_0(x):
    """Quantize weights.  f32 [n, 32] -> Q8_0 [n]"""
    d = np.abs(x).max(axis=1, keepdims=True) / 127
    blocks = np.empty(len(x), Q8_0)
    blocks["d"] = d[:, 0]
    blocks["qs"] = truncate(round_half_away(x * quotient(1, d)))
    return blocks


# --------------------------------------------------------------------------------------------------------------- Q8_1
# Q8_1: 32 activations in 36 bytes.  x = d * q,  q in -127..127
#   d   f16     scale, as in Q8_0
#   s   f16     d * sum(q), the factor of a block's minimum m in a dot product with Q4_1 or Q5_1
#   qs  i8[32]
Q8_1 = np.dtype([("d", "<f2"), ("s", "<f2"), ("qs", "i1", 32)])


def dequantize_q8_1(blocks):
    """Dequantize blocks.  Q8_1 [n] -> f32 [n, 32]"""
    return blocks["qs"].astype(np.float32) * blocks["d"].astype(np.float32)[:, None]


def quantize_q8_1(x):
    """Quantize activations.  f32 [n, 32] -> Q8_1 [n]"""
    d = np.abs(x).max(axis=1, keepdims=True) / 127
    q = truncate(round_half_away(x * quotient(1, d)))
    blocks = np.empty(len(x), Q8_1)
    blocks["d"] = d[:, 0]
    blocks["s"] = q.sum(axis=1).astype(np.float32) * d[:, 0]
    blocks["qs"] = q
    return blocks
