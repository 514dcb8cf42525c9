"""Normalisation: RMS norm."""

import numpy as np

from .jit import inner, kernel
from .simd import f32x16, fma, load, store, total, zero
from .threads import parallel_for, run


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


def rms_norm_numba(x, weight, eps):
    """As rms_norm_numpy in float32; the squares of a row are summed in 16 lanes.

    x f32 [n_tok, n_embd], weight f32 [n_embd] -> f32 [n_tok, n_embd]
    """
    x = np.ascontiguousarray(x, np.float32)
    y = np.empty_like(x)
    run(_rms_norm, x.size, x.reshape(-1), np.asarray(weight, np.float32), np.float32(eps), len(x), y.reshape(-1))
    return y


@kernel
def _rms_norm(team, x, weight, eps, n_tok, y):
    parallel_for(team, _rms_norm_rows, (x, weight, eps, y), n_tok)


@inner
def _rms_norm_rows(x, weight, eps, y, first, last):
    n = weight.size
    whole = n // 16 * 16
    for t in range(first, last):
        squares = zero(f32x16)
        for i in range(t * n, t * n + whole, 16):
            squares = fma(load(f32x16, x, i), load(f32x16, x, i), squares)
        square = total(squares)
        for i in range(t * n + whole, t * n + n):
            square += x[i] * x[i]
        scale = np.float32(1) / np.sqrt(square / np.float32(n) + eps)
        for i in range(0, whole, 16):
            store(y, t * n + i, load(f32x16, x, t * n + i) * scale * load(f32x16, weight, i))
        for i in range(whole, n):
            y[t * n + i] = x[t * n + i] * scale * weight[i]
