"""Attention: each query looks at the keys up to its own position, and takes their values' weighted mean.

n_head queries share n_head_kv keys (grouped queries): query head h reads key head h // (n_head / n_head_kv)

position     0 1 2 3 4 5
query t=0    * * * *           first = 3: three positions were cached before this span,
query t=1    * * * * *         so query t is position first + t and sees keys 0 .. first + t
query t=2    * * * * * *

`Attention` says what else a model wants of it: a window, a soft-cap, slopes, a look ahead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import literally

from .activation import softmax_numpy
from .exp import exp
from .jit import inner, kernel
from .kv import F16, F32, KINDS, Q8_0, has_room, in_blocks, numbers, strided
from .rounding import round_activations
from .simd import (
    broadcast,
    convert,
    f32x16,
    fma,
    half_to_f32,
    i8x16,
    i32x16,
    largest,
    load,
    maximum,
    registers,
    splat,
    store,
    total,
    totals,
    u8x16,
    u16x16,
    zero,
)
from .threads import parallel_for, run


@dataclass(frozen=True, eq=False)
class Attention:
    """What becomes of the score s = q . k of a query at position i and a key at position j.

    scale     s * scale
    softcap   then softcap * tanh(s / softcap), never beyond softcap; 0: as it is.  arXiv:2408.00118
    slopes    f32 [n_head]: then s - slope * |i - j|, the further the less.  arXiv:2108.12409
    causal    a key later than the query is not seen; False: all n_pos keys are
    window    a key `window` or more positions before the query is not seen; 0: none is too far.  arXiv:2004.05150
    """

    scale: float
    window: int = 0
    softcap: float = 0.0
    causal: bool = True
    slopes: np.ndarray | None = None

    def seen(self, i: int, n_pos: int) -> tuple[int, int]:
        """The positions from .. to - 1, of n_pos, that a query at position i sees."""
        return max(0, i - self.window + 1) if self.window else 0, min(i + 1, n_pos) if self.causal else n_pos


def untapped(name, value):
    """The tap that sees nothing: returns `value`."""
    return value


def attention_numpy(q, k, v, first, rule, tap=untapped):
    """softmax(scores) v  for each head, the scores being q k^T as `rule` changes them.

    q float [n_tok, n_head, n_head_dim], k and v [n_pos, n_head_kv, n_head_dim] of any type that a cache keeps
    (cached.py), n_pos = first + n_tok  -> as q [n_tok, n_head * n_head_dim]
    `tap` is shown "kq" (before scale and mask, as in llama.cpp) and "kq_soft_max", both [n_head, n_tok, n_pos]; what
    it returns is used.
    Source: Vaswani et al. 2017, arXiv:1706.03762; Ainslie et al. 2023, arXiv:2305.13245.
    """
    n_tok, n_head, n_head_dim = q.shape
    n_pos, n_head_kv, _ = k.shape
    group = n_head // n_head_kv
    queries = q.reshape(n_tok, n_head_kv, group, n_head_dim).transpose(1, 2, 0, 3)  # [kv, group, n_tok, d]
    keys = numbers(k, q.dtype).transpose(1, 2, 0)[:, None]  # [kv, 1, d, n_pos]
    values = numbers(v, q.dtype).transpose(1, 0, 2)[:, None]  # [kv, 1, n_pos, d]
    j, begin, end = np.arange(n_pos), *np.transpose([rule.seen(first + t, n_pos) for t in range(n_tok)])[:, :, None]

    kq = tap("kq", (queries @ keys).reshape(n_head, n_tok, n_pos))
    score = kq * q.dtype.type(rule.scale)
    if rule.softcap:
        score = rule.softcap * np.tanh(score / rule.softcap)
    if rule.slopes is not None:
        away = np.abs(first + np.arange(n_tok)[:, None] - j)  # [n_tok, n_pos]
        score = score - rule.slopes[:, None, None].astype(q.dtype) * away
    p = tap("kq_soft_max", softmax_numpy(np.where((begin <= j) & (j < end), score, -np.inf)))
    out = p.reshape(n_head_kv, group, n_tok, n_pos) @ values  # [kv, group, n_tok, d]
    return np.ascontiguousarray(out.transpose(2, 0, 1, 3)).reshape(n_tok, n_head * n_head_dim)


def attention_exact(q, k, v, first, rule, tap=untapped):
    """As attention_numpy in float64, position after position: the sums do not depend on what else is in the batch.

    q f32 [n_tok, n_head, n_head_dim], k and v as a cache keeps them [n_pos, n_head_kv, n_head_dim]
    -> f32 [n_tok, n_head * n_head_dim]
    """
    n_tok, n_head, n_head_dim = q.shape
    out = np.empty((n_tok, n_head, n_head_dim), np.float32)
    seen = np.array([rule.seen(first + t, len(k)) for t in range(n_tok)])
    k, v = np.ascontiguousarray(numbers(k, np.float32)), np.ascontiguousarray(numbers(v, np.float32))
    _attend_exact(q, k, v, first, seen, rule.scale, rule.softcap, slopes_of(rule, n_head), out)
    return out.reshape(n_tok, n_head * n_head_dim)


def slopes_of(rule, n_head):
    """-> f32 [n_head], zeros where there are none"""
    return np.zeros(n_head, np.float32) if rule.slopes is None else np.array(rule.slopes, np.float32)


@kernel
def _attend_exact(q, k, v, first, seen, scale, softcap, slopes, out):
    n_tok, n_head, n_head_dim = q.shape
    group = n_head // k.shape[1]
    score = np.empty(len(k), np.float64)
    total = np.empty(n_head_dim, np.float64)
    for t in range(n_tok):
        begin, end = seen[t]
        for h in range(n_head):
            g = h // group
            largest = -np.inf
            for j in range(begin, end):
                s = 0.0
                for i in range(n_head_dim):
                    s += np.float64(q[t, h, i]) * np.float64(k[j, g, i])
                s *= scale
                if softcap > 0:
                    s = softcap * np.tanh(s / softcap)
                score[j] = s - slopes[h] * abs(first + t - j)
                largest = max(largest, score[j])
            weight_sum = 0.0
            total[:] = 0.0
            for j in range(begin, end):
                p = np.exp(score[j] - largest)
                weight_sum += p
                for i in range(n_head_dim):
                    total[i] += p * np.float64(v[j, g, i])
            for i in range(n_head_dim):
                out[t, h, i] = total[i] / weight_sum


def attention_ggml(q, k, v, first, rule, tap=untapped):
    """As attention_exact, rounded where ggml's CPU code rounds (without flash attention).

    Against an f16 cache ggml rounds the queries and the softmax to f16 too, as each is the other side of a dot product.
    A cache in blocks it reads with flash attention only: queries are rounded to Q8_0 blocks, the softmax is not.
    """
    if in_blocks(k.dtype):
        return attention_exact(round_activations(q, "Q8_0"), k, v, first, rule)
    if k.dtype != np.float16:
        return attention_exact(q, k, v, first, rule)
    n_tok, n_head, n_head_dim = q.shape
    out = np.empty((n_tok, n_head, n_head_dim), np.float32)
    for t in range(n_tok):  # one query at a time: its sums are the same in any batch
        begin, end = rule.seen(first + t, len(k))
        query = q[t : t + 1].astype(np.float16).astype(np.float64)
        p = attention_numpy(query, k[begin:end], v[begin:end], first + t - begin, rule)
        out[t] = p.reshape(n_head, n_head_dim)
    return out.reshape(n_tok, n_head * n_head_dim)


# --- at speed: an online softmax over fixed tiles of positions (Milakov & Gimelshein 2018, arXiv:1805.02867)
#
#   row     one query head of one token; the rows of a key head lie side by side: row = t * group + head in group
#   tile    positions 0 .. TILE - 1, TILE .. 2 TILE - 1, ...: absolute, so that a row's sums never depend on the span
#   some    a part of a tile, whatever the cache keeps of it, as f32
#
# Each row keeps the largest score so far, the weights' sum (16 partial ones) and the weighted values' sum; a new
# largest shrinks the other two.  A hidden position has weight 0, and adding 0 changes no bit.

TILE = 256
ROWS = 32  # rows of one piece of work: keys and values are read once for them
SOME = 32  # positions made f32 at a time: they stay in the first-level cache while the rows look at them
HIDDEN = np.float32(-np.inf)


def attention_numba(q, k, v, first, rule, tap=untapped):
    """As attention_numpy in float32.

    q f32 [n_tok, n_head, n_head_dim], k and v as a cache keeps them [n_pos, n_head_kv, n_head_dim]
    -> f32 [n_tok, n_head * n_head_dim]
    """
    n_tok, n_head, n_head_dim = q.shape
    n_pos, n_head_kv, _ = k.shape
    q, k, v = np.ascontiguousarray(q, np.float32), readable(k), readable(v)
    if n_head_dim % 16:
        q, k, v = widened(q), *(a if has_room(a) else widened(a) for a in (k, v))
    shape, d = (n_tok, n_head, n_head_kv, n_pos), q.shape[2]
    out = np.empty((n_tok, n_head, d), np.float32)
    work = 2 * n_tok * n_head * d * (min(rule.window, n_pos) or n_pos)
    record = RuleRecord(
        np.float32(rule.scale), rule.window, np.float32(rule.softcap), rule.causal, slopes_of(rule, n_head)
    )
    run(attend_rows, work, q.reshape(-1), strided(k), strided(v), *shape, d, first, record, out.reshape(-1))
    return np.ascontiguousarray(out[:, :, :n_head_dim]).reshape(n_tok, n_head * n_head_dim)


def readable(a):
    """`a` with a head's numbers side by side, of a type in KINDS."""
    return a if a.strides[2] == a.itemsize and a.dtype in KINDS else np.ascontiguousarray(a, np.float32)


def widened(a):
    """`a` with heads of a multiple of 16, zeros added: whole vectors.  [n, n_head, d] -> [n, n_head, d16]"""
    wide = np.zeros((*a.shape[:2], -(-a.shape[2] // 16) * 16), a.dtype)
    wide[:, :, : a.shape[2]] = a
    return wide


class RuleRecord(NamedTuple):
    """An `Attention` as machine code has it: slopes are there, if only zeros."""

    scale: np.float32
    window: int
    softcap: np.float32
    causal: bool
    slopes: np.ndarray


@kernel
def attend_rows(team, q, keys, values, n_tok, n_head, n_head_kv, n_pos, d, first, rule, out):
    n_piece = n_head_kv * -(-n_tok * (n_head // n_head_kv) // ROWS)
    args = (q, keys, values, (n_tok, n_head, n_head_kv, n_pos, d), first, rule, out)
    parallel_for(team, _attend_pieces, args, n_piece)


@inner(makes_arrays=True)
def _attend_pieces(q, keys, values, shape, first, rule, out, begun, ended):
    n_tok, n_head, n_head_kv, n_pos, d = shape
    group = n_head // n_head_kv
    n_chunk = -(-n_tok * group // ROWS)
    most = min(ROWS, n_tok * group)
    rows, sums, some = np.empty(most * d, np.float32), np.empty(most * d, np.float32), np.empty(SOME * d, np.float32)
    score, top, weights = np.empty(most * TILE, np.float32), np.empty(most, np.float32), np.empty(most * 16, np.float32)
    own, slope = np.empty(most, np.int64), np.empty(most, np.float32)
    for piece in range(begun, ended):
        h, row = piece // n_chunk, piece % n_chunk * ROWS
        n_row = min(ROWS, n_tok * group - row)
        for r in range(n_row):
            t, head, start = (row + r) // group, h * group + (row + r) % group, r * d
            for i in range(d):
                rows[start + i] = q[(t * n_head + head) * d + i] * rule.scale
                sums[start + i] = 0
            for i in range(16):
                weights[16 * r + i] = 0
            top[r] = -1e30
            own[r], slope[r] = first + t, rule.slopes[head]
        seen = max(0, own[0] - rule.window + 1) if rule.window > 0 else 0
        n_seen = own[n_row - 1] + 1 if rule.causal else n_pos
        for p in range(seen // TILE * TILE, n_seen, TILE):
            n = min(TILE, n_seen - p)
            for i in range(0, n, SOME):
                n_some = min(SOME, n - i)
                _read(keys, h, p + i, n_some, d, some)
                for r in range(0, n_row - 3, 4):
                    _scores(rows, r, some, n_some, d, score, r * TILE + i, 4)
                for r in range(n_row // 4 * 4, n_row):
                    _scores(rows, r, some, n_some, d, score, r * TILE + i, 1)
            for r in range(n_row):
                _bend(score, r * TILE, own[r] - p, n, rule, slope[r])
                _weigh(score, r * TILE, n, top, weights, sums, r, d)
            for i in range(0, n, SOME):
                n_some = min(SOME, n - i)
                _read(values, h, p + i, n_some, d, some)
                for r in range(0, n_row - 3, 4):
                    _add_values(score, r * TILE + i, some, n_some, d, sums, r, 4)
                for r in range(n_row // 4 * 4, n_row):
                    _add_values(score, r * TILE + i, some, n_some, d, sums, r, 1)
        for r in range(n_row):
            start = ((row + r) // group * n_head + h * group + (row + r) % group) * d
            per_weight = np.float32(1) / total(load(f32x16, weights, 16 * r))
            for i in range(0, d, 16):
                store(out, start + i, load(f32x16, sums, r * d + i) * per_weight)


@inner
def _read(cache, h, first, n, d, some):
    """Positions first .. first + n - 1 of head h, as f32 [n, d].  A block of Q8_0 is 17 u16, one of Q4_0 is 9."""
    a, kind = cache.a, cache.kind
    for p in range(n):
        at, to = h * cache.head + (first + p) * cache.step, p * d
        if kind == F16:
            for i in range(0, d, 16):
                store(some, to + i, half_to_f32(load(u16x16, a, at + i)))
        elif kind == F32:
            for i in range(0, d, 16):
                store(some, to + i, load(f32x16, a, at + 2 * i))
        elif kind == Q8_0:
            for i in range(0, d, 32):
                scale = half_to_f32(broadcast(u16x16, a, at))
                store(some, to + i, convert(f32x16, convert(i32x16, load(i8x16, a, at + 1))) * scale)
                store(some, to + i + 16, convert(f32x16, convert(i32x16, load(i8x16, a, at + 9))) * scale)
                at += 17
        else:
            for i in range(0, d, 32):
                scale, q = half_to_f32(broadcast(u16x16, a, at)), load(u8x16, a, at + 1)
                store(some, to + i, convert(f32x16, convert(i32x16, q & 15) - 8) * scale)
                store(some, to + i + 16, convert(f32x16, convert(i32x16, q >> 4) - 8) * scale)
                at += 9


@inner
def _scores(rows, r, k, n, d, score, start, T):
    """score[t, p] = rows[r + t] . key p, for `T` rows and n positions (some more: up to a multiple of 4)."""
    literally(T)
    a, b, c, e = registers(f32x16, T), registers(f32x16, T), registers(f32x16, T), registers(f32x16, T)
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
def _bend(score, start, own, n, rule, slope):
    """A row's scaled scores as the rule has them: soft-capped, less the further away, -inf where nothing is seen."""
    n16 = (n + 15) // 16 * 16
    if rule.softcap > 0:
        for i in range(start, start + n16, 16):
            grown = exp(load(f32x16, score, i) * (np.float32(2) / rule.softcap))
            store(score, i, (splat(f32x16, 1) - splat(f32x16, 2) / (grown + np.float32(1))) * rule.softcap)  # tanh
    if slope != 0:
        for i in range(n):
            score[start + i] -= slope * np.float32(abs(own - i))
    for i in range(min(own - rule.window + 1, n) if rule.window > 0 else 0):
        score[start + i] = HIDDEN
    for i in range(min(max(own + 1, 0), n) if rule.causal else n, n16):
        score[start + i] = HIDDEN


@inner
def _weigh(score, start, n, top, weights, sums, r, d):
    """A row's scores become weights e^(score - largest so far); its sums shrink to match."""
    n16 = (n + 15) // 16 * 16
    largest_yet = splat(f32x16, top[r])
    for i in range(0, n16, 16):
        largest_yet = maximum(load(f32x16, score, start + i), largest_yet)
    now = largest(largest_yet)
    shrink = exp(splat(f32x16, top[r] - now))
    top[r] = now
    weight = load(f32x16, weights, 16 * r) * shrink
    for i in range(0, n16, 16):
        e = exp(load(f32x16, score, start + i) - now)
        store(score, start + i, e)
        weight = weight + e
    store(weights, 16 * r, weight)
    for i in range(0, d, 16):
        store(sums, r * d + i, load(f32x16, sums, r * d + i) * shrink)


@inner
def _add_values(score, start, v, n, d, sums, r, T):
    """sums[r + t] += sum over p of score[t, p] * value p, 64 components at a time, then the rest 16 at a time."""
    literally(T)
    a, b, c, e = registers(f32x16, T), registers(f32x16, T), registers(f32x16, T), registers(f32x16, T)
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
