"""Attention: the mean of the values, weighted by how well the query matches each key.

n_head queries share n_head_kv keys (grouped queries): query head h reads key head h // (n_head / n_head_kv)

position     0 1 2 3 4 5
query t=0    * * * *           first = 3: three positions were cached before this span,
query t=1    * * * * *         so query t is position first + t and sees keys 0 .. first + t
query t=2    * * * * * *

`Attention` holds what differs between models: scale, window, soft-cap, ALiBi slopes, sinks, causal or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .activation import softmax_numpy
from .exp import exp
from .half import bf16_to_f32, f32_to_bf16
from .jit import inner, kernel
from .kv import (
    BF16,
    BF16_KIND,
    BIT_OF_LANE,
    BLOCK,
    F16,
    F32,
    IQ4_NL,
    KINDS,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    STEPS,
    has_padding,
    in_blocks,
    numbers,
    strided,
)
from .packed.tiles import magnitude, nearest
from .rounding import round_activations
from .simd import (
    bits,
    broadcast,
    convert,
    f32x16,
    fma,
    half_to_f32,
    i8x16,
    i32x16,
    largest,
    line_start,
    load,
    maximum,
    minimum,
    registers,
    round_to_half,
    splat,
    store,
    total,
    totals,
    u8x16,
    u16x16,
    zero,
)
from .threads import parallel_for, run

NO_LIMIT = 1 << 40  # positions
NO_SINK = np.float32(-1e30)  # a score that any other exceeds


@dataclass(frozen=True, eq=False)
class Attention:
    """A model's rule for the score s = q . k of a query at position i and a key at position j.

    scale     s * scale
    softcap   then softcap * tanh(s / softcap), which bounds it to -softcap .. softcap; 0: no bound.  arXiv:2408.00118
    slopes    f32 [n_head]: then s - slope * |i - j|, which favours near keys (ALiBi).  arXiv:2108.12409
    causal    True: keys after the query are hidden; False: all n_pos keys are visible
    window    keys `window` or more positions before the query are hidden; 0: no limit.  arXiv:2004.05150
    ahead     if not causal, keys more than `ahead` positions after the query are hidden; 0: no limit
    sinks     f32 [n_head]: the score of one more key, whose value is 0, so that a head may attend to nothing
    """

    scale: float
    window: int = 0
    softcap: float = 0.0
    causal: bool = True
    slopes: np.ndarray | None = None
    ahead: int = 0
    sinks: np.ndarray | None = None

    @property
    def reach(self) -> int:
        """The number of visible positions after the query."""
        return 0 if self.causal else self.ahead or NO_LIMIT

    def seen(self, i: int, n_pos: int) -> tuple[int, int]:
        """Return the range begin, end of the positions, out of n_pos, that a query at position i sees."""
        return max(0, i - self.window + 1) if self.window else 0, min(i + 1 + self.reach, n_pos)


def check_heads(q, k, v, first, rule):
    """Check that q, k, v, the rule's slopes and sinks have matching heads, and that each query's position has a key.

    Raises: ValueError, IndexError
    """
    heads = [(*a.shape[:-1], a.shape[-1] * (BLOCK if in_blocks(a.dtype) else 1)) for a in (k, v)]
    n_slope, n_sink = (q.shape[1] if x is None else len(x) for x in (rule.slopes, rule.sinks))
    sizes = q.ndim == k.ndim == 3 and heads[0] == heads[1] and q.shape[2] == heads[0][2]
    if not sizes or not k.shape[1] or q.shape[1] % k.shape[1] or q.shape[1] != n_slope or n_sink != n_slope:
        shapes = f"q {q.shape}, k {k.dtype} {k.shape}, v {v.dtype} {v.shape}, {n_slope} slopes and {n_sink} sinks"
        raise ValueError(f"attention over {shapes}, expected as many keys as values, in heads of one size")
    if not 0 <= first <= len(k) - len(q) or min(rule.window, rule.ahead) < 0:
        raise IndexError(f"queries at positions {first} to {first + len(q) - 1}, expected 0 to {len(k) - 1}")


def no_attention_tap(name, value):
    """Return `value` unchanged: the tap that does nothing."""
    return value


def attention_numpy(q, k, v, first, rule, tap=no_attention_tap):
    """Compute softmax(scores) v for each head, where the scores are q k^T changed by `rule`.

    q float [n_tok, n_head, n_head_dim], k and v [n_pos, n_head_kv, n_head_dim] of any cache type (kv.py)
    -> as q [n_tok, n_head * n_head_dim];  n_pos = first + n_tok
    Raises: ValueError for other shapes, IndexError for queries at positions without keys
    `tap` is called with "kq" (before scale and mask, as in llama.cpp) and "kq_soft_max", both [n_head, n_tok, n_pos].
    Its return value replaces the array.
    Source: Vaswani et al. 2017, arXiv:1706.03762; Ainslie et al. 2023, arXiv:2305.13245.
    """
    check_heads(q, k, v, first, rule)
    n_tok, n_head, n_head_dim = q.shape
    n_pos, n_head_kv, _ = k.shape
    p = attention_weights_numpy(q, k, first, rule, tap)
    values = numbers(v, q.dtype).transpose(1, 0, 2)[:, None]  # [kv, 1, n_pos, d]
    out = p.reshape(n_head_kv, n_head // n_head_kv, n_tok, n_pos) @ values  # [kv, group, n_tok, d]
    return np.ascontiguousarray(out.transpose(2, 0, 1, 3)).reshape(n_tok, n_head * n_head_dim)


def attention_weights_numpy(q, k, first, rule, tap=no_attention_tap):
    """Compute softmax(scores), the weights of each value.  q, k, first, rule and tap as for attention_numpy

    -> as q [n_head, n_tok, n_pos]
    """
    n_tok, n_head, n_head_dim = q.shape
    n_pos, n_head_kv, _ = k.shape
    group = n_head // n_head_kv
    queries = q.reshape(n_tok, n_head_kv, group, n_head_dim).transpose(1, 2, 0, 3)  # [kv, group, n_tok, d]
    keys = numbers(k, q.dtype).transpose(1, 2, 0)[:, None]  # [kv, 1, d, n_pos]
    j, begin, end = np.arange(n_pos), *np.transpose([rule.seen(first + t, n_pos) for t in range(n_tok)])[:, :, None]

    kq = tap("kq", (queries @ keys).reshape(n_head, n_tok, n_pos))
    score = kq * q.dtype.type(rule.scale)
    if rule.softcap:
        score = rule.softcap * np.tanh(score / rule.softcap)
    if rule.slopes is not None:
        distance = np.abs(first + np.arange(n_tok)[:, None] - j)  # [n_tok, n_pos]
        score = score - rule.slopes[:, None, None].astype(q.dtype) * distance
    score = np.where((begin <= j) & (j < end), score, -np.inf)
    if rule.sinks is not None:
        sink = np.broadcast_to(rule.sinks[:, None, None].astype(q.dtype), (n_head, n_tok, 1))
        score = np.concatenate([score, sink], axis=-1)  # one more key, whose value is 0
    return tap("kq_soft_max", softmax_numpy(score)[..., :n_pos])


def attention_exact(q, k, v, first, rule, tap=no_attention_tap):
    """Compute attention_numpy in float64, one position after the other: the sums do not depend on the batch.

    q f32 [n_tok, n_head, n_head_dim], k and v in a cache's type [n_pos, n_head_kv, n_head_dim]
    -> f32 [n_tok, n_head * n_head_dim];  raises as attention_numpy
    """
    check_heads(q, k, v, first, rule)
    n_tok, n_head, n_head_dim = q.shape
    out = np.empty((n_tok, n_head, n_head_dim), np.float32)
    seen = np.array([rule.seen(first + t, len(k)) for t in range(n_tok)])
    k, v = np.ascontiguousarray(numbers(k, np.float32)), np.ascontiguousarray(numbers(v, np.float32))
    _attend_exact(q, k, v, first, seen, rule.scale, rule.softcap, slopes_of(rule, n_head), sinks_of(rule, n_head), out)
    return out.reshape(n_tok, n_head * n_head_dim)


def slopes_of(rule, n_head):
    """Return the rule's slopes, zeros if it has none.  -> f32 [n_head]"""
    return np.zeros(n_head, np.float32) if rule.slopes is None else np.array(rule.slopes, np.float32)


def sinks_of(rule, n_head):
    """Return the rule's sinks, NO_SINK for each head if it has none.  -> f32 [n_head]"""
    return np.full(n_head, NO_SINK) if rule.sinks is None else np.array(rule.sinks, np.float32)


@kernel(makes_arrays=True)
def _attend_exact(q, k, v, first, seen, scale, softcap, slopes, sinks, out):
    n_tok, n_head, n_head_dim = q.shape
    group = n_head // k.shape[1]
    score = np.empty(len(k), np.float64)
    total = np.empty(n_head_dim, np.float64)
    for t in range(n_tok):
        begin, end = seen[t]
        for h in range(n_head):
            g = h // group
            largest = np.float64(sinks[h])
            for j in range(begin, end):
                s = 0.0
                for i in range(n_head_dim):
                    s += np.float64(q[t, h, i]) * np.float64(k[j, g, i])
                s *= scale
                if softcap > 0:
                    s = softcap * np.tanh(s / softcap)
                score[j] = s - slopes[h] * abs(first + t - j)
                largest = max(largest, score[j])
            weight_sum = np.exp(sinks[h] - largest) if sinks[h] > NO_SINK else 0.0
            total[:] = 0.0
            for j in range(begin, end):
                p = np.exp(score[j] - largest)
                weight_sum += p
                for i in range(n_head_dim):
                    total[i] += p * np.float64(v[j, g, i])
            for i in range(n_head_dim):
                out[t, h, i] = total[i] / weight_sum


def attention_ggml(q, k, v, first, rule, tap=no_attention_tap):
    """Compute attention_exact with the rounding of ggml's CPU code (without flash attention).

    With an f16 cache, ggml rounds the queries and the softmax to f16 too, since both enter dot products with the cache.
    It reads a cache in blocks with flash attention only: queries are rounded to Q8_0 blocks, the softmax is not.
    """
    if in_blocks(k.dtype):
        return attention_exact(round_activations(q, "Q8_0"), k, v, first, rule)
    if k.dtype == BF16:
        return attention_exact(bf16_to_f32(f32_to_bf16(q)), k, v, first, rule)
    if k.dtype == np.float16 and k.dtype != v.dtype:
        return attention_exact(q.astype(np.float16).astype(np.float32), k, v, first, rule)
    if k.dtype != np.float16:
        return attention_exact(q, k, v, first, rule)
    check_heads(q, k, v, first, rule)
    n_tok, n_head, n_head_dim = q.shape
    out = np.empty((n_tok, n_head, n_head_dim), np.float32)
    for t in range(n_tok):  # one query at a time: its sums do not depend on the batch
        begin, end = rule.seen(first + t, len(k))
        query = q[t : t + 1].astype(np.float16).astype(np.float64)
        p = attention_numpy(query, k[begin:end], v[begin:end], first + t - begin, rule)
        out[t] = p.reshape(n_head, n_head_dim)
    return out.reshape(n_tok, n_head * n_head_dim)


# --- the fast version: an online softmax over fixed tiles of positions (Milakov & Gimelshein 2018, arXiv:1805.02867)
#
#   row     one query head of one token; the rows of a key head are adjacent: row = t * group + head in group
#   tile    positions 0 .. TILE - 1, TILE .. 2 TILE - 1, ...: absolute, so that a row's sums do not depend on the span
#   chunk   CHUNK positions of a tile, converted from the cache's type to f32
#
# Each row keeps its largest score so far, the sum of its weights (16 partial sums) and the weighted sum of the values.
# A new largest score rescales both sums.  A hidden position has weight 0, and adding 0 changes no bit.

TILE = 256
ROWS_PER_PIECE = 64  # rows of one work item, which share one pass over the keys and values
FAR, ROWS_IF_FAR = 1024, 128  # from so many positions on, reading keys and values again costs more than idle threads
CHUNK = 32  # positions converted at a time, few enough to stay in the first-level cache while all rows use them
HIDDEN = np.float32(-np.inf)


def attention_numba(q, k, v, first, rule, tap=no_attention_tap):
    """Compute attention_numpy in float32; with keys in blocks, queries are rounded as in attention_ggml.

    q f32 [n_tok, n_head, n_head_dim], k and v in a cache's type [n_pos, n_head_kv, n_head_dim]
    -> f32 [n_tok, n_head * n_head_dim];  raises as attention_numpy
    """
    check_heads(q, k, v, first, rule)
    n_tok, n_head, n_head_dim = q.shape
    n_pos, n_head_kv, _ = k.shape
    q, k, v = np.ascontiguousarray(q, np.float32), kernel_layout(k), kernel_layout(v)
    if n_head_dim % 16:
        q, k, v = padded(q), *(a if has_padding(a) else padded(a) for a in (k, v))
    shape, d = (n_tok, n_head, n_head_kv, n_pos), q.shape[2]
    out = np.empty((n_tok, n_head, d), np.float32)
    work = 2 * n_tok * n_head * d * (min(rule.window, n_pos) or n_pos)
    lists = slopes_of(rule, n_head), sinks_of(rule, n_head)
    record = RuleRecord(np.float32(rule.scale), rule.window, np.float32(rule.softcap), rule.reach, *lists)
    run(attend_rows, work, q.reshape(-1), strided(k), strided(v), *shape, d, first, record, out.reshape(-1))
    return np.ascontiguousarray(out[:, :, :n_head_dim]).reshape(n_tok, n_head * n_head_dim)


def kernel_layout(a):
    """Return `a`, converted to f32 unless its type is in KINDS and a head's numbers are contiguous."""
    return a if a.strides[2] == a.itemsize and a.dtype in KINDS else np.ascontiguousarray(numbers(a, np.float32))


def padded(a):
    """Pad heads with zeros to a multiple of 16, that is to whole vectors.  [n, n_head, d] -> [n, n_head, d16]"""
    y = np.zeros((*a.shape[:2], -(-a.shape[2] // 16) * 16), a.dtype)
    y[:, :, : a.shape[2]] = a
    return y


class RuleRecord(NamedTuple):
    """An `Attention` in compiled code; without slopes and sinks, their arrays hold zeros and NO_SINK."""

    scale: np.float32
    window: int
    softcap: np.float32
    reach: int
    slopes: np.ndarray
    sinks: np.ndarray


@kernel
def attend_rows(team, q, keys, values, n_tok, n_head, n_head_kv, n_pos, d, first, rule, out):
    n_row_in_piece = ROWS_IF_FAR if n_pos > FAR else ROWS_PER_PIECE
    n_piece = n_head_kv * -(-n_tok * (n_head // n_head_kv) // n_row_in_piece)
    args = (q, keys, values, (n_tok, n_head, n_head_kv, n_pos, d, n_row_in_piece), first, rule, out)
    parallel_for(team, _attend_pieces, args, n_piece)


@inner(makes_arrays=True)
def _attend_pieces(q, keys, values, shape, first, rule, out, first_piece, last_piece):
    n_tok, n_head, n_head_kv, _, d, n_row_in_piece = shape
    max_rows = min(n_row_in_piece, n_tok * (n_head // n_head_kv))
    memory = np.empty(max_rows * (2 * d + TILE + 16 + 1) + CHUNK * d + 15, np.float32)
    _attend_in(
        memory[line_start(memory) :], max_rows, q, keys, values, shape, first, rule, out, first_piece, last_piece
    )


@inner
def _attend_in(memory, max_rows, q, keys, values, shape, first, rule, out, first_piece, last_piece):
    n_tok, n_head, n_head_kv, n_pos, d, n_row_in_piece = shape
    group = n_head // n_head_kv
    pieces_per_head = -(-n_tok * group // n_row_in_piece)
    end = max_rows * d
    rows, sums, chunk, rest = memory[:end], memory[end : 2 * end], memory[2 * end :], memory[2 * end + CHUNK * d :]
    score, weights, top = rest, rest[max_rows * TILE :], rest[max_rows * (TILE + 16) :]
    for piece in range(first_piece, last_piece):
        h, row = piece // pieces_per_head, piece % pieces_per_head * n_row_in_piece
        n_row = min(n_row_in_piece, n_tok * group - row)
        for r in range(n_row):
            t, head, start = (row + r) // group, h * group + (row + r) % group, r * d
            for i in range(0, d, 16):
                store(rows, start + i, load(f32x16, q, (t * n_head + head) * d + i))
                store(sums, start + i, zero(f32x16))
            if keys.kind > BF16_KIND:
                _round_to_blocks(rows, start, d)
            for i in range(start, start + d, 16):
                store(rows, i, load(f32x16, rows, i) * rule.scale)
            store(weights, 16 * r, zero(f32x16))
            top[r] = rule.sinks[head]
            if top[r] > NO_SINK:
                weights[16 * r] = 1
        seen = max(0, first + row // group - rule.window + 1) if rule.window > 0 else 0
        n_seen = min(first + (row + n_row - 1) // group + 1 + rule.reach, n_pos)
        for p in range(seen // TILE * TILE, n_seen, TILE):
            n = min(TILE, n_seen - p)
            for i in range(0, n, CHUNK):
                n_chunk = min(CHUNK, n - i)
                _load_chunk(keys, h, p + i, n_chunk, d, chunk)
                for r in range(0, n_row - 3, 4):
                    _scores(rows, r, chunk, n_chunk, d, score, r * TILE + i, np.int64(4))
                for r in range(n_row // 4 * 4, n_row):
                    _scores(rows, r, chunk, n_chunk, d, score, r * TILE + i, np.int64(1))
            for r in range(n_row):
                slope = rule.slopes[h * group + (row + r) % group]
                _apply_rule(score, r * TILE, first + (row + r) // group - p, n, rule, slope)
                _scores_to_weights(score, r * TILE, n, top, weights, sums, r, d)
            for i in range(0, n, CHUNK):
                n_chunk = min(CHUNK, n - i)
                _load_chunk(values, h, p + i, n_chunk, d, chunk)
                for r in range(0, n_row - 3, 4):
                    _add_values(score, r * TILE + i, chunk, n_chunk, d, sums, r, np.int64(4))
                for r in range(n_row // 4 * 4, n_row):
                    _add_values(score, r * TILE + i, chunk, n_chunk, d, sums, r, np.int64(1))
        for r in range(n_row):
            start = ((row + r) // group * n_head + h * group + (row + r) % group) * d
            per_weight = np.float32(1) / total(load(f32x16, weights, 16 * r))
            for i in range(0, d, 16):
                store(out, start + i, load(f32x16, sums, r * d + i) * per_weight)


@inner
def _round_to_blocks(rows, start, d):
    """Round d numbers from rows[start] on as Q8_0 blocks do: queries, before products with keys in blocks."""
    for i in range(start, start + d, BLOCK):
        low, high = load(f32x16, rows, i), load(f32x16, rows, i + 16)
        amax = largest(maximum(magnitude(low), magnitude(high)))
        per_step = np.float32(127) / amax if amax > 0 else np.float32(0)
        step = round_to_half(splat(f32x16, amax / np.float32(127)))
        store(rows, i, convert(f32x16, nearest(low * per_step)) * step)
        store(rows, i + 16, convert(f32x16, nearest(high * per_step)) * step)


@inner
def _load_chunk(cache, h, first, n, d, chunk):
    """Load positions first .. first + n - 1 of head h as f32 [n, d].  Blocks are laid out as in kv.py."""
    a, kind = cache.a, cache.kind
    for p in range(n):
        at, to = h * cache.head + (first + p) * cache.step, p * d
        if kind == F16:
            for i in range(0, d, 16):
                store(chunk, to + i, half_to_f32(load(u16x16, a, at + i)))
        elif kind == F32:
            for i in range(0, d, 16):
                store(chunk, to + i, load(f32x16, a, at + 2 * i))
        elif kind == Q8_0:
            for i in range(0, d, 32):
                scale = half_to_f32(broadcast(u16x16, a, at))
                store(chunk, to + i, convert(f32x16, convert(i32x16, load(i8x16, a, at + 1))) * scale)
                store(chunk, to + i + 16, convert(f32x16, convert(i32x16, load(i8x16, a, at + 9))) * scale)
                at += 17
        elif kind == BF16_KIND:
            for i in range(0, d, 16):
                store(chunk, to + i, bits(f32x16, convert(i32x16, load(u16x16, a, at + i)) << 16))
        elif kind == IQ4_NL:
            for i in range(0, d, 32):
                scale = half_to_f32(broadcast(u16x16, a, at))
                for j in range(16):
                    byte = a[at + 1 + j // 2] >> (j % 2 * 8)
                    chunk[to + i + j], chunk[to + i + 16 + j] = STEPS[byte & 15], STEPS[byte >> 4 & 15]
                for j in range(to + i, to + i + 32, 16):
                    store(chunk, j, load(f32x16, chunk, j) * scale)
                at += 9
        else:
            has_minimum = kind == Q4_1 or kind == Q5_1
            offset = np.float32(8) if kind == Q4_0 else np.float32(16) if kind == Q5_0 else np.float32(0)
            for i in range(0, d, 32):
                scale, least = half_to_f32(broadcast(u16x16, a, at)), zero(f32x16)
                at += 1
                if has_minimum:
                    least = half_to_f32(broadcast(u16x16, a, at))
                    at += 1
                low, high = zero(i32x16), zero(i32x16)
                if kind == Q5_0 or kind == Q5_1:
                    low, high = _fifth_bits(a[at]), _fifth_bits(a[at + 1])
                    at += 2
                q = load(u8x16, a, at)
                low, high = low | convert(i32x16, q & 15), high | convert(i32x16, q >> 4)
                store(chunk, to + i, (convert(f32x16, low) - offset) * scale + least)
                store(chunk, to + i + 16, (convert(f32x16, high) - offset) * scale + least)
                at += 8


@inner
def _fifth_bits(mask):
    """Return 16 in each lane whose bit is set in `mask`, else 0.  u16 -> i32x16"""
    return minimum(splat(i32x16, np.int32(mask)) & load(i32x16, BIT_OF_LANE, 0), splat(i32x16, 1)) << 4


@inner(copied=True)
def _scores(rows, r, k, n, d, score, start, T):
    """Compute score[t, p] = rows[r + t] . key p, for T rows, 1 .. 4, and n positions, rounded up to a multiple of 4.

    Numba compiles the loop once, and LLVM once for each T.  So T is an np.int64: it has no literal type.
    """
    a, b, c, e = registers(f32x16, 4), registers(f32x16, 4), registers(f32x16, 4), registers(f32x16, 4)
    for p in range(0, n, 4):
        at = p * d
        at1, at2, at3 = min(p + 1, n - 1) * d, min(p + 2, n - 1) * d, min(p + 3, n - 1) * d
        for t in range(T):
            a[t], b[t], c[t], e[t] = zero(f32x16), zero(f32x16), zero(f32x16), zero(f32x16)
        for i in range(0, d, 16):
            key, key1, key2, key3 = (
                load(f32x16, k, at + i),
                load(f32x16, k, at1 + i),
                load(f32x16, k, at2 + i),
                load(f32x16, k, at3 + i),
            )
            for t in range(T):
                x = load(f32x16, rows, (r + t) * d + i)
                a[t], b[t], c[t], e[t] = fma(x, key, a[t]), fma(x, key1, b[t]), fma(x, key2, c[t]), fma(x, key3, e[t])
        for t in range(T):
            store(score, start + t * TILE + p, totals(a[t], b[t], c[t], e[t]))


@inner
def _apply_rule(score, start, position, n, rule, slope):
    """Apply the rule to a row's scaled scores: soft-cap, ALiBi slope, and -inf for hidden positions."""
    n16 = (n + 15) // 16 * 16
    if rule.softcap > 0:
        for i in range(start, start + n16, 16):
            grown = exp(load(f32x16, score, i) * (np.float32(2) / rule.softcap))
            store(score, i, (splat(f32x16, 1) - splat(f32x16, 2) / (grown + np.float32(1))) * rule.softcap)  # tanh
    if slope != 0:
        for i in range(n):
            score[start + i] -= slope * np.float32(abs(position - i))
    for i in range(min(position - rule.window + 1, n) if rule.window > 0 else 0):
        score[start + i] = HIDDEN
    for i in range(min(max(position + 1 + rule.reach, 0), n), n16):
        score[start + i] = HIDDEN


@inner
def _scores_to_weights(score, start, n, top, weights, sums, r, d):
    """Replace a row's scores by the weights e^(score - largest so far), and rescale its sums to match."""
    n16 = (n + 15) // 16 * 16
    a = splat(f32x16, top[r])
    b, c, e, whole = a, a, a, n16 // 64 * 64
    for i in range(start, start + whole, 64):
        a, b = maximum(load(f32x16, score, i), a), maximum(load(f32x16, score, i + 16), b)
        c, e = maximum(load(f32x16, score, i + 32), c), maximum(load(f32x16, score, i + 48), e)
    for i in range(start + whole, start + n16, 16):
        a = maximum(load(f32x16, score, i), a)
    now = largest(maximum(maximum(a, b), maximum(c, e)))
    shrink = exp(splat(f32x16, top[r] - now))
    top[r] = now
    weight = load(f32x16, weights, 16 * r) * shrink
    for i in range(0, n16, 16):
        grown = exp(load(f32x16, score, start + i) - now)
        store(score, start + i, grown)
        weight = weight + grown
    store(weights, 16 * r, weight)
    for i in range(0, d, 16):
        store(sums, r * d + i, load(f32x16, sums, r * d + i) * shrink)


@inner(copied=True)
def _add_values(score, start, v, n, d, sums, r, T):
    """Add to sums[r + t] the sum over p of score[t, p] * value p, by 64 components, then the rest by 16.

    T as for _scores.
    """
    a, b, c, e = registers(f32x16, 4), registers(f32x16, 4), registers(f32x16, 4), registers(f32x16, 4)
    whole = d // 64 * 64
    for i in range(0, whole, 64):
        for t in range(T):
            j = (r + t) * d + i
            a[t], b[t] = load(f32x16, sums, j), load(f32x16, sums, j + 16)
            c[t], e[t] = load(f32x16, sums, j + 32), load(f32x16, sums, j + 48)
        for p in range(n):
            j = p * d + i
            value, value1, value2, value3 = (
                load(f32x16, v, j),
                load(f32x16, v, j + 16),
                load(f32x16, v, j + 32),
                load(f32x16, v, j + 48),
            )
            for t in range(T):
                w = broadcast(f32x16, score, start + t * TILE + p)
                a[t], b[t], c[t], e[t] = (
                    fma(value, w, a[t]),
                    fma(value1, w, b[t]),
                    fma(value2, w, c[t]),
                    fma(value3, w, e[t]),
                )
        for t in range(T):
            j = (r + t) * d + i
            store(sums, j, a[t])
            store(sums, j + 16, b[t])
            store(sums, j + 32, c[t])
            store(sums, j + 48, e[t])
    for i in range(whole, d, 16):
        for t in range(T):
            a[t] = load(f32x16, sums, (r + t) * d + i)
        for p in range(n):
            value = load(f32x16, v, p * d + i)
            for t in range(T):
                a[t] = fma(value, broadcast(f32x16, score, start + t * TILE + p), a[t])
        for t in range(T):
            store(sums, (r + t) * d + i, a[t])
