"""C's float32 arithmetic where NumPy's differs.  ggml's encoders use it, and their bytes depend on it."""

from __future__ import annotations

import numpy as np


def quotient(a, b):
    """Compute a / b, and 0 where b is 0: ggml's `b ? a / b : 0`.  f32 [...] -> f32 [...]"""
    return np.where(b == 0, np.float32(0), a / b)


def truncate(x):
    """Compute C's `(int) x` as on x86: toward zero; INT_MIN for NaN and values out of range.  f32 [...] -> i32 [...]"""
    return np.where(np.abs(x) < 2**31, x, np.float32(-(2**31))).astype(np.int32)


def round_half_away(x):
    """Compute C's `roundf(x)`: ties away from zero (NumPy's `rint`: ties to even).  f32 [...] -> f32 [...]"""
    whole = np.trunc(x)
    return whole + np.where(np.abs(x - whole) >= 0.5, np.copysign(np.float32(1), x), np.float32(0))


def nearest_int(x):
    """Compute ggml's `nearest_int(x)`: to nearest, ties to even, for |x| < 2**22.  f32 [...] -> i32 [...]

    The result is the low 23 bits of x + 1.5 * 2**23.  Outside the range it is meaningless, but equal to ggml's.
    """
    return ((x + np.float32(1.5 * 2**23)).view(np.int32) & 0x007FFFFF) - 0x00400000


def sum_in_order(x):
    """Sum over the first axis, first to last, from +0 (NumPy's `sum` may add in pairs).  f32 [k, ...] -> f32 [...]"""
    total = np.zeros_like(x[0])
    for row in x:
        total += row
    return total


def extreme(x, axis):
    """Return the value largest in magnitude, the first among equals.  NaNs are ignored; +0 if no other value is left.

    f32 [..., k, ...] -> f32 [..., 1, ...], the 1 at `axis`
    """
    magnitude = np.fmax(np.abs(x), 0)
    first = magnitude.argmax(axis, keepdims=True)
    return np.where(np.take_along_axis(magnitude, first, axis) > 0, np.take_along_axis(x, first, axis), np.float32(0))
