"""Formats without blocks: each number is a weight.  F32 F64 F16 BF16, I8 I16 I32 I64."""

from __future__ import annotations

import numpy as np

from ..half import bf16_to_f32, f32_to_bf16

# F32 F64 F16 I8 I16 I32 I64: each number is one weight, an IEEE 754 float or a two's complement integer
F32, F64, F16 = np.dtype("<f4"), np.dtype("<f8"), np.dtype("<f2")
I8, I16, I32, I64 = np.dtype("<i1"), np.dtype("<i2"), np.dtype("<i4"), np.dtype("<i8")


def dequantize_number(blocks):
    """Convert numbers to float32: F32 without a copy, F16 exactly, longer types rounded.  [n] -> f32 [n, 1]"""
    return blocks.astype(np.float32, copy=False)[:, None]


def quantize_number(layout):
    """Return the encoder to `layout`: floats rounded to nearest, ties to even; integers toward zero, as in C's cast.

    f32 [n, 1] -> layout [n].  A float outside the format's range becomes infinite; the caller keeps integers in range.
    """
    return lambda x: x[:, 0].astype(layout)


# BF16: one weight in 2 bytes, the upper half of an F32: sign, 8 bits of exponent, 7 of fraction
BF16 = np.dtype("<u2")


def dequantize_bf16(blocks):
    """Dequantize blocks.  BF16 [n] -> f32 [n, 1]"""
    return bf16_to_f32(blocks)[:, None]


def quantize_bf16(x):
    """Quantize weights.  f32 [n, 1] -> BF16 [n]"""
    return f32_to_bf16(x[:, 0]).astype(BF16)
