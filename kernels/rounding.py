"""Activations as ggml's CPU code rounds them before a dot product: to the format in the weight's `dot_with`.

Q8_0 and Q8_1 have two encoders in ggml.  One makes files: `quantize_row_*_ref` in ggml-quants.c multiplies by
1 / (amax / 127) and rounds ties away from zero.  The other makes activations: ggml-cpu/arch/x86/quants.c (0c1e57098),
with AVX, multiplies by 127 / amax and rounds ties to even.  This is the other, since llama.cpp computes with it on x86:
blocks of half-integers differ in 3 % of their codes, ordinary ones hardly ever.  Q8_K has one encoder for both.
"""

from __future__ import annotations

import numpy as np

from .quants import FORMATS_BY_NAME
from .quants.arithmetic import quotient, truncate
from .quants.block32 import Q8_0, Q8_1


@np.errstate(all="ignore")
def quantize_activations(x, dot_with):
    """`x` in blocks of the format named `dot_with`.  f32 [..., n] -> blocks [..., n / block_size]"""
    format = FORMATS_BY_NAME[dot_with]
    encode = {"Q8_0": activations_q8_0, "Q8_1": activations_q8_1}.get(dot_with, format.quantize)
    return encode(x.reshape(-1, format.block_size)).reshape(*x.shape[:-1], x.shape[-1] // format.block_size)


def round_activations(x, dot_with):
    """What `quantize_activations` leaves of `x`.  f32 [..., n] -> f32 [..., n]"""
    blocks = quantize_activations(x, dot_with)
    return FORMATS_BY_NAME[dot_with].dequantize(blocks.reshape(-1)).reshape(x.shape)


def activations_q8_0(x):
    """f32 [n, 32] -> Q8_0 [n]"""
    d, q = scale_and_codes(x)
    blocks = np.empty(len(x), Q8_0)
    blocks["d"] = d[:, 0]
    blocks["qs"] = np.maximum(-128, q)
    return blocks


def activations_q8_1(x):
    """f32 [n, 32] -> Q8_1 [n]"""
    d, q = scale_and_codes(x)
    blocks = np.empty(len(x), Q8_1)
    blocks["d"] = d[:, 0]
    blocks["s"] = q.sum(axis=1, dtype=np.int32).astype(np.float32) * d[:, 0]
    blocks["qs"] = np.maximum(-128, q)
    return blocks


def scale_and_codes(x):
    """amax / 127, and x * (127 / amax) to the nearest integer, ties to even.  f32 [n, 32] -> f32 [n, 1], i32 [n, 32]

    Codes lie in -127..127, but are INT_MIN (vcvtps2dq's answer) where amax < 4e-37 makes 127 / amax infinite.
    """
    amax = np.abs(x).max(axis=1, keepdims=True)
    return amax / 127, truncate(np.rint(x * quotient(127, amax)))
