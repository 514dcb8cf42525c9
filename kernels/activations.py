"""Activations as ggml's dot products take them: rounded to blocks of integers, or to half floats.

    Q8_0   32 values share one f16 scale d = max |x| / 127;  q = round(x / d)

Weights in quantized blocks are multiplied as integers, so ggml first makes integers of the other side, too.  This, not the
weights' own rounding, is most of what separates llama.cpp's logits from exact arithmetic.
"""

import numpy as np


def round_activations(x, format_name):
    """`x` as ggml's `format_name` activation blocks mean it.  x f32 [n_tok, n_in] -> f32 [n_tok, n_in]"""
    return ROUNDINGS[format_name](x)


def _round_q8_0(x):
    blocks = x.reshape(-1, 32)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    d = (largest / np.float32(127)).astype(np.float16).astype(np.float32)
    return (np.rint(blocks * inverse) * d).reshape(x.shape)


def _round_f16(x):
    return x.astype(np.float16).astype(np.float32)


ROUNDINGS = {"F32": np.asarray, "F16": _round_f16, "Q8_0": _round_q8_0}
