"""Normalization: RMS norm for decoders, layer norm for encoders and vision towers."""

import numpy as np

from .jit import inner, kernel
from .simd import f32x16, fma, load, store, total, zero
from .threads import parallel_for, run


def rms_norm_numpy(x, weight, eps):
    """Scale the rows of `x` to unit root mean square, then multiply by `weight`.

    x float [n_tok, n_embd], weight f32 [n_embd] -> as x
    y = x / sqrt(mean(x**2) + eps) * weight;  eps is added inside the root, as in llama.cpp.
    Source: Zhang & Sennrich 2019, arXiv:1910.07467.
    """
    scale = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + x.dtype.type(eps))  # [n_tok, 1]
    return x * scale * weight.astype(x.dtype, copy=False)


def rms_norm_ggml(x, weight, eps):
    """Compute rms_norm_numpy with ggml's rounding: float32 squares, their sum in double, one float32 root.

    x f32 [n_tok, n_embd], weight f32 [n_embd] -> f32 [n_tok, n_embd]
    Source: ggml-cpu/ops.cpp ggml_compute_forward_rms_norm_f32, llama.cpp 0c1e57098.
    """
    mean = np.mean((x * x).astype(np.float64), axis=-1, keepdims=True).astype(np.float32)
    return x * (np.float32(1) / np.sqrt(mean + np.float32(eps))) * weight


def check_width(x, weight):
    """Check that `weight` has one number for each column of `x`.  Raises: ValueError"""
    if weight.shape != x.shape[-1:] or not weight.size:
        raise ValueError(f"a weight of shape {weight.shape}, expected one number for each column of {x.shape}")


def rms_norm_numba(x, weight, eps):
    """Compute rms_norm_numpy in float32; the squares of a row are summed in 16 lanes.

    x f32 [..., n_embd], weight f32 [n_embd] -> f32 [..., n_embd]
    Raises: ValueError for a weight of another length than the rows
    """
    check_width(x, weight)
    x = np.ascontiguousarray(x, np.float32)
    y = np.empty_like(x)
    n_row = x.size // weight.size
    run(norm_rows, x.size, x.reshape(-1), np.asarray(weight, np.float32), np.float32(eps), n_row, y.reshape(-1))
    return y


@kernel
def norm_rows(team, x, weight, eps, n_tok, y):
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


def layer_norm_numpy(x, weight, bias, eps):
    """Shift the rows of `x` to zero mean and scale them to unit variance, then multiply by `weight` and add `bias`.

    x float [n_tok, n_embd], weight and bias f32 [n_embd] -> as x
    y = (x - mean(x)) / sqrt(mean((x - mean(x))**2) + eps) * weight + bias
    Source: Ba, Kiros & Hinton 2016, arXiv:1607.06450.
    """
    x = x - np.mean(x, axis=-1, keepdims=True)
    scale = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + x.dtype.type(eps))  # [n_tok, 1]
    return x * scale * weight.astype(x.dtype, copy=False) + bias.astype(x.dtype, copy=False)


def layer_norm_ggml(x, weight, bias, eps):
    """Compute layer_norm_numpy with ggml's rounding: both sums in double, their results in float32.

    x f32 [n_tok, n_embd], weight and bias f32 [n_embd] -> f32 [n_tok, n_embd]
    Source: ggml-cpu/ops.cpp ggml_compute_forward_norm_f32, llama.cpp 0c1e57098.
    """
    x = x - np.mean(x, axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
    variance = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
    return x * (np.float32(1) / np.sqrt(variance + np.float32(eps))) * weight + bias


def layer_norm_numba(x, weight, bias, eps):
    """Compute layer_norm_numpy in float32, in three passes: the mean in 16 lanes, the variance in 16 lanes, the result.

    x f32 [n_tok, n_embd], weight and bias f32 [n_embd] -> f32 [n_tok, n_embd]
    Raises: ValueError for a weight or bias of another length than the rows, or more than two axes
    """
    check_width(x, weight)
    check_width(x, bias)
    if x.ndim != 2:
        raise ValueError(f"x has shape {x.shape}, expected two axes")
    x = np.ascontiguousarray(x, np.float32)
    y = np.empty_like(x)
    weight, bias = np.asarray(weight, np.float32), np.asarray(bias, np.float32)
    run(_layer_norm, 2 * x.size, x.reshape(-1), weight, bias, np.float32(eps), len(x), y.reshape(-1))
    return y


@kernel
def _layer_norm(team, x, weight, bias, eps, n_tok, y):
    parallel_for(team, _layer_norm_rows, (x, weight, bias, eps, y), n_tok)


@inner
def _layer_norm_rows(x, weight, bias, eps, y, first, last):
    n = weight.size
    whole = n // 16 * 16
    for t in range(first, last):
        row, sums = t * n, zero(f32x16)
        for i in range(0, whole, 16):
            sums = sums + load(f32x16, x, row + i)
        mean = total(sums)
        for i in range(whole, n):
            mean += x[row + i]
        mean /= np.float32(n)

        squares = zero(f32x16)
        for i in range(0, whole, 16):
            d = load(f32x16, x, row + i) - mean
            squares = fma(d, d, squares)
        square = total(squares)
        for i in range(whole, n):
            square += (x[row + i] - mean) * (x[row + i] - mean)
        scale = np.float32(1) / np.sqrt(square / np.float32(n) + eps)

        for i in range(0, whole, 16):
            d = (load(f32x16, x, row + i) - mean) * scale
            store(y, row + i, fma(d, load(f32x16, weight, i), load(f32x16, bias, i)))
        for i in range(whole, n):
            y[row + i] = (x[row + i] - mean) * scale * weight[i] + bias[i]
