"""One or two bits per weight, for models trained to such weights: ternary TQ1_0 and TQ2_0; binary Q1_0; Q2_0.

Encoders follow ggml-quants.c quantize_row_*_ref, 0c1e57098.  They are meant for weights that are multiples of one scale
already, and distort others.
"""

from __future__ import annotations

import numpy as np

from .arithmetic import quotient, round_half_away, sum_in_order, truncate
from .bits import pack, unpack


def largest_and_ratios(x):
    """Return each row's largest magnitude, and the row divided by it, rounded.  f32 [n, k] -> f32 [n, 1], i32 [n, k]"""
    d = np.abs(x).max(axis=1, keepdims=True)
    return d, truncate(round_half_away(x * quotient(1, d)))


# -------------------------------------------------------------------------------------------------------------- TQ1_0
# TQ1_0: 256 weights in 54 bytes.  w = d * (t - 1),  t in 0..2
#   qs  u8[48]  five weights per byte: t of the first is the leading digit of a five-digit fraction in base 3, which the
#               byte approximates from above as a fraction of 256.  Byte j < 32 holds weights j, j + 32, .. j + 128;
#               byte 32 + j holds weights 160 + j, 160 + j + 16, .. 160 + j + 64
#   qh  u8[4]   byte j holds weights 240 + j, 240 + j + 4, .. 240 + j + 12 likewise; the fifth digit is 0
#   d   f16
TQ1_0 = np.dtype([("qs", "u1", 48), ("qh", "u1", 4), ("d", "<f2")])


def digits(packed, count):
    """Return leading base-3 digits: the first of all bytes, then the second.  u8 [n, m] -> u8 [n, count * m]"""
    shifted = (
        packed[:, None, :] * (3 ** np.arange(count, dtype=np.uint8))[:, None]
    )  # a fraction of 256: the carry is dropped
    return (shifted.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(len(packed), -1)


def undigits(t, count):
    """Return the smallest byte above each fraction, the inverse of `digits`.  u8 [n, count * m] -> u8 [n, m]"""
    powers = 3 ** np.arange(4, 4 - count, -1, dtype=np.uint16)
    number = (t.reshape(len(t), count, -1) * powers[:, None]).sum(axis=1, dtype=np.uint16)
    return ((number.astype(np.uint32) * 256 + 242) // 243).astype(np.uint8)


def dequantize_tq1_0(blocks):
    """Dequantize blocks.  TQ1_0 [n] -> f32 [n, 256]"""
    qs, qh = blocks["qs"], blocks["qh"]
    t = np.concatenate([digits(qs[:, :32], 5), digits(qs[:, 32:], 5), digits(qh, 4)], axis=1)
    return (t.astype(np.float32) - 1) * blocks["d"].astype(np.float32)[:, None]


def quantize_tq1_0(x):
    """Quantize weights.  f32 [n, 256] -> TQ1_0 [n]"""
    d, ratios = largest_and_ratios(x)
    t = (ratios + 1).astype(np.uint8)
    blocks = np.empty(len(x), TQ1_0)
    blocks["d"] = d[:, 0]
    blocks["qs"] = np.concatenate([undigits(t[:, :160], 5), undigits(t[:, 160:240], 5)], axis=1)
    blocks["qh"] = undigits(t[:, 240:], 4)
    return blocks


# -------------------------------------------------------------------------------------------------------------- TQ2_0
# TQ2_0: 256 weights in 66 bytes.  w = d * (t - 1),  t in 0..2
#   qs  u8[64]  weights 0..127 in the first 32 bytes: byte l holds weights l, l + 32, l + 64, l + 96, lowest bits first;
#               weights 128..255 likewise in the other 32
#   d   f16
TQ2_0 = np.dtype([("qs", "u1", 64), ("d", "<f2")])


def dequantize_tq2_0(blocks):
    """Dequantize blocks.  TQ2_0 [n] -> f32 [n, 256]"""
    t = unpack(blocks["qs"], bits=2, run=32)
    return (t.astype(np.float32) - 1) * blocks["d"].astype(np.float32)[:, None]


def quantize_tq2_0(x):
    """Quantize weights.  f32 [n, 256] -> TQ2_0 [n]"""
    d, ratios = largest_and_ratios(x)
    blocks = np.empty(len(x), TQ2_0)
    blocks["d"] = d[:, 0]
    blocks["qs"] = pack((ratios + 1 & 3).astype(np.uint8), bits=2, run=32)
    return blocks


# --------------------------------------------------------------------------------------------------------------- Q1_0
# Q1_0: 128 weights in 18 bytes.  w = d or -d
#   d   f16     mean magnitude
#   qs  u8[16]  bit i of byte j: weight 8 j + i is not negative
Q1_0 = np.dtype([("d", "<f2"), ("qs", "u1", 16)])


def dequantize_q1_0(blocks):
    """Dequantize blocks.  Q1_0 [n] -> f32 [n, 128]"""
    bit = unpack(blocks["qs"], bits=1, run=1)
    return (2 * bit.astype(np.float32) - 1) * blocks["d"].astype(np.float32)[:, None]


def quantize_q1_0(x):
    """Quantize weights.  f32 [n, 128] -> Q1_0 [n]"""
    blocks = np.empty(len(x), Q1_0)
    blocks["d"] = sum_in_order(np.abs(x).T) / 128
    blocks["qs"] = pack((x >= 0).astype(np.uint8), bits=1, run=1)
    return blocks


# --------------------------------------------------------------------------------------------------------------- Q2_0
# Q2_0: 64 weights in 18 bytes.  w = d * (q - 1),  q in 0..3
#   d   f16     largest magnitude; q = 3, twice that, is never encoded
#   qs  u8[16]  byte j holds weights 4 j .. 4 j + 3, lowest bits first
Q2_0 = np.dtype([("d", "<f2"), ("qs", "u1", 16)])


def dequantize_q2_0(blocks):
    """Dequantize blocks.  Q2_0 [n] -> f32 [n, 64]"""
    q = unpack(blocks["qs"], bits=2, run=1)
    return (q.astype(np.float32) - 1) * blocks["d"].astype(np.float32)[:, None]


def quantize_q2_0(x):
    """Quantize weights.  f32 [n, 64] -> Q2_0 [n]"""
    d, ratios = largest_and_ratios(x)
    blocks = np.empty(len(x), Q2_0)
    blocks["d"] = d[:, 0]
    blocks["qs"] = pack(np.clip(ratios + 1, 0, 3).astype(np.uint8), bits=2, run=1)
    return blocks
