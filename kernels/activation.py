"""Softmax and the activation functions.

    silu        z / (1 + exp(-z))                                      Llama, with a gate: SwiGLU
    gelu        z / (1 + exp(-2 u)),  u = sqrt(2/pi) (z + 0.044715 z^3)  Gemma, with a gate: GeGLU
    gelu_erf    z (1 + erf(z / sqrt(2))) / 2                           BERT
    quick_gelu  z / (1 + exp(-1.702 z))                                CLIP
    swiglu_oai  quick_gelu(min(z, 7)) (up + 1), up bounded to -7 .. 7  gpt-oss's experts

GELU is z times the probability that a normal variate is below z.  gelu_erf is exact, the other two approximate it.
ggml reads gelu and quick_gelu from tables indexed by float16.  The *_ggml versions therefore have 11 bits: within 5e-4.
"""

import math

import numpy as np

from .exp import exp
from .jit import inner, kernel
from .simd import f32x16, largest, load, maximum, minimum, round_to_half, splat, store, total, zero
from .threads import parallel_for, run

SQRT_2_PER_PI = np.float32(0.79788456080286535588)
SQRT_HALF = np.float32(0.70710678118654752440)
CUBIC_FACTOR = np.float32(0.044715)
QUICK_FACTOR = np.float32(1.702)


def softmax_numpy(x):
    """Return the softmax of each row.  float [..., n] -> as x;  subtracting the maximum first prevents overflow"""
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def silu_mul_numpy(gate, up):
    """Compute the gated product of SwiGLU,  silu(gate) * up,  silu(z) = z / (1 + exp(-z)).

    gate and up float [n_tok, n_ff] -> as gate.  Source: Shazeer 2020, arXiv:2002.05202.
    """
    with np.errstate(over="ignore"):  # exp(-z) is inf for very negative z, and z / inf is 0
        return gate / (1 + np.exp(-gate)) * up


def gelu_numpy(x):
    """Compute GELU in its tanh form.  float [n_tok, n_ff] -> as x

    Source: Hendrycks & Gimpel 2016, arXiv:1606.08415.
    """
    u = x.dtype.type(math.sqrt(2 / math.pi)) * (x + x.dtype.type(0.044715) * x * x * x)
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-2 * u))  # (1 + tanh u) / 2 without its cancellation


def gelu_erf_numpy(x):
    """Compute the exact GELU.  float [n_tok, n_ff] -> as x"""
    return (x * _erfc(-x / math.sqrt(2)) / 2).astype(x.dtype, copy=False)


_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def quick_gelu_numpy(x):
    """Compute GELU with the logistic function.  float [n_tok, n_ff] -> as x"""
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(x.dtype.type(-1.702) * x))


def swiglu_oai(gate, up):
    """Compute gpt-oss's gated product,  quick_gelu(gate) * (up + 1),  of bounded inputs, in every set.

    gate and up float [n, n_ff] -> as gate.  Source: ggml-cpu/ops.cpp ggml_compute_forward_swiglu_oai_f32, 0c1e57098.
    """
    limit, one = gate.dtype.type(7), gate.dtype.type(1)
    return quick_gelu_numpy(np.minimum(gate, limit)) * (np.clip(up, -limit, limit) + one)


def gelu_mul_numpy(gate, up):
    """Compute the gated product of GeGLU,  gelu(gate) * up.  gate and up float [n_tok, n_ff] -> as gate"""
    return gelu_numpy(gate) * up


def gelu_ggml(x):
    """Compute gelu_numpy through ggml's table: float16 in, float16 out.  Above 10 the result is x, below -10 it is 0.

    f32 [n_tok, n_ff] -> f32 [n_tok, n_ff]
    Source: ggml-cpu/vec.h ggml_vec_gelu_f32, llama.cpp 0c1e57098.
    """
    z = np.clip(x, -10, 10).astype(np.float16).astype(np.float32)
    y = np.float32(0.5) * z * (1 + np.tanh(SQRT_2_PER_PI * z * (1 + CUBIC_FACTOR * z * z)))
    return np.where(x <= -10, 0, np.where(x >= 10, x, y.astype(np.float16))).astype(np.float32)


def quick_gelu_ggml(x):
    """Compute quick_gelu_numpy through ggml's table: float16 in, float16 out.

    f32 [n_tok, n_ff] -> f32 [n_tok, n_ff]
    Source: ggml-cpu/vec.h ggml_vec_gelu_quick_f32, llama.cpp 0c1e57098.
    """
    return quick_gelu_numpy(x.astype(np.float16).astype(np.float32)).astype(np.float16).astype(np.float32)


def gelu_mul_ggml(gate, up):
    """Compute gelu_mul_numpy with ggml's gelu.  gate and up f32 [n_tok, n_ff] -> f32 [n_tok, n_ff]"""
    return gelu_ggml(gate) * up


def softmax_numba(x):
    """Compute softmax_numpy in float32.  f32 [..., n] -> f32 [..., n]"""
    n = x.shape[-1]
    rows = np.full((x.size // n, -(-n // 16) * 16), -np.inf, np.float32)  # padded to whole vectors; e^-inf is 0
    rows[:, :n] = x.reshape(-1, n)
    run(softmax_rows, 10 * rows.size, rows.reshape(-1), len(rows))
    return np.ascontiguousarray(rows[:, :n]).reshape(x.shape)


@kernel
def softmax_rows(team, x, n_row):
    parallel_for(team, _softmax_rows, (x, x.size // max(1, n_row)), n_row)


@inner
def _softmax_rows(x, n, first, last):
    for r in range(first, last):
        largest_lanes = splat(f32x16, -np.inf)
        for i in range(r * n, r * n + n, 16):
            largest_lanes = maximum(load(f32x16, x, i), largest_lanes)
        row_max, sums = largest(largest_lanes), zero(f32x16)
        for i in range(r * n, r * n + n, 16):
            e = exp(load(f32x16, x, i) - row_max)
            store(x, i, e)
            sums = sums + e
        per_sum = np.float32(1) / total(sums)
        for i in range(r * n, r * n + n, 16):
            store(x, i, load(f32x16, x, i) * per_sum)


SILU, GELU, GELU_ERF, QUICK_GELU = range(4)


def silu_mul_numba(gate, up):
    """Compute silu_mul_numpy in float32.  gate and up f32 [n_tok, n_ff] -> f32 [n_tok, n_ff]"""
    return activated_gate(SILU, gate, up)


def gelu_mul_numba(gate, up):
    """Compute gelu_mul_ggml with vectors.  gate and up f32 [n_tok, n_ff] -> f32 [n_tok, n_ff]"""
    return activated_gate(GELU, gate, up)


def gelu_numba(x):
    """Compute gelu_ggml with vectors.  f32 [n_tok, n_ff] -> f32 [n_tok, n_ff]"""
    return activated(GELU, x)


def gelu_erf_numba(x):
    """Compute gelu_erf_numpy in float32.  f32 [n_tok, n_ff] -> f32 [n_tok, n_ff]"""
    return activated(GELU_ERF, x)


def quick_gelu_numba(x):
    """Compute quick_gelu_ggml with vectors.  f32 [n_tok, n_ff] -> f32 [n_tok, n_ff]"""
    return activated(QUICK_GELU, x)


def activated_gate(kind, gate, up):
    """Apply activation function `kind` to `gate` and multiply by `up`.  f32 [n_tok, n_ff] -> f32 [n_tok, n_ff]

    Raises: ValueError unless both have one shape
    """
    if gate.shape != up.shape:
        raise ValueError(f"gate has shape {gate.shape} and up {up.shape}, expected one shape")
    gate, up = np.ascontiguousarray(gate, np.float32), np.ascontiguousarray(up, np.float32)
    y = np.empty_like(gate)
    run(activate_gate, 10 * y.size, kind, gate.reshape(-1), up.reshape(-1), y.reshape(-1))
    return y


def activated(kind, x):
    """Apply activation function `kind` to `x`.  f32 [n_tok, n_ff] -> f32 [n_tok, n_ff]"""
    x = np.ascontiguousarray(x, np.float32)
    y = np.empty_like(x)
    run(_activate, 10 * y.size, kind, x.reshape(-1), y.reshape(-1))
    return y


@kernel
def activate_gate(team, kind, gate, up, y):
    parallel_for(team, _activate_gate_lines, (kind, gate, up, y), -(-y.size // 16))


@kernel
def _activate(team, kind, x, y):
    parallel_for(team, _activate_lines, (kind, x, y), -(-y.size // 16))


@inner
def _activate_gate_lines(kind, gate, up, y, first, last):
    for i in range(16 * first, 16 * min(last, y.size // 16), 16):
        store(y, i, activate(kind, load(f32x16, gate, i)) * load(f32x16, up, i))
    for i in range(y.size // 16 * 16, min(16 * last, y.size)):
        y[i] = largest(activate(kind, splat(f32x16, gate[i]))) * up[i]


@inner
def _activate_lines(kind, x, y, first, last):
    for i in range(16 * first, 16 * min(last, y.size // 16), 16):
        store(y, i, activate(kind, load(f32x16, x, i)))
    for i in range(y.size // 16 * 16, min(16 * last, y.size)):
        y[i] = largest(activate(kind, splat(f32x16, x[i])))


@inner
def activate(kind, z):
    """Apply activation function `kind` to each lane.  f32x16 -> f32x16"""
    if kind == SILU:
        return z / (exp(z * np.float32(-1)) + np.float32(1))
    if kind == GELU:
        h = round_to_half(minimum(maximum(z, splat(f32x16, -10.0)), splat(f32x16, 10.0)))
        y = h * logistic((h * h * h * CUBIC_FACTOR + h) * (SQRT_2_PER_PI * np.float32(2)))
        return round_to_half(y) + maximum(z - np.float32(10), zero(f32x16))
    if kind == GELU_ERF:
        size = maximum(z, z * np.float32(-1))
        return maximum(z, zero(f32x16)) - size * erfc_tail(size)
    h = round_to_half(z)
    return round_to_half(h * logistic(h * QUICK_FACTOR))


@inner
def logistic(z):
    """Compute 1 / (1 + e^-z).  f32x16 -> f32x16"""
    return splat(f32x16, 1.0) / (exp(z * np.float32(-1)) + np.float32(1))


@inner
def erfc_tail(z):
    """Compute the probability that a standard normal variate exceeds z >= 0, within 1e-7.  f32x16 -> f32x16

    Source: Abramowitz & Stegun 1964, 7.1.26.
    """
    z = z * SQRT_HALF
    t = splat(f32x16, 1.0) / (z * np.float32(0.3275911) + np.float32(1))
    p = t * np.float32(1.061405429) - np.float32(1.453152027)
    p = p * t + np.float32(1.421413741)
    p = p * t - np.float32(0.284496736)
    p = p * t + np.float32(0.254829592)
    return p * t * exp(z * z * np.float32(-1)) * np.float32(0.5)
