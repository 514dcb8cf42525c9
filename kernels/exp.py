"""The exponential function on vectors, for softmax and the activation functions."""

import numpy as np

from .jit import inner
from .simd import bits, f32x16, i32x16, maximum, minimum, splat

LOG2_E = np.float32(1.4426950408889634)
LN_2_HIGH, LN_2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # their sum is ln 2; high has 9 bits
ROUNDING_SHIFT = np.float32(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer, which the low bits hold


@inner
def exp(x):
    """Compute e^x of each lane within a relative error of 1e-7.  f32x16 -> f32x16

    Below -88 the result is 0; from 88 on it is e^88, the largest that fits.
    x = n ln 2 + r, |r| <= ln 2 / 2;  2^n is built from its exponent bits, e^r is a polynomial (Cephes expf).
    """
    x = minimum(maximum(x, splat(f32x16, -88.1)), splat(f32x16, 88.0))
    shifted = x * LOG2_E + ROUNDING_SHIFT
    n = shifted - ROUNDING_SHIFT
    r = x - n * LN_2_HIGH - n * LN_2_LOW
    p = r * np.float32(1.9875691500e-4) + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    power = bits(f32x16, (bits(i32x16, shifted) - 0x4B400000 + 127) << 23)
    return (p * (r * r) + r + np.float32(1)) * power
