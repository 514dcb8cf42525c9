"""K-quants: super-blocks of 256 weights in groups of 16 or 32, whose scales are quantized too.

    Q2_K Q4_K Q5_K   w = d * scale * q - dmin * min      scale and min per group, 4 or 6 bits
    Q3_K Q6_K        w = d * scale * q                   scale per group, 6 or 8 bits, signed
    Q8_K             activations only; d is a float32

Encoders search each group's scale by weighted least squares, quantize the scales, then round the weights again with the
quantized scales.  They follow ggml-quants.c quantize_row_*_K_ref, 0c1e57098, in float32, operation by operation.  Sums
are taken in the order of the weights in a group, which is the first axis of arrays here: [16 or 32, groups].
"""

from __future__ import annotations

import numpy as np

from .arithmetic import extreme, nearest_int, quotient, sum_in_order
from .bits import pack, unpack

GROUP_MAX_EPS = np.float32(1e-15)  # a group whose magnitudes are all smaller counts as zero, as in ggml


# ----------------------------------------------------------------------------------------------------------- searches
def by_group(x, size):
    """Split super-blocks into groups, one per column.  f32 [n, 256] -> f32 [size, n * 256 / size]"""
    return np.ascontiguousarray(x.reshape(-1, size).T)


def search_scale_and_min(x, weights, q_max, first, n_step, absolute=False):
    """Search scale, minimum and codes of each group so that x is about scale * q - minimum, with q in 0..q_max.

    x, weights f32 [k, g] -> f32 [g], f32 [g], i32 [k, g]
    Codes are tried for q_max + first, q_max + first + 0.1, ... (n_step further trials) in place of q_max.  In each
    trial, scale and minimum minimize sum(w * (scale * q - minimum - x)**2): two linear equations, solved by Cramer's
    rule. The smallest weighted squared (or `absolute`) error wins.  Its minimum is the start of the next trial. As in
    make_qkx2_quants.
    """
    low, high = np.minimum(x.min(axis=0), 0), x.max(axis=0)
    flat = high == low  # the group is all zeros, or one negative value, which is then the minimum
    flat_min = -low
    sum_w, sum_x = sum_in_order(weights), sum_in_order(weights * x)

    def codes(steps):
        return np.clip(nearest_int(steps / (high - low) * (x - low)), 0, q_max)

    def error(scale, q, low):
        miss = scale * q + low - x
        return sum_in_order(weights * (np.abs(miss) if absolute else miss * miss))

    q = codes(np.float32(q_max))
    scale = 1 / (q_max / (high - low))
    best = error(scale, q.astype(np.float32), low)
    for step in range(n_step + 1):
        trial_q = codes(np.float32(first) + np.float32(0.1) * np.float32(step) + np.float32(q_max))
        t = trial_q.astype(np.float32)
        wt = weights * t
        sum_t, sum_tt, sum_xt = sum_in_order(wt), sum_in_order(wt * t), sum_in_order(wt * x)
        det = sum_w * sum_tt - sum_t * sum_t
        trial_scale = (sum_w * sum_xt - sum_x * sum_t) / det
        trial_low = (sum_tt * sum_x - sum_t * sum_xt) / det
        above = trial_low > 0
        trial_scale = np.where(above, sum_xt / sum_tt, trial_scale)
        trial_low = np.where(above, np.float32(0), trial_low)
        trial_error = error(trial_scale, t, trial_low)
        better = (det > 0) & (trial_error < best)
        best = np.where(better, trial_error, best)
        scale = np.where(better, trial_scale, scale)
        low = np.where(better, trial_low, low)
        q = np.where(better, trial_q, q)
    return np.where(flat, np.float32(0), scale), np.where(flat, flat_min, -low), np.where(flat, 0, q)


def search_scale(x, q_max):
    """Search scale and codes of each group so that x is about scale * q, with q in -q_max..q_max - 1; weights are x**2.

    x f32 [k, g] -> f32 [g], i32 [k, g]
    Nineteen trials map the extreme value to -(q_max - 0.9) .. -(q_max + 0.9).  The best scale for given codes is
    sum(w x q) / sum(w q q).  The larger sum(w x q)**2 / sum(w q q), the smaller the error.  As in make_qx_quants.
    """
    peak = extreme(x, axis=0)[0]
    weights = x * x

    def fit(steps):
        q = np.clip(nearest_int(-steps / peak * x), -q_max, q_max - 1)
        t = q.astype(np.float32)
        return q, sum_in_order(weights * x * t), sum_in_order(weights * t * t)

    q, sum_xq, sum_qq = fit(np.float32(q_max))
    scale = quotient(sum_xq, sum_qq)
    best = scale * sum_xq
    for tenth in (*range(-9, 0), *range(1, 10)):
        trial_q, sum_xq, sum_qq = fit(np.float32(q_max) + np.float32(0.1) * np.float32(tenth))
        better = (sum_qq > 0) & (sum_xq * sum_xq > best * sum_qq)
        scale = np.where(better, sum_xq / sum_qq, scale)
        best = np.where(better, scale * sum_xq, best)
        q = np.where(better, trial_q, q)
    empty = np.abs(peak) < GROUP_MAX_EPS
    return np.where(empty, np.float32(0), scale), np.where(empty, -q_max, q)


def search_scale_by_descent(x, q_max):
    """Search like `search_scale`, but from one start, changing single codes while the fit improves.

    x f32 [k, g] -> f32 [g], i32 [k, g].  As in make_q3_quants.
    """
    peak = extreme(x, axis=0)[0]
    weights = x * x
    q = np.clip(nearest_int(np.float32(-q_max) / peak * x), -q_max, q_max - 1)
    t = q.astype(np.float32)
    sum_xq, sum_qq = sum_in_order(weights * x * t), sum_in_order(weights * t * t)
    for _ in range(5):
        for i in range(len(x)):
            w, t = weights[i], q[i].astype(np.float32)
            rest_xq, rest_qq = sum_xq - w * x[i] * t, sum_qq - w * t * t
            moved = np.clip(nearest_int(x[i] * rest_qq / rest_xq), -q_max, q_max - 1)
            t = moved.astype(np.float32)
            new_xq, new_qq = rest_xq + w * x[i] * t, rest_qq + w * t * t
            better = (rest_xq > 0) & (moved != q[i]) & (new_qq > 0)
            better &= new_xq * new_xq * sum_qq > sum_xq * sum_xq * new_qq
            q[i] = np.where(better, moved, q[i])
            sum_xq, sum_qq = np.where(better, new_xq, sum_xq), np.where(better, new_qq, sum_qq)
    empty = np.abs(peak) < GROUP_MAX_EPS
    scale = np.where(sum_qq > 0, sum_xq / sum_qq, np.float32(0))
    return np.where(empty, np.float32(0), scale), np.where(empty, -q_max, q)


def requantize_codes(x, d, minimum, q, q_lowest, q_highest):
    """Return the codes for the scales as stored: (x + minimum) / d, rounded; the search's `q` where d is 0.

    x f32 [k, g], d and minimum f32 [n, g / n], q i32 [k, g] -> u8 [n, 256], counted from q_lowest
    """
    d = d.reshape(-1)
    requantized = np.clip(nearest_int((x + minimum.reshape(-1)) / d), q_lowest, q_highest)
    return (np.where(d == 0, q, requantized) - q_lowest).T.astype(np.uint8).reshape(-1, 256)


def row_maximum(x):
    """Return the largest value of each row, at least +0; NaNs are ignored.  f32 [n, k] -> f32 [n, 1]"""
    return np.fmax.reduce(x, axis=1, initial=0, keepdims=True) + np.float32(0)


# --------------------------------------------------------------------------------------------------------------- Q2_K
# Q2_K: 256 weights in 84 bytes, 16 groups of 16.  w = d * scale * q - dmin * min,  q in 0..3
#   scales  u8[16]  group j's scale in the low four bits, its min in the high four
#   qs      u8[64]  weights 0..127 in the first 32 bytes: byte l holds weights l, l + 32, l + 64, l + 96, lowest bits
#                   first; weights 128..255 likewise in the other 32
#   d       f16     scale of the scales
#   dmin    f16     scale of the mins
Q2_K = np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")])


def dequantize_q2_k(blocks):
    """Dequantize blocks.  Q2_K [n] -> f32 [n, 256]"""
    d, dmin = (blocks[name].astype(np.float32)[:, None] for name in ("d", "dmin"))
    scales = d * (blocks["scales"] & 15)
    mins = dmin * (blocks["scales"] >> 4)
    q = unpack(blocks["qs"], bits=2, run=32).reshape(-1, 16, 16)
    return (scales[..., None] * q - mins[..., None]).reshape(-1, 256)


def quantize_q2_k(x):
    """Quantize weights.  f32 [n, 256] -> Q2_K [n]"""
    groups = by_group(x, 16)
    scale, minimum, q = search_scale_and_min(groups, np.abs(groups), q_max=3, first=-0.5, n_step=15, absolute=True)
    scale, minimum = scale.reshape(-1, 16), minimum.reshape(-1, 16)
    top_scale, top_min = row_maximum(scale), row_maximum(minimum)
    low = nearest_int(quotient(15, top_scale) * scale)
    high = nearest_int(quotient(15, top_min) * minimum)
    blocks = np.empty(len(x), Q2_K)
    blocks["d"], blocks["dmin"] = top_scale[:, 0] / 15, top_min[:, 0] / 15
    blocks["scales"] = (low | high << 4).astype(np.uint8)
    d, dmin = (blocks[name].astype(np.float32)[:, None] for name in ("d", "dmin"))
    q = requantize_codes(groups, d * (blocks["scales"] & 15), dmin * (blocks["scales"] >> 4), q, 0, 3)
    blocks["qs"] = pack(q, bits=2, run=32)
    return blocks


# --------------------------------------------------------------------------------------------------------------- Q3_K
# Q3_K: 256 weights in 110 bytes, 16 groups of 16.  w = d * (scale - 32) * (q - 4),  scale in 0..63, q in 0..7
#   hmask   u8[32]  bit i of byte l is the third bit of weight 32 i + l
#   qs      u8[64]  the lower two bits, as in Q2_K
#   scales  u8[12]  byte j < 8: the lower four bits of scale j, then of scale j + 8;
#                   byte 8 + j: the upper two bits of scales j, j + 4, j + 8, j + 12, lowest bits first
#   d       f16
Q3_K = np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")])


def dequantize_q3_k(blocks):
    """Dequantize blocks.  Q3_K [n] -> f32 [n, 256]"""
    scales = unpack(blocks["scales"][:, :8], bits=4, run=8) | unpack(blocks["scales"][:, 8:], bits=2, run=4) << 4
    scales = blocks["d"].astype(np.float32)[:, None] * (scales.astype(np.int8) - 32)
    q = unpack(blocks["qs"], bits=2, run=32) | unpack(blocks["hmask"], bits=1, run=32) << 2
    return (scales[..., None] * (q.astype(np.int8) - 4).reshape(-1, 16, 16)).reshape(-1, 256)


def quantize_q3_k(x):
    """Quantize weights.  f32 [n, 256] -> Q3_K [n]"""
    groups = by_group(x, 16)
    scale, q = search_scale_by_descent(groups, q_max=4)
    scale = scale.reshape(-1, 16)
    top = extreme(scale, axis=1)
    per_d = -32 / top
    scales = np.where(top == 0, -32, np.clip(nearest_int(per_d * scale).astype(np.int8), -32, 31))
    packed = (scales + 32).astype(np.uint8)
    blocks = np.empty(len(x), Q3_K)
    blocks["d"] = np.where(top == 0, np.float32(0), 1 / per_d)[:, 0]
    blocks["scales"][:, :8] = pack(packed & 15, bits=4, run=8)
    blocks["scales"][:, 8:] = pack(packed >> 4, bits=2, run=4)
    d = blocks["d"].astype(np.float32)[:, None] * scales.astype(np.float32)
    q = requantize_codes(groups, d, np.zeros_like(d), q, -4, 3)
    blocks["hmask"] = pack(q >> 2, bits=1, run=32)
    blocks["qs"] = pack(q & 3, bits=2, run=32)
    return blocks


# --------------------------------------------------------------------------------------------------------------- Q4_K
# Q4_K: 256 weights in 144 bytes, 8 groups of 32.  w = d * scale * q - dmin * min,  scale and min in 0..63, q in 0..15
#   d       f16     scale of the scales
#   dmin    f16     scale of the mins
#   scales  u8[12]  j in 0..3       bits 7 6                        bits 5 4 3 2 1 0
#                   byte j          upper two of scale j + 4        scale j
#                   byte j + 4      upper two of min j + 4          min j
#                   byte j + 8      lower four of min j + 4 (bits 7..4) and of scale j + 4 (bits 3..0)
#   qs      u8[128] weights 0..63 in the first 32 bytes: byte l holds weight l in the low four bits, l + 32 in the high
#                   four; the next 64 weights in the next 32 bytes, and so on
Q4_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)])


def unpack_scales_and_mins(packed):
    """Unpack the six-bit scales and mins of Q4_K and Q5_K.  u8 [n, 12] -> u8 [n, 8], u8 [n, 8]"""
    a, b, c = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([a & 63, c & 15 | a >> 6 << 4], axis=1)
    mins = np.concatenate([b & 63, c >> 4 | b >> 6 << 4], axis=1)
    return scales, mins


def pack_scales_and_mins(scales, mins):
    """Pack six-bit scales and mins.  u8 [n, 8], u8 [n, 8] -> u8 [n, 12]"""
    a = scales[:, :4] | scales[:, 4:] >> 4 << 6
    b = mins[:, :4] | mins[:, 4:] >> 4 << 6
    c = scales[:, 4:] & 15 | mins[:, 4:] << 4
    return np.concatenate([a, b, c], axis=1)


def dequantize_scales_and_mins(blocks):
    """Return d * scale and dmin * min of Q4_K or Q5_K [n].  -> f32 [n, 8], f32 [n, 8]"""
    scales, mins = unpack_scales_and_mins(blocks["scales"])
    return blocks["d"].astype(np.float32)[:, None] * scales, blocks["dmin"].astype(np.float32)[:, None] * mins


def dequantize_q4_k(blocks):
    """Dequantize blocks.  Q4_K [n] -> f32 [n, 256]"""
    scales, mins = dequantize_scales_and_mins(blocks)
    q = unpack(blocks["qs"], bits=4, run=32).reshape(-1, 8, 32)
    return (scales[..., None] * q - mins[..., None]).reshape(-1, 256)


def quantize_q4_k(x):
    """Quantize weights.  f32 [n, 256] -> Q4_K [n]"""
    blocks = np.empty(len(x), Q4_K)
    q = quantize_scales_and_mins(x, blocks, q_max=15, first=-1, n_step=20)
    blocks["qs"] = pack(q, bits=4, run=32)
    return blocks


def quantize_scales_and_mins(x, blocks, q_max, first, n_step):
    """Set d, dmin and scales of Q4_K or Q5_K `blocks`; return the codes.  f32 [n, 256] -> u8 [n, 256]"""
    groups = by_group(x, 32)
    weights = np.sqrt(sum_in_order(groups * groups) / 32) + np.abs(groups)
    scale, minimum, q = search_scale_and_min(groups, weights, q_max, first, n_step)
    scale, minimum = scale.reshape(-1, 8), minimum.reshape(-1, 8)
    top_scale, top_min = row_maximum(scale), row_maximum(minimum)
    scales = np.minimum(63, nearest_int(quotient(63, top_scale) * scale).astype(np.uint8))
    mins = np.minimum(63, nearest_int(quotient(63, top_min) * minimum).astype(np.uint8))
    blocks["d"], blocks["dmin"] = top_scale[:, 0] / 63, top_min[:, 0] / 63
    blocks["scales"] = pack_scales_and_mins(scales, mins)
    d, dm = dequantize_scales_and_mins(blocks)
    return requantize_codes(groups, d, dm, q, 0, q_max)


# --------------------------------------------------------------------------------------------------------------- Q5_K
# Q5_K: 256 weights in 176 bytes, 8 groups of 32.  w = d * scale * q - dmin * min,  scale and min in 0..63, q in 0..31
#   d       f16
#   dmin    f16
#   scales  u8[12]  as in Q4_K
#   qh      u8[32]  bit i of byte l is the fifth bit of weight 32 i + l
#   qs      u8[128] the lower four bits, as in Q4_K
Q5_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)])


def dequantize_q5_k(blocks):
    """Dequantize blocks.  Q5_K [n] -> f32 [n, 256]"""
    scales, mins = dequantize_scales_and_mins(blocks)
    q = unpack(blocks["qs"], bits=4, run=32) | unpack(blocks["qh"], bits=1, run=32) << 4
    return (scales[..., None] * q.reshape(-1, 8, 32) - mins[..., None]).reshape(-1, 256)


def quantize_q5_k(x):
    """Quantize weights.  f32 [n, 256] -> Q5_K [n]"""
    blocks = np.empty(len(x), Q5_K)
    q = quantize_scales_and_mins(x, blocks, q_max=31, first=-0.5, n_step=15)
    blocks["qh"] = pack(q >> 4, bits=1, run=32)
    blocks["qs"] = pack(q & 15, bits=4, run=32)
    return blocks


# --------------------------------------------------------------------------------------------------------------- Q6_K
# Q6_K: 256 weights in 210 bytes, 16 groups of 16.  w = d * scale * (q - 32),  scale in -128..127, q in 0..63
#   ql      u8[128] the lower four bits.  Weights 0..127 in the first 64 bytes: byte l holds weight l in the low four
#                   bits, l + 64 in the high four; weights 128..255 likewise in the other 64
#   qh      u8[64]  the upper two bits, in the order of Q2_K's qs
#   scales  i8[16]
#   d       f16
Q6_K = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])


def dequantize_q6_k(blocks):
    """Dequantize blocks.  Q6_K [n] -> f32 [n, 256]"""
    scales = blocks["d"].astype(np.float32)[:, None] * blocks["scales"]
    q = unpack(blocks["ql"], bits=4, run=64) | unpack(blocks["qh"], bits=2, run=32) << 4
    return (scales[..., None] * (q.astype(np.int8) - 32).reshape(-1, 16, 16)).reshape(-1, 256)


def quantize_q6_k(x):
    """Quantize weights.  f32 [n, 256] -> Q6_K [n]"""
    groups = by_group(x, 16)
    scale, q = search_scale(groups, q_max=32)
    scale = scale.reshape(-1, 16)
    top = extreme(scale, axis=1)
    per_d = -128 / top
    blocks = np.empty(len(x), Q6_K)
    blocks["d"] = 1 / per_d[:, 0]
    blocks["scales"] = np.minimum(127, nearest_int(per_d * scale)).astype(np.int8)
    d = blocks["d"].astype(np.float32)[:, None] * blocks["scales"]
    q = requantize_codes(groups, d, np.zeros_like(d), q, -32, 31)
    blocks["ql"] = pack(q & 15, bits=4, run=64)
    blocks["qh"] = pack(q >> 4, bits=2, run=32)
    blocks[np.abs(top[:, 0]) < GROUP_MAX_EPS] = np.zeros((), Q6_K)
    return blocks


# --------------------------------------------------------------------------------------------------------------- Q8_K
# Q8_K: 256 activations in 292 bytes.  x = d * q,  q in -127..127
#   d       f32      scale; the value largest in magnitude gets q = -127, so d has the opposite sign
#   qs      i8[256]
#   bsums   i16[16]  sums of 16 q each, the factors of a group's minimum in dot products with Q2_K, Q4_K, Q5_K
Q8_K = np.dtype([("d", "<f4"), ("qs", "i1", 256), ("bsums", "<i2", 16)])


def dequantize_q8_k(blocks):
    """Dequantize blocks.  Q8_K [n] -> f32 [n, 256]"""
    return blocks["qs"].astype(np.float32) * blocks["d"].astype(np.float32)[:, None]


def quantize_q8_k(x):
    """Quantize activations.  f32 [n, 256] -> Q8_K [n]"""
    per_d = quotient(-127, extreme(x, axis=1))
    q = np.minimum(127, nearest_int(per_d * x))
    blocks = np.empty(len(x), Q8_K)
    blocks["d"] = quotient(1, per_d)[:, 0]
    blocks["qs"] = q
    blocks["bsums"] = q.reshape(-1, 16, 16).sum(axis=2)
    return blocks
