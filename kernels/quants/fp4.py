"""Four-bit floats (E2M1) under a scale that is a small float itself: MXFP4 and NVFP4.

E2M1 has a sign, two bits of exponent and one of fraction: 0, 1/2, 1, 3/2, 2, 3, 4, 6.  ggml stores the doubled values,
which are integers, and halves the scales.  Encoders follow ggml-quants.c quantize_row_*_ref, 0c1e57098.
Sources: OCP Microscaling Formats v1.0 (E8M0, E2M1); NVIDIA's NVFP4 (E4M3 scales, here without their sign).
"""

from __future__ import annotations

import numpy as np

from .arithmetic import truncate
from .bits import pack, unpack

# kvalues_fp4: twice the value of each code; code 8 is minus zero, which ggml maps to zero
TWICE = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def nearest_code(x, half):
    """Return the code whose value is nearest to x, the first among equals.  f32 [n, k], f32 [n, 1] -> u8 [n, k]"""
    best = np.zeros(x.shape, np.uint8)
    best_error = np.abs(TWICE[0] * half - x)
    for code in range(1, 16):
        error = np.abs(TWICE[code] * half - x)
        better = error < best_error
        best = np.where(better, np.uint8(code), best)
        best_error = np.where(better, error, best_error)
    return best


# -------------------------------------------------------------------------------------------------------------- MXFP4
# MXFP4: 32 weights in 17 bytes.  w = 2**(e - 127) * E2M1(q)
#   e   u8      E8M0: only an exponent
#   qs  u8[16]  as in Q4_0; E2M1 is 0 1/2 1 3/2 2 3 4 6 for q in 0..7, and minus these for q in 8..15
MXFP4 = np.dtype([("e", "u1"), ("qs", "u1", 16)])


def half_of_e8m0(e):
    """Compute 2**(e - 128), half of an E8M0 scale.  u8 [...] -> f32 [...]"""
    return np.ldexp(np.float32(1), e.astype(np.int32) - 128)


def dequantize_mxfp4(blocks):
    """Dequantize blocks.  MXFP4 [n] -> f32 [n, 32]"""
    return TWICE[unpack(blocks["qs"], bits=4, run=16)] * half_of_e8m0(blocks["e"])[:, None]


def quantize_mxfp4(x):
    """Quantize weights.  f32 [n, 32] -> MXFP4 [n].  e maps the largest magnitude to 4 .. 8; above 6 it is clipped."""
    amax = np.abs(x).max(axis=1)
    exponent = np.floor(np.log2(amax)) - 2 + 127
    e = np.where(amax > 0, exponent, 0).astype(np.int32).astype(np.uint8)
    blocks = np.empty(len(x), MXFP4)
    blocks["e"] = e
    blocks["qs"] = pack(nearest_code(x, half_of_e8m0(e)[:, None]), bits=4, run=16)
    return blocks


# -------------------------------------------------------------------------------------------------------------- NVFP4
# NVFP4: 64 weights in 36 bytes, 4 groups of 16.  w = E4M3(d) * E2M1(q)
#   d   u8[4]   E4M3 without sign: four bits of exponent (bias 7), three of fraction, subnormals; 0x7f counts as 0
#   qs  u8[32]  group i in bytes 8 i .. 8 i + 7: byte j of these holds weight j in the low four bits, j + 8 in the high
NVFP4 = np.dtype([("d", "u1", 4), ("qs", "u1", 32)])


def half_of_e4m3(d):
    """Compute half of an E4M3 scale.  u8 [...] -> f32 [...]"""
    exponent, fraction = d >> 3 & 15, d & 7
    eighths = np.where(exponent > 0, 8 + fraction, fraction).astype(np.float32)
    return np.where(d == 0x7F, np.float32(0), np.ldexp(eighths, np.maximum(exponent, 1).astype(np.int32) - 11))


def f32_to_e4m3(x):
    """Convert to the nearest E4M3; values of 256 and more (after rounding) become the largest, 448.

    f32 [...], not negative -> u8 [...].  As in ggml-impl.h ggml_fp32_to_ue4m3, 0c1e57098.
    """
    bits = x.view(np.int32)
    rounded = (bits >> 19) + 1 >> 1  # exponent and three bits of fraction; a carry moves into the exponent
    normal = np.where(rounded < 127 + 8 << 3, rounded - (127 - 7 << 3), 0x7E)
    subnormal = np.minimum(truncate(x * 512 + np.float32(0.5)), 7)
    return np.where(bits >> 23 > 127 - 7, normal, subnormal).astype(np.uint8)


def dequantize_nvfp4(blocks):
    """Dequantize blocks.  NVFP4 [n] -> f32 [n, 64]"""
    values = TWICE[unpack(blocks["qs"], bits=4, run=8)].reshape(-1, 4, 16)
    return (values * half_of_e4m3(blocks["d"])[..., None]).reshape(-1, 64)


def quantize_nvfp4(x):
    """Quantize weights.  f32 [n, 64] -> NVFP4 [n].  d maps each group's largest magnitude to 6."""
    groups = x.reshape(-1, 16)
    d = f32_to_e4m3(np.abs(groups).max(axis=1) / 6)
    q = nearest_code(groups, half_of_e4m3(d)[:, None])
    blocks = np.empty(len(x), NVFP4)
    blocks["d"] = d.reshape(-1, 4)
    blocks["qs"] = pack(q.reshape(-1, 64), bits=4, run=8)
    return blocks
