"""C's float32 arithmetic, exactly, where NumPy's own differs: what it takes to reproduce ggml's bytes."""

from __future__ import annotations

import numpy as np


def truncate(x):
    """C's `(int) x` as x86 computes it: toward zero; what does not fit, NaN too, becomes INT_MIN.  f32 [...] -> i32 [...]"""
    return np.where(np.abs(x) < 2**31, x, np.float32(-(2**31))).astype(np.int32)


def round_half_away(x):
    """C's `roundf(x)`: to nearest, ties away from zero (NumPy's `rint` sends ties to even).  f32 [...] -> f32 [...]"""
    whole = np.trunc(x)
    return whole + np.where(np.abs(x - whole) >= 0.5, np.copysign(np.float32(1), x), np.float32(0))


def nearest_int(x):
    """ggml's `nearest_int(x)`: to nearest, ties to even, read from the fraction bits of x + 1.5 * 2**23.  f32 [...] -> i32 [...]

    Right for |x| < 2**22; beyond it the low 23 bits are what they are, and ggml's bytes depend on them.
    """
    bits = (x + np.float32(12582912)).view(np.int32)
    return (bits & 0x007FFFFF) - 0x00400000


def sum_in_order(x):
    """Sums along the last axis, left to right from +0 (NumPy's `sum` adds in pairs).  f32 [..., k] -> f32 [...]"""
    return np.add.accumulate(x, axis=-1)[..., -1] + np.float32(0)
