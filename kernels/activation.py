"""Softmax, and the gate of the feed-forward block."""

import numpy as np

from .exp import exp
from .jit import inner, kernel
from .simd import f32x16, largest, load, maximum, splat, store, total, zero
from .threads import parallel_for, run


def softmax_numpy(x):
    """Rows of `x` as probabilities.  float [..., n] -> as x;  the largest is subtracted first, so nothing overflows"""
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def silu_mul_numpy(gate, up):
    """SwiGLU's product  silu(gate) * up,  silu(z) = z / (1 + exp(-z)).

    gate and up float [n_tok, n_ff] -> as gate.  Source: Shazeer 2020, arXiv:2002.05202.
    """
    with np.errstate(over="ignore"):  # exp(-z) is inf for very negative z, and z / inf is 0
        return gate / (1 + np.exp(-gate)) * up


def softmax_numba(x):
    """As softmax_numpy in float32.  f32 [..., n] -> f32 [..., n]"""
    n = x.shape[-1]
    rows = np.full((x.size // n, -(-n // 16) * 16), -np.inf, np.float32)  # whole vectors; e^-inf adds nothing
    rows[:, :n] = x.reshape(-1, n)
    run(_softmax, 10 * rows.size, rows.reshape(-1), len(rows))
    return np.ascontiguousarray(rows[:, :n]).reshape(x.shape)


@kernel
def _softmax(team, x, n_row):
    parallel_for(team, _softmax_rows, (x, x.size // max(1, n_row)), n_row)


@inner
def _softmax_rows(x, n, first, last):
    for r in range(first, last):
        top = splat(f32x16, -np.inf)
        for i in range(r * n, r * n + n, 16):
            top = maximum(load(f32x16, x, i), top)
        highest, sums = largest(top), zero(f32x16)
        for i in range(r * n, r * n + n, 16):
            e = exp(load(f32x16, x, i) - highest)
            store(x, i, e)
            sums = sums + e
        per_sum = np.float32(1) / total(sums)
        for i in range(r * n, r * n + n, 16):
            store(x, i, load(f32x16, x, i) * per_sum)


def silu_mul_numba(gate, up):
    """As silu_mul_numpy in float32.  gate and up f32 [n_tok, n_ff] -> f32 [n_tok, n_ff]"""
    gate, up = np.ascontiguousarray(gate, np.float32), np.ascontiguousarray(up, np.float32)
    y = np.empty_like(gate)
    run(_silu_mul, 10 * y.size, gate.reshape(-1), up.reshape(-1), y.reshape(-1))
    return y


@kernel
def _silu_mul(team, gate, up, y):
    parallel_for(team, _silu_mul_lines, (gate, up, y), -(-y.size // 16))


@inner
def _silu_mul_lines(gate, up, y, first, last):
    for i in range(16 * first, 16 * min(last, y.size // 16), 16):
        z = load(f32x16, gate, i)
        store(y, i, z / (exp(z * np.float32(-1)) + np.float32(1)) * load(f32x16, up, i))
    for i in range(y.size // 16 * 16, min(16 * last, y.size)):
        z = splat(f32x16, gate[i])
        y[i] = largest(z / (exp(z * np.float32(-1)) + np.float32(1))) * up[i]
