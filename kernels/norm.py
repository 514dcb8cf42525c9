"""Normalisation: RMS norm."""

import numpy as np


def rms_norm_numpy(x, weight, eps):
    """Rows of `x` scaled to unit root mean square, then by `weight`.

    x float [n_tok, n_embd], weight f32 [n_embd] -> as x
    y = x / sqrt(mean(x**2) + eps) * weight;  eps is added inside the root, as in llama.cpp.
    Source: Zhang & Sennrich 2019, arXiv:1910.07467.
    """
    scale = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + x.dtype.type(eps))  # [n_tok, 1]
    return x * scale * weight.astype(x.dtype, copy=False)


def rms_norm_ggml(x, weight, eps):
    """As rms_norm_numpy, rounded where ggml rounds: float32 squares, their sum in double, one float32 root.

    x f32 [n_tok, n_embd], weight f32 [n_embd] -> f32 [n_tok, n_embd]
    Source: ggml-cpu/ops.cpp ggml_compute_forward_rms_norm_f32, llama.cpp 0c1e57098.
    """
    mean = np.mean((x * x).astype(np.float64), axis=-1, keepdims=True).astype(np.float32)
    return x * (np.float32(1) / np.sqrt(mean + np.float32(eps))) * weight
