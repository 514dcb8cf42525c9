"""Flash attention as llama.cpp's CPU code computes it, a query and head at a time; f32 keys are read as f16.

64 queries or more   in tiles of 64 positions: scores summed along the head in float32, one largest score a tile, the
                     weighted sum of values in float32
fewer, or blocks     position after position, rescaled at each larger score; with an f16 cache, the query is rounded to
                     f16, and so is the sum of values at every position; with blocks, the query is rounded to 8 bits

A text is read in batches of 512 tokens (n_ubatch), so that the tokens after the last whole batch may be the fewer.
llama.cpp splits the second kind among its threads from 512 positions on when it decodes; this is one thread's result.
Source: llama.cpp 0c1e57098, ggml-cpu/ops.cpp ggml_compute_forward_flash_attn_ext_*.
"""

from typing import NamedTuple

import numpy as np

from ..attention import NO_SINK, check_heads, no_attention_tap, sinks_of, slopes_of
from ..half import bf16_to_f32, f32_to_bf16
from ..jit import inner, kernel
from ..kv import BF16, BLOCK, CACHE_TYPES, numbers
from ..rounding import quantize_activations
from ..simd import broadcast, f32x16, fma, load, round_to_half, splat, store
from .fused import fma32
from .sums import AVX512, VECTORS, add_halves, dot_in_blocks, dot_in_lanes, exp_llamacpp

N_UBATCH = 512
TILE = 64  # queries, and positions
HALF, FLOAT, CODES, STEPS = range(4)  # how a key is multiplied; STEPS: iq4_nl, every other block in sums of its own


def attention_llamacpp(q, k, v, first, rule, tap=no_attention_tap, width=AVX512):
    """Compute attention_numpy.  Keys and values in float32 are rounded to f16 first.

    q f32 [n_tok, n_head, n_head_dim], k and v in a cache's type [n_pos, n_head_kv, n_head_dim]
    -> f32 [n_tok, n_head * n_head_dim];  raises as attention_numpy
    """
    check_heads(q, k, v, first, rule)
    k, v = (x.astype(np.float16) if x.dtype == np.float32 else x for x in (k, v))
    n_tok, n_head, d = q.shape
    keys, values = whole_vectors(numbers(k, np.float32)), whole_vectors(numbers(v, np.float32))
    key_codes = codes_of(k)
    slopes, sinks = slopes_of(rule, n_head), sinks_of(rule, n_head)
    out = np.zeros((n_tok, n_head, keys.shape[2]), np.float32)
    softcap = np.float32(rule.softcap)
    scale = np.float32(rule.scale) / softcap if rule.softcap else np.float32(rule.scale)
    sees = np.array([rule.seen(first + t, len(k)) for t in range(n_tok)])
    for start in range(0, n_tok, N_UBATCH):
        rows = slice(start, start + N_UBATCH)
        part = np.ascontiguousarray(q[rows])
        rest = first + start, sees[rows], scale, softcap, slopes, sinks, width
        if k.dtype == v.dtype == np.float16 and len(part) >= TILE:
            _tiled(part, keys, values, *rest, out[rows])
            continue
        kind, codes = HALF, codes_of(part)
        if k.dtype == np.float16:
            part = part.astype(np.float16).astype(np.float32)
        elif k.dtype == BF16:
            kind, part = FLOAT, bf16_to_f32(f32_to_bf16(part))
        else:
            kind = STEPS if k.dtype == CACHE_TYPES["iq4_nl"] else CODES
            codes = codes_of(quantize_activations(part, "Q8_1" if "m" in k.dtype.names else "Q8_0"))
        _one_by_one(part, codes, keys, key_codes, values, kind, v.dtype == np.float16, *rest, out[rows])
    return np.ascontiguousarray(out[..., :d]).reshape(n_tok, n_head * d)


def whole_vectors(x):
    """Pad heads with zeros to whole vectors.  f32 [n_pos, n_head_kv, d] -> f32"""
    n = -x.shape[2] % AVX512
    return np.ascontiguousarray(np.pad(x, ((0, 0), (0, 0), (0, n))) if n else x)


class Codes(NamedTuple):
    """Blocks in compiled code.

    codes    i8 [..., n], f32 [..., n / 32] scales
    more     f32 [..., n / 32]: of keys the minima, of queries the sums that they are multiplied by; or empty
    """

    codes: np.ndarray
    scales: np.ndarray
    more: np.ndarray


def codes_of(blocks):
    """Return the codes of keys or of rounded queries in blocks, placeholders for numbers."""
    if not blocks.dtype.names:
        return Codes(np.zeros((1, 1, BLOCK), np.int8), np.zeros((1, 1, 1), np.float32), np.zeros((1, 1, 0), np.float32))
    scales, more = blocks["d"].astype(np.float32), np.zeros((*blocks.shape[:2], 0), np.float32)
    for name in {"m", "s"} & set(blocks.dtype.names):
        more = blocks[name].astype(np.float32)
    if blocks.dtype.names[-1] == "qs" and blocks.dtype["qs"].base == np.int8:
        return Codes(np.ascontiguousarray(blocks["qs"]).reshape(*blocks.shape[:2], -1), scales, more)
    unit = blocks.copy()
    unit["d"] = 1  # the values of these blocks are their codes
    if "m" in blocks.dtype.names:
        unit["m"] = 0
    return Codes(numbers(unit, np.float32).astype(np.int8), scales, more)


@inner
def _c_exp(x):
    """The C library's e^x.  f32 -> f32"""
    return np.exp(np.float32(x))


@inner
def _scored(s, scale, softcap, slope, distance):
    """Apply the rule to q . k; scale is already divided by softcap."""
    s = s * scale
    if softcap > 0:
        s = np.float32(np.tanh(s)) * softcap
    return s - slope * np.float32(distance) if slope != 0 else s


@inner
def _with_sink(sink, largest, weight_sum, sums):
    """Return the sum of weights with the sink's, after rescaling `sums` if the sink is the largest score."""
    if sink == NO_SINK:
        return weight_sum
    if sink <= largest:
        return weight_sum + _c_exp(sink - largest)
    shrink = _c_exp(largest - sink)
    for i in range(len(sums)):
        sums[i] *= shrink
    return weight_sum * shrink + np.float32(1)


@kernel(makes_arrays=True)
def _tiled(q, keys, values, first, sees, scale, softcap, slopes, sinks, width, out):
    n_tok, n_head, d = q.shape
    group, wide = n_head // keys.shape[1], keys.shape[2]
    weights = np.empty(TILE, np.float32)
    sums = np.empty(wide, np.float32)
    for t in range(n_tok):
        begin, end = sees[t]
        for h in range(n_head):
            g, largest, weight_sum = h // group, np.float32(-np.inf), np.float32(0)
            sums[:] = np.float32(0)
            for tile in range(begin // TILE * TILE, end, TILE):
                top = np.float32(-np.inf)
                for j in range(TILE):
                    p = tile + j
                    weights[j] = np.float32(-np.inf)
                    if begin <= p < end:
                        s = np.float32(0)
                        for i in range(d):
                            s = fma32(q[t, h, i], keys[p, g, i], s)
                        weights[j] = _scored(s, scale, softcap, slopes[h], abs(first + t - p))
                        top = max(top, weights[j])
                if top > largest:
                    shrink = _c_exp(largest - top)
                    weight_sum *= shrink
                    for i in range(wide):
                        sums[i] *= shrink
                    largest = top
                weight_sum = np.float32(np.float64(weight_sum) + _weigh(weights, largest, width))
                for j in range(min(TILE, end - tile)):
                    if weights[j] != 0:
                        for i in range(0, wide, AVX512):
                            value = load(f32x16, values[tile + j, g], i)
                            store(sums, i, fma(value, broadcast(f32x16, weights, j), load(f32x16, sums, i)))
            weight_sum = _with_sink(sinks[h], largest, weight_sum, sums)
            per_sum = np.float32(1) / weight_sum
            for i in range(wide):
                out[t, h, i] = sums[i] * per_sum


@inner(makes_arrays=True)
def _weigh(weights, largest, width):
    """Replace scores by e^(score - largest).  -> their sum in double precision, of vectors' in f32"""
    summed, lanes = 0.0, np.empty(AVX512, np.float32)
    for j in range(0, TILE, width):
        for i in range(width):
            weights[j + i] = lanes[i] = exp_llamacpp(weights[j + i] - largest, width)
        add_halves(lanes, width, 1)
        summed += np.float64(lanes[0])
    return summed


@kernel(makes_arrays=True)
def _one_by_one(
    q, codes, keys, key_codes, values, kind, half_sums, first, sees, scale, softcap, slopes, sinks, width, out
):
    n_tok, n_head, d = q.shape
    group, wide = n_head // keys.shape[1], keys.shape[2]
    lanes, sums = np.empty(AVX512 * VECTORS, np.float32), np.empty(wide, np.float32)
    for t in range(n_tok):
        begin, end = sees[t]
        for h in range(n_head):
            g, largest, weight_sum = h // group, np.float32(-np.inf), np.float32(0)
            sums[:] = np.float32(0)
            for p in range(begin, end):
                if kind >= CODES:
                    s = dot_in_blocks(
                        key_codes.codes[p, g],
                        key_codes.scales[p, g],
                        codes.codes[t, h],
                        codes.scales[t, h],
                        lanes,
                        2 if kind == STEPS else 1,
                    )
                    if key_codes.more.shape[2] > 0:
                        least = np.float32(0)
                        for block in range(key_codes.more.shape[2]):
                            least = fma32(key_codes.more[p, g, block], codes.more[t, h, block], least)
                        s += least
                else:
                    s = dot_in_lanes(q[t, h], keys[p, g, :d], width, VECTORS, kind == HALF, lanes)
                s = _scored(s, scale, softcap, slopes[h], abs(first + t - p))
                shrink, weight = np.float32(1), np.float32(1)
                if s > largest:
                    shrink = _c_exp(largest - s)
                    largest = s
                    for i in range(0, wide, AVX512):
                        x = load(f32x16, sums, i) * splat(f32x16, shrink)
                        store(sums, i, round_to_half(x) if half_sums else x)
                else:
                    weight = _c_exp(s - largest)
                for i in range(0, wide, AVX512):
                    x = fma(load(f32x16, values[p, g], i), splat(f32x16, weight), load(f32x16, sums, i))
                    store(sums, i, round_to_half(x) if half_sums else x)
                if width == AVX512:
                    weight_sum = fma32(weight_sum, shrink, weight)
                else:  # as the compiler of published builds has it
                    weight_sum = weight_sum * shrink + weight
            weight_sum = _with_sink(sinks[h], largest, weight_sum, sums)
            per_sum = np.float32(1) / weight_sum if weight_sum != 0 else np.float32(0)
            for i in range(wide):
                out[t, h, i] = sums[i] * per_sum
