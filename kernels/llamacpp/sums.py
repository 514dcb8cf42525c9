"""Products with weights, RoPE and SiLU in the order of llama.cpp's vector code.

weights                     llama.cpp's code                         sum
Q8_0 Q4_0 Q5_0 IQ4_NL       tinyBLAS_Q0_AVX, ggml_vec_dot_*          8 lanes of 4 codes a block, scaled block by block
Q4_1 Q5_1                   ggml_vec_dot_*_q8_1                      the same, then the minima
Q4_0, IQ4_NL, 8 n rows      repack.cpp, 8x8                          a block's 32 codes, scaled block by block
F32 F16, 2 or more tokens   tinyBLAS                                 a vector of lanes
F32 F16, 1 token            ggml_vec_dot_f32, ggml_vec_dot_f16       four vectors
Q3_K Q4_K Q5_K Q6_K         super_blocks.py
others                                                               as the set ggml: exact

`width` is the lanes of a vector: 16 with AVX-512, 8 with AVX2.  The lanes are added up as a tree, upper half to lower
half; the last four of ggml_vec_dot with AVX2 are added in neighbouring pairs.  A batch of one token and a larger one
therefore give other last bits for F32 and F16, as in llama.cpp.
"""

import numpy as np

from ..experts import experts_together
from ..jit import inner, kernel
from ..matmul import TILE, check_columns, matmul_ggml, matmul_numba
from ..rope import angles_ggml
from ..rounding import quantize_activations
from .fused import fma32
from .super_blocks import matmul_super_blocks

BLOCKS_OF_CODES = ("Q8_0", "Q4_0", "Q5_0", "IQ4_NL", "Q4_1", "Q5_1")
REPACKED = ("Q4_0", "IQ4_NL")  # if the rows fill groups of REPACKED_ROWS
REPACKED_ROWS = 8
SUPER_BLOCKS = ("Q3_K", "Q4_K", "Q5_K", "Q6_K")
AVX512, AVX2 = 16, 8  # lanes of a vector
VECTORS = 4  # of a sum in ggml_vec_dot


def matmul_llamacpp(w, x, width=AVX512):
    """Compute x w^T.  w Tensor [n_out, n_in], x f32 [n_tok, n_in] -> f32 [n_tok, n_out].  Raises: as matmul_exact"""
    return _product(w, x, len(x) > 1, width)


def _product(w, x, together, width):
    """Compute x w^T; `together`: as one product of several tokens, else a token at a time."""
    check_columns(w, x)
    name, (n_out, n_in) = w.format.name, w.shape
    if name in REPACKED and n_out % REPACKED_ROWS == 0:
        return matmul_numba(w, x)
    if name in BLOCKS_OF_CODES:
        return _blocks(w, x)
    if name in SUPER_BLOCKS:
        return matmul_super_blocks(w, x, together, TILE)
    if name not in ("F32", "F16"):
        return matmul_ggml(w, x)
    x = x.astype(np.float16).astype(np.float32) if name == "F16" else x
    vectors = 1 if together and n_in % width == 0 and n_out % 4 == 0 else VECTORS
    y = np.empty((len(x), n_out), np.float32)
    for r in range(0, n_out, TILE):
        rows = w.dequantize(np.arange(r, min(r + TILE, n_out)))
        _dot_rows(rows, np.ascontiguousarray(x), width, vectors, name == "F16", y[:, r : r + TILE])
    return y


def experts_llamacpp(w, x, chosen, width=AVX512):
    """Compute experts_numpy, each row by itself.  Raises as experts_numpy"""
    return experts_together(lambda w, x: _product(w, x, False, width), w, x, chosen)


@kernel(makes_arrays=True)
def _dot_rows(rows, x, width, vectors, is_half, y):
    """Compute y[t, r] = x[t] . rows[r]."""
    lanes = np.empty(AVX512 * VECTORS, np.float32)
    for t in range(len(x)):
        for r in range(len(rows)):
            y[t, r] = dot_in_lanes(x[t], rows[r], width, vectors, is_half, lanes)


@inner
def dot_in_lanes(a, b, width, vectors, is_half, lanes):
    """Compute a . b with width * vectors running sums, then the rest, in double precision for f16.

    lanes   a scratch buffer, f32 [64]
    """
    n_lane, size = width * vectors, len(a)
    whole = size // n_lane * n_lane
    for j in range(n_lane):
        lanes[j] = np.float32(0)
    for i in range(0, whole, n_lane):
        for j in range(n_lane):
            lanes[j] = fma32(a[i + j], b[i + j], lanes[j])
    if width == AVX2 and vectors > 1:
        add_halves(lanes, n_lane, 4)
        total = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3])
    else:
        add_halves(lanes, n_lane, 1)
        total = lanes[0]
    if is_half:
        exact = np.float64(total)
        for i in range(whole, size):
            exact += np.float64(a[i] * b[i])
        return np.float32(exact)
    products = whole + (size - whole) // 8 * 8  # gcc 12 multiplies these as vectors, then adds one by one
    for i in range(whole, products):
        total += a[i] * b[i]
    for i in range(products, size):
        total = fma32(a[i], b[i], total)
    return total


@inner
def add_halves(lanes, n_lane, n_left):
    """Add the upper half of n_lane sums to the lower, until n_left are left."""
    while n_lane > n_left:
        n_lane //= 2
        for j in range(n_lane):
            lanes[j] = lanes[j] + lanes[j + n_lane]


def _blocks(w, x):
    """The product with blocks of 32 codes under one scale, perhaps with a minimum; activations are rounded likewise."""
    n_tok, (n_out, n_in), dot_with = len(x), w.shape, w.format.dot_with
    activations = quantize_activations(x, dot_with)
    d = activations["d"].astype(np.float32)
    sums = activations["s"].astype(np.float32) if dot_with == "Q8_1" else d[:, :0]
    codes = np.ascontiguousarray(activations["qs"]).reshape(n_tok, n_in)
    y = np.empty((n_tok, n_out), np.float32)
    for r in range(0, n_out, TILE):
        tile = w.blocks[r : r + TILE].copy()
        scales = tile["d"].astype(np.float32)
        minima = tile["m"].astype(np.float32) if dot_with == "Q8_1" else scales[:, :0]
        tile["d"] = 1  # the values of these blocks are their codes
        if dot_with == "Q8_1":
            tile["m"] = 0
        ours = w.format.dequantize(tile.reshape(-1)).astype(np.int8).reshape(len(tile), n_in)
        _dot_blocks(ours, scales, minima, codes, d, sums, y[:, r : r + TILE])
    return y


@kernel(makes_arrays=True)
def _dot_blocks(w, w_scale, minima, x, x_scale, sums, y):
    """Compute y[t, r] of codes i8 [n_out, n_in] and [n_tok, n_in], with scales f32 [n, n_in / 32].

    minima and sums   of each block of w and x, empty if the format has no minima
    """
    lanes = np.empty(8, np.float32)
    for t in range(len(x)):
        for r in range(len(w)):
            y[t, r] = dot_in_blocks(w[r], w_scale[r], x[t], x_scale[t], lanes, 1)
            if minima.shape[1] > 0:
                total = np.float32(0)
                for block in range(minima.shape[1]):
                    total = fma32(minima[r, block], sums[t, block], total)
                y[t, r] += total


@inner
def dot_in_blocks(a, a_scale, b, b_scale, lanes, n_sum):
    """Compute the dot product of two rows of codes, i8 [n] with scales f32 [n / 32].

    lanes   a scratch buffer, f32 [8 * n_sum]
    n_sum   1; or 2 sums of 8 lanes, for even blocks and for odd ones
    """
    for j in range(8 * n_sum):
        lanes[j] = np.float32(0)
    for block in range(len(a_scale)):
        scale, at = a_scale[block] * b_scale[block], block % n_sum * 8
        for j in range(8):
            i = 32 * block + 4 * j
            products = np.int32(a[i]) * np.int32(b[i]) + np.int32(a[i + 1]) * np.int32(b[i + 1])
            products += np.int32(a[i + 2]) * np.int32(b[i + 2]) + np.int32(a[i + 3]) * np.int32(b[i + 3])
            lanes[at + j] = fma32(scale, np.float32(products), lanes[at + j])
    for j in range(8 * n_sum - 8):
        lanes[j] = lanes[j] + lanes[j + 8]
    s0, s1 = lanes[0] + lanes[4], lanes[1] + lanes[5]
    s2, s3 = lanes[2] + lanes[6], lanes[3] + lanes[7]
    return (s0 + s2) + (s1 + s3)


def single(text):
    """Return the f32 of a C literal."""
    return np.float32(float.fromhex(text))


SHIFT = single("0x1.8p23")  # adding it rounds to an integer
LOG2_E, LN_2_HIGH, LN_2_LOW = single("0x1.715476p+0"), single("0x1.62e4p-1"), single("0x1.7f7d1cp-20")
EXP = [single(c) for c in ("0x1.0e4020p-7", "0x1.573e2ep-5", "0x1.555e66p-3", "0x1.fffdb6p-2", "0x1.ffffecp-1")]
EXP5, EXP4, EXP3, EXP2, EXP1 = EXP  # coefficients of the polynomial


@inner
def exp_llamacpp(x, width):
    """Compute e^x as ggml_v_expf.  f32 -> f32"""
    n = fma32(x, LOG2_E, SHIFT) - SHIFT
    if abs(n) > np.float32(192):
        return np.float32(0) if n <= 0 else np.float32(np.inf)
    b = fma32(-n, LN_2_LOW, fma32(-n, LN_2_HIGH, x))
    u = b * b
    middle, high = fma32(EXP3, b, EXP2), fma32(EXP5, b, EXP4)
    if width == AVX2:
        p = fma32(fma32(high, u, middle), u, EXP1 * b) + np.float32(1)
    else:
        p = fma32(fma32(high, u, middle), u, fma32(EXP1, b, np.float32(1)))
    return np.float32(np.ldexp(np.float64(p), np.int32(n)))


def silu_mul_llamacpp(gate, up, width=AVX512):
    """Compute silu_mul_numpy.  f32 [n_tok, n_ff] -> f32 [n_tok, n_ff]"""
    y = np.empty(gate.shape, np.float32)
    _silu_mul(np.ascontiguousarray(gate), np.ascontiguousarray(up), width, y)
    return y


@kernel
def _silu_mul(gate, up, width, y):
    """Compute whole vectors by the polynomial, the rest of a row by the C library's exp."""
    n_tok, n_ff = gate.shape
    whole = n_ff // width * width
    for t in range(n_tok):
        for i in range(n_ff):
            g = gate[t, i]
            e = exp_llamacpp(-g, width) if i < whole else np.exp(-g)
            y[t, i] = g / (np.float32(1) + e) * up[t, i]


def softmax_llamacpp(x, width=AVX512):
    """Compute softmax_numpy, as the router of experts does.  f32 [n, k] -> f32 [n, k]"""
    y = np.empty(x.shape, np.float32)
    _softmax(np.ascontiguousarray(x), width, y)
    return y


@kernel(makes_arrays=True)
def _softmax(x, width, y):
    """Take whole vectors by the polynomial, the rest of a row by the C library's exp; sum in double precision."""
    n = x.shape[1]
    whole = n // width * width
    lanes = np.empty(AVX512, np.float32)
    for t in range(len(x)):
        top, total = np.max(x[t]), np.float64(0)
        for i in range(0, whole, width):
            for j in range(width):
                y[t, i + j] = lanes[j] = exp_llamacpp(x[t, i + j] - top, width)
            add_halves(lanes, width, 1)
            total += np.float64(lanes[0])
        for i in range(whole, n):
            y[t, i] = np.exp(x[t, i] - top)
            total += np.float64(y[t, i])
        scale = np.float32(1 / total)
        for i in range(n):
            y[t, i] *= scale


def rope_llamacpp(x, positions, rope):
    """Compute rope_ggml with the C library's float32 cosine and sine, and fused products.

    x f32 [n_tok, n_head, n_head_dim], positions i32 [n_tok] -> a new array as x
    """
    y = np.array(x, np.float32)
    first, second = (np.arange(x.shape[2])[pairs] for pairs in rope.pairs)
    _rotate(np.ascontiguousarray(x), angles_ggml(positions, rope), np.float32(rope.attn_factor), first, second, y)
    return y


@kernel
def _rotate(x, angle, factor, first, second, y):
    for t in range(len(x)):
        for i in range(len(first)):
            cos, sin = np.cos(angle[t, i]) * factor, np.sin(angle[t, i]) * factor
            for h in range(x.shape[1]):
                a, b = x[t, h, first[i]], x[t, h, second[i]]
                y[t, h, first[i]] = fma32(a, cos, -(b * sin))
                y[t, h, second[i]] = fma32(a, sin, b * cos)
