"""Quantization of activations before a dot product, as in ggml's CPU code: to the format in the weight's `dot_with`.

ggml has two encoders each for Q8_0 and Q8_1.  The one for files, `quantize_row_*_ref` in ggml-quants.c, multiplies by
1 / (amax / 127) and rounds ties away from zero.  The one for activations, ggml-cpu/arch/x86/quants.c (0c1e57098) with
AVX, multiplies by 127 / amax and rounds ties to even.  This file has the latter, which llama.cpp uses on x86.  The two
differ in 3 % of the codes for blocks of half-integers, and rarely otherwise.  Q8_K has one encoder for both.
"""

from __future__ import annotations

import numpy as np

from .quants import FORMATS_BY_NAME
from .quants.arithmetic import quotient, truncate
from .quants.block32 import Q8_0, Q8_1


@np.errstate(all="ignore")
def quantize_activations(x, dot_with):
    """Quantize `x` to blocks of the format named `dot_with`.  f32 [..., n] -> blocks [..., n / block_size]"""
    format = FORMATS_BY_NAME[dot_with]
    encode = {"Q8_0": activations_q8_0, "Q8_1": activations_q8_1}.get(dot_with, format.quantize)
    return encode(x.reshape(-1, format.block_size)).reshape(*x.shape[:-1], x.shape[-1] // format.block_size)


def round_activations(x, dot_with):
    """Quantize and dequantize `x`.  f32 [..., n] -> f32 [..., n]"""
    blocks = quantize_activations(x, dot_with)
    return FORMATS_BY_NAME[dot_with].dequantize(blocks.reshape(-1)).reshape(x.shape)


def activations_q8_0(x):
    """Quantize activations to Q8_0.  f32 [n, 32] -> Q8_0 [n]"""
    d, q = scale_and_codes(x)
    blocks = np.empty(len(x), Q8_0)
    blocks["d"] = d[:, 0]
    blocks["qs"] = np.maximum(-128, q)
    return blocks


def activations_q8_1(x):
    """Quantize activations to Q8_1.  f32 [n, 32] -> Q8_1 [n]"""
    d, q = scale_and_codes(x)
    blocks = np.empty(len(x), Q8_1)
    blocks["d"] = d[:, 0]
    blocks["s"] = q.sum(axis=1, dtype=np.int32).astype(np.float32) * d[:, 0]
    blocks["qs"] = np.maximum(-128, q)
    return blocks


def scale_and_codes(x):
    """Return amax / 127, and x * (127 / amax) rounded, ties to even.  f32 [n, 32] -> f32 [n, 1], i32 [n, 32]

    Codes are in -127..127.  If amax < 4e-37, 127 / amax is infinite and codes are INT_MIN, as returned by vcvtps2dq.
    """
    amax = np.abs(x).max(axis=1, keepdims=True)
    return amax / 127, truncate(np.rint(x * quotient(127, amax)))
