"""The two 16-bit floats: F16 (IEEE binary16, 5 bits of exponent) and BF16 (the upper half of an F32)."""

from __future__ import annotations

import numpy as np


def bf16_to_f32(bits):
    """Return the floats whose upper halves are `bits`.  u16 [...] -> f32 [...]"""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(x):
    """Round `x` to BF16: to nearest, ties to even; a NaN becomes a quiet NaN.  f32 [...] -> u16 [...]

    As in ggml-impl.h ggml_compute_fp32_to_bf16, 0c1e57098.
    """
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    upper = bits >> 16
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(nan, upper | 64, (bits + (0x7FFF + (upper & 1))) >> 16).astype(np.uint16)
