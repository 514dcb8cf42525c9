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
from .simd import (
    broadcast,
    f32x16,
    floats,
    fma,
    largest,
    load,
    maximum,
    registers,
    splat,
    store,
    total,
    totals,
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


def look_away(name, value):
    """The `look` that sees nothing: returns `value`."""
    return value


def attention_numpy(q, k, v, first, how, look=look_away):
    """softmax(scores) v  for each head, the scores being q k^T as `how` changes them.

    q float [n_tok, n_head, n_head_dim], k and v [n_pos, n_head_kv, n_head_dim] with n_pos = first + n_tok
    -> as q [n_tok, n_head * n_head_dim]
    `look` is shown "kq" (before scale and mask, as in llama.cpp) and "kq_soft_max", both [n_head, n_tok, n_pos]; what
    it returns is used.
    Source: Vaswani et al. 2017, arXiv:1706.03762; Ainslie et al. 2023, arXiv:2305.13245.
    """
    n_tok, n_head, n_head_dim = q.shape
    n_pos, n_head_kv, _ = k.shape
    group = n_head // n_head_kv
    queries = q.reshape(n_tok, n_head_kv, group, n_head_dim).transpose(1, 2, 0, 3)  # [kv, group, n_tok, d]
    keys = k.astype(q.dtype, copy=False).transpose(1, 2, 0)[:, None]  # [kv, 1, d, n_pos]
    values = v.astype(q.dtype, copy=False).transpose(1, 0, 2)[:, None]  # [kv, 1, n_pos, d]
    j, begin, end = np.arange(n_pos), *np.transpose([how.seen(first + t, n_pos) for t in range(n_tok)])[:, :, None]

    kq = look("kq", (queries @ keys).reshape(n_head, n_tok, n_pos))
    score = kq * q.dtype.type(how.scale)
    if how.softcap:
        score = how.softcap * np.tanh(score / how.softcap)
    if how.slopes is not None:
        away = np.abs(first + np.arange(n_tok)[:, None] - j)  # [n_tok, n_pos]
        score = score - how.slopes[:, None, None].astype(q.dtype) * away
    p = look("kq_soft_max", softmax_numpy(np.where((begin <= j) & (j < end), score, -np.inf)))
    out = p.reshape(n_head_kv, group, n_tok, n_pos) @ values  # [kv, group, n_tok, d]
    return np.ascontiguousarray(out.transpose(2, 0, 1, 3)).reshape(n_tok, n_head * n_head_dim)


def attention_exact(q, k, v, first, how, look=look_away):
    """As attention_numpy in float64, position after position: the sums do not depend on what else is in the batch.

    q f32 [n_tok, n_head, n_head_dim], k and v f32 or f16 [n_pos, n_head_kv, n_head_dim]
    -> f32 [n_tok, n_head * n_head_dim]
    """
    n_tok, n_head, n_head_dim = q.shape
    out = np.empty((n_tok, n_head, n_head_dim), np.float32)
    seen = np.array([how.seen(first + t, len(k)) for t in range(n_tok)])
    k, v = np.ascontiguousarray(k, np.float32), np.ascontiguousarray(v, np.float32)
    _attend_exact(q, k, v, first, seen, how.scale, how.softcap, slopes_of(how, n_head), out)
    return out.reshape(n_tok, n_head * n_head_dim)


def slopes_of(how, n_head):
    """-> f32 [n_head], zeros where there are none"""
    return np.zeros(n_head, np.float32) if how.slopes is None else np.array(how.slopes, np.float32)


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


def attention_ggml(q, k, v, first, how, look=look_away):
    """As attention_exact, rounded where ggml's CPU code rounds (without flash attention).

    Against an f16 cache ggml rounds the queries and the softmax to f16 too, as each is the other side of a dot product.
    """
    if k.dtype != np.float16:
        return attention_exact(q, k, v, first, how)
    n_tok, n_head, n_head_dim = q.shape
    out = np.empty((n_tok, n_head, n_head_dim), np.float32)
    for t in range(n_tok):  # one query at a time: its sums are the same in any batch
        begin, end = how.seen(first + t, len(k))
        query = q[t : t + 1].astype(np.float16).astype(np.float64)
        p = attention_numpy(query, k[begin:end], v[begin:end], first + t - begin, how)
        out[t] = p.reshape(n_head, n_head_dim)
    return out.reshape(n_tok, n_head * n_head_dim)


# --- at speed: an online softmax over fixed tiles of positions (Milakov & Gimelshein 2018, arXiv:1805.02867)
#
#   row     one query head of one token; the rows of a key head lie side by side: row = t * group + head in group
#   tile    positions 0 .. TILE - 1, TILE .. 2 TILE - 1, ...: absolute, so that a row's sums never depend on the span
#
# Each row keeps the largest score so far, the weights' sum (16 partial ones) and the weighted values' sum; a new
# largest shrinks the other two.  A hidden position has weight 0, and adding 0 changes no bit.

TILE = 256
ROWS = 32  # rows of one piece of work: a tile's keys and values are read once for them
HIDDEN = np.float32(-np.inf)


def attention_numba(q, k, v, first, how, look=look_away):
    """As attention_numpy in float32.

    q f32 [n_tok, n_head, n_head_dim], k and v f32 or f16 [n_pos, n_head_kv, n_head_dim]
    -> f32 [n_tok, n_head * n_head_dim]
    """
    n_tok, n_head, n_head_dim = q.shape
    n_pos, n_head_kv, _ = k.shape
    q, k, v = (widened(a) for a in (np.ascontiguousarray(q, np.float32), k, v))
    shape, d = (n_tok, n_head, n_head_kv, n_pos), q.shape[2]
    out = np.empty((n_tok, n_head, d), np.float32)
    work = 2 * n_tok * n_head * d * (min(how.window, n_pos) or n_pos)
    rule = Rule(np.float32(how.scale), how.window, np.float32(how.softcap), how.causal, slopes_of(how, n_head))
    run(_attend, work, q.reshape(-1), *strided(k), *strided(v), *shape, d, first, rule, out.reshape(-1))
    return np.ascontiguousarray(out[:, :, :n_head_dim]).reshape(n_tok, n_head * n_head_dim)


def widened(a):
    """`a` with heads of a multiple of 16, zeros added: whole vectors.  [n, n_head, d] -> [n, n_head, d16]"""
    if a.shape[2] % 16 == 0:
        return a
    wide = np.zeros((*a.shape[:2], -(-a.shape[2] // 16) * 16), a.dtype)
    wide[:, :, : a.shape[2]] = a
    return wide


def strided(a):
    """The first row of `a`, f16 as its bits, and how many numbers further the next position and the next head are."""
    if a.strides[2] != a.itemsize or a.dtype not in (np.float16, np.float32):
        a = np.ascontiguousarray(a, np.float32)
    row = a[0, 0]
    return (
        (row.view(np.uint16) if a.dtype == np.float16 else row),
        a.strides[0] // a.itemsize,
        a.strides[1] // a.itemsize,
    )


class Rule(NamedTuple):
    """An `Attention` as machine code has it: slopes are there, if only zeros."""

    scale: np.float32
    window: int
    softcap: np.float32
    causal: bool
    slopes: np.ndarray


@kernel
def _attend(team, q, k, k_step, k_head, v, v_step, v_head, n_tok, n_head, n_head_kv, n_pos, d, first, rule, out):
    n_piece = n_head_kv * -(-n_tok * (n_head // n_head_kv) // ROWS)
    shape = n_tok, n_head, n_head_kv, n_pos, d
    args = (q, k, k_step, k_head, v, v_step, v_head, shape, first, rule, out)
    parallel_for(team, _attend_pieces, args, n_piece)


@inner
def _attend_pieces(q, k, k_step, k_head, v, v_step, v_head, shape, first, rule, out, begun, ended):
    n_tok, n_head, n_head_kv, n_pos, d = shape
    group = n_head // n_head_kv
    n_chunk = -(-n_tok * group // ROWS)
    rows = np.empty(ROWS * d, np.float32)
    score = np.empty(4 * TILE, np.float32)
    top, weights, sums = np.empty(ROWS, np.float32), np.empty(ROWS * 16, np.float32), np.empty(ROWS * d, np.float32)
    own, slope = np.empty(ROWS, np.int64), np.empty(ROWS, np.float32)
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
            n, keys, values = min(TILE, n_seen - p), h * k_head + p * k_step, h * v_head + p * v_step
            for r in range(0, n_row - 3, 4):
                _scores(rows, r, k, keys, k_step, n, d, score, 4)
                for t in range(4):
                    _bend(score, t * TILE, own[r + t] - p, n, rule, slope[r + t])
                    _weigh(score, t * TILE, n, top, weights, sums, r + t, d)
                _add_values(score, v, values, v_step, n, d, sums, r, 4)
            for r in range(n_row // 4 * 4, n_row):
                _scores(rows, r, k, keys, k_step, n, d, score, 1)
                for t in range(1):  # as above: a literal 0 would compile both once more
                    _bend(score, t * TILE, own[r + t] - p, n, rule, slope[r + t])
                    _weigh(score, t * TILE, n, top, weights, sums, r + t, d)
                _add_values(score, v, values, v_step, n, d, sums, r, 1)
        for r in range(n_row):
            start = ((row + r) // group * n_head + h * group + (row + r) % group) * d
            per_weight = np.float32(1) / total(load(f32x16, weights, 16 * r))
            for i in range(0, d, 16):
                store(out, start + i, load(f32x16, sums, r * d + i) * per_weight)


@inner
def _scores(rows, r, k, place, step, n, d, score, T):
    """score[t, p] = rows[r + t] . key p, for `T` rows and n positions (some more: up to a multiple of 4)."""
    literally(T)
    a, b, c, e = registers(f32x16, T), registers(f32x16, T), registers(f32x16, T), registers(f32x16, T)
    for p in range(0, n, 4):
        at = place + p * step
        at1, at2, at3 = (
            place + min(p + 1, n - 1) * step,
            place + min(p + 2, n - 1) * step,
            place + min(p + 3, n - 1) * step,
        )
        for t in range(T):
            a[t], b[t], c[t], e[t] = zero(f32x16), zero(f32x16), zero(f32x16), zero(f32x16)
        for i in range(0, d, 16):
            key, key1, key2, key3 = floats(k, at + i), floats(k, at1 + i), floats(k, at2 + i), floats(k, at3 + i)
            for t in range(T):
                x = load(f32x16, rows, (r + t) * d + i)
                a[t], b[t], c[t], e[t] = fma(x, key, a[t]), fma(x, key1, b[t]), fma(x, key2, c[t]), fma(x, key3, e[t])
        for t in range(T):
            store(score, t * TILE + p, totals(a[t], b[t], c[t], e[t]))


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
def _add_values(score, v, place, step, n, d, sums, r, T):
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
            j = place + p * step + i
            value, value1, value2, value3 = floats(v, j), floats(v, j + 16), floats(v, j + 32), floats(v, j + 48)
            for t in range(T):
                w = broadcast(f32x16, score, t * TILE + p)
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
            value = floats(v, place + p * step + i)
            for t in range(T):
                a[t] = fma(value, broadcast(f32x16, score, t * TILE + p), a[t])
        for t in range(T):
            store(sums, (r + t) * d + i, a[t])
