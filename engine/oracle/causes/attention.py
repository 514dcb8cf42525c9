"""Mistakes in attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ....kernels import Attention
from ....kernels.attention import attention_numpy
from ....kernels.kv import numbers
from ..setting import Setting
from .cause import SCORES, SOFTMAX, Cause, Change
from .change import other_kernel, other_values


def attention(change: Callable[[Attention, int], Attention | None]) -> Change:
    """Change the rule of attention, given the head size; a change that returns None does not apply."""

    def changed(s: Setting) -> Setting | None:
        hp = s.model.hparams
        rule = hp.attention[0] if hp.attention else Attention(hp.n_head_dim**-0.5)
        rule = replace(rule, causal=s.model.family.causal)
        if change(rule, hp.n_head_dim) is None:
            return None

        def attend(q: Any, k: Any, v: Any, first: int, rule: Attention, tap: Any) -> np.ndarray:
            return np.asarray(attention_numpy(q, k, v, first, change(rule, q.shape[2]) or rule, tap))

        return other_kernel("attention", lambda k: attend)(s)

    return changed


def attend_by(attend: Callable[..., np.ndarray]) -> Change:
    """Replace attention by a function of attention_numpy's arguments."""
    return other_kernel("attention", lambda k: attend)


def window_of(n: int) -> Change:
    return attention(lambda rule, d: replace(rule, window=n) if rule.window != n else None)


def softcap_of(cap: float) -> Change:
    return attention(lambda rule, d: replace(rule, softcap=float(cap)) if rule.softcap != cap else None)


def heads_modulo(q: Any, k: Any, v: Any, first: int, rule: Attention, tap: Any) -> Any:
    """Let query head h read key head h % n_head_kv."""
    n_head, n_head_kv = q.shape[1], k.shape[1]
    order = np.arange(n_head) % n_head_kv
    return attention_numpy(q, k[:, order], v[:, order], first, rule, tap)


def first_key_head(q: Any, k: Any, v: Any, first: int, rule: Attention, tap: Any) -> Any:
    return attention_numpy(q, k[:, :1].repeat(k.shape[1], 1), v[:, :1].repeat(v.shape[1], 1), first, rule, tap)


def masked(visible: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Change:
    """Let a query at position i see the keys j where visible(i, j); a query that sees none sees itself."""

    def attend(q: Any, k: Any, v: Any, first: int, rule: Attention, tap: Any) -> Any:
        i, j = first + np.arange(len(q))[:, None], np.arange(len(k))[None]
        seen = visible(i, j)
        seen = seen | (~seen.any(axis=1, keepdims=True) & (i == j))
        return _softmax_attention(q, k, v, first, rule, tap, lambda score: np.where(seen, score, -np.inf), _softmax)

    return attend_by(attend)


def _softmax(score: Any) -> Any:
    e = np.exp(score - np.max(score, axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _softmax_attention(q: Any, k: Any, v: Any, first: int, rule: Attention, tap: Any, mask: Any, softmax: Any) -> Any:
    """Compute attention with a mask and a softmax of its own."""
    n_tok, n_head, d = q.shape
    group = n_head // k.shape[1]
    keys, values = (numbers(x, q.dtype).repeat(group, axis=1) for x in (k, v))
    kq = tap("kq", np.einsum("thd,jhd->htj", q, keys))
    score = kq * rule.scale
    if rule.softcap:
        score = rule.softcap * np.tanh(score / rule.softcap)
    p = tap("kq_soft_max", softmax(mask(score)))
    return np.ascontiguousarray(np.einsum("htj,jhd->thd", p, values)).reshape(n_tok, n_head * d)


def special_softmax(softmax: Callable[[Any], Any]) -> Change:
    """Replace the softmax over visible scores."""

    def attend(q: Any, k: Any, v: Any, first: int, rule: Attention, tap: Any) -> Any:
        seen = np.zeros((len(q), len(k)), bool)
        for t in range(len(q)):
            begin, end = rule.seen(first + t, len(k))
            seen[t, begin:end] = True
        return _softmax_attention(q, k, v, first, rule, tap, lambda s: np.where(seen, s, -np.inf), softmax)

    return attend_by(attend)


def _sink(score: Any) -> Any:
    top = np.maximum(np.max(score, axis=-1, keepdims=True), 0)
    e = np.exp(score - top)
    return e / (e.sum(axis=-1, keepdims=True) + np.exp(-top))


def _over_queries(score: Any) -> Any:
    e = np.exp(score - np.max(score))
    return e / np.maximum(e.sum(axis=1, keepdims=True), 1e-300)


def reweighted(weigh: Callable[[Any, np.ndarray, np.ndarray], Any]) -> Change:
    """Replace mask and softmax.  weigh: scores [n_head, n_tok, n_pos], positions i [n_tok, 1] and j [1, n_pos] -> p"""

    def attend(q: Any, k: Any, v: Any, first: int, rule: Attention, tap: Any) -> Any:
        i, j = first + np.arange(len(q))[:, None], np.arange(len(k))[None]
        return _softmax_attention(q, k, v, first, rule, tap, lambda s: s, lambda s: weigh(s, i, j))

    return attend_by(attend)


def _after_softmax(score: Any, i: np.ndarray, j: np.ndarray) -> Any:
    return np.where(j <= i, _softmax(score), 0)


def _slot_early(score: Any, i: np.ndarray, j: np.ndarray) -> Any:
    """Weigh keys that lie one slot early: the first one is lost, and an empty slot is read in its place."""
    score = np.where((j <= i) & ((j > 0) | (i == 0)), score, -np.inf)
    top = np.maximum(np.max(score, axis=-1, keepdims=True), 0)
    e = np.exp(score - top)
    return e / (e.sum(axis=-1, keepdims=True) + np.where(i > 0, np.exp(-top), 0))


def decode_attention(attend: Callable[..., Change]) -> Change:
    """Change the attention of decode steps, given the length of the prompt."""
    return lambda s: attend(s.n_prompt)(s) if s.n_prompt else None


def _decode_mask(visible: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Change:
    return decode_attention(lambda n: masked(lambda i, j: np.where(i >= n, visible(i, j), j <= i)))


def _overwritten_slot(n: int) -> Change:
    """Let each decode step store its key in slot 0 as well: the first key is lost, the newest counts twice."""

    def weigh(score: Any, i: np.ndarray, j: np.ndarray) -> Any:
        score = np.where((j <= i) & ((j > 0) | (i < n)), score, -np.inf)
        return _softmax(score + np.where((i == j) & (i >= n), np.log(2), 0))

    return reweighted(weigh)


def _stale_values(n: int) -> Change:
    def attend(q: Any, k: Any, v: Any, first: int, rule: Attention, tap: Any) -> Any:
        values = numbers(v, q.dtype).copy()
        values[n:] = values[n - 1]
        return attention_numpy(q, k, values, first, rule, tap)

    return attend_by(attend)


def _values_modulo(q: Any, k: Any, v: Any, first: int, rule: Attention, tap: Any) -> Any:
    n_head, n_head_kv = q.shape[1], k.shape[1]
    keys = numbers(k, q.dtype).repeat(n_head // n_head_kv, axis=1)
    values = numbers(v, q.dtype)[:, np.arange(n_head) % n_head_kv]
    return attention_numpy(q, keys, values, first, rule, tap)


ATTENTION: tuple[Cause, ...] = (
    Cause(
        "scores were divided by n_head_dim, not by its root", SCORES, attention(lambda a, d: replace(a, scale=1 / d))
    ),
    Cause("scores were not scaled", SCORES, attention(lambda a, d: replace(a, scale=1.0))),
    Cause(
        "scores were scaled by 1 / sqrt(n_head_dim)",
        SCORES,
        attention(lambda a, d: None if abs(a.scale - d**-0.5) < 1e-9 else replace(a, scale=d**-0.5)),
    ),
    Cause("scores were scaled twice", SCORES, attention(lambda a, d: replace(a, scale=a.scale**2))),
    Cause(
        "scores were scaled by 1 / sqrt(n_embd)",
        SCORES,
        lambda s: attention(lambda a, d: replace(a, scale=s.model.hparams.n_embd**-0.5))(s),
    ),
    Cause(
        "the causal mask were missing", SOFTMAX, attention(lambda a, d: replace(a, causal=False) if a.causal else None)
    ),
    Cause(
        "an encoder had a causal mask", SOFTMAX, attention(lambda a, d: None if a.causal else replace(a, causal=True))
    ),
    Cause("a query did not see itself", SOFTMAX, masked(lambda i, j: j < i)),
    Cause("a query saw one key too many", SOFTMAX, masked(lambda i, j: j <= i + 1)),
    Cause("the mask hid earlier keys, not later ones", SOFTMAX, masked(lambda i, j: j >= i)),
    Cause("the first key were hidden", SOFTMAX, masked(lambda i, j: (j <= i) & ((j > 0) | (i == 0)))),
    Cause("the window were ignored", SOFTMAX, attention(lambda a, d: replace(a, window=0) if a.window else None)),
    Cause(
        "the window were one longer",
        SOFTMAX,
        attention(lambda a, d: replace(a, window=a.window + 1) if a.window else None),
    ),
    Cause(
        "the window were one shorter",
        SOFTMAX,
        attention(lambda a, d: replace(a, window=a.window - 1) if a.window > 1 else None),
    ),
    *(
        Cause(
            f"there were a window of {n}",
            SOFTMAX,
            window_of(n),
        )
        for n in (2, 3, 4, 5, 6, 8, 16)
    ),
    Cause(
        "the soft-cap of scores were missing",
        SOFTMAX,
        attention(lambda a, d: replace(a, softcap=0.0) if a.softcap else None),
    ),
    *(
        Cause(
            f"scores had a soft-cap of {n}",
            SOFTMAX,
            softcap_of(n),
        )
        for n in (50, 30, 20, 10)
    ),
    Cause("query head h read key head h % n_head_kv", SCORES, attend_by(heads_modulo)),
    Cause("query head h read the values of head h % n_head_kv", frozenset({"kqv_out"}), attend_by(_values_modulo)),
    Cause("the mask came after the softmax", SOFTMAX, reweighted(_after_softmax)),
    Cause("keys and values were stored one slot early", SOFTMAX, reweighted(_slot_early)),
    Cause("decode steps did not see their own key", SOFTMAX, _decode_mask(lambda i, j: j < i)),
    Cause("decode steps saw their own key only", SOFTMAX, _decode_mask(lambda i, j: j == i)),
    Cause(
        "decode steps did not see the prompt",
        SOFTMAX,
        decode_attention(lambda n: masked(lambda i, j: (j <= i) & ((i < n) | (j >= n)))),
    ),
    Cause(
        "decode steps saw the prompt and their own key only",
        SOFTMAX,
        decode_attention(lambda n: masked(lambda i, j: (j <= i) & ((j < n) | (i == j)))),
    ),
    Cause("decode steps overwrote slot 0 of the cache", SOFTMAX, decode_attention(_overwritten_slot)),
    Cause("decode steps stored the values of the step before", frozenset({"kqv_out"}), decode_attention(_stale_values)),
    Cause("all query heads read key head 0", SCORES, attend_by(first_key_head)),
    Cause("the softmax went over queries, not keys", SOFTMAX, special_softmax(_over_queries)),
    Cause("the softmax had one more key with score 0 (a sink)", SOFTMAX, special_softmax(_sink)),
    Cause(
        "the softmax were missing its sum",
        SOFTMAX,
        special_softmax(lambda s: np.exp(s - np.max(s, axis=-1, keepdims=True))),
    ),
    Cause("the softmax were in base 2", SOFTMAX, special_softmax(lambda s: _softmax(s * np.log(2)))),
    Cause(
        "the components of heads were woven when they were merged",
        frozenset({"kqv_out"}),
        lambda s: other_values(
            kqv_out=lambda x, before: x.reshape(len(x), s.model.hparams.n_head, -1).swapaxes(1, 2).reshape(x.shape)
        )(s),
    ),
    Cause(
        "keys were read as values",
        frozenset({"kqv_out"}),
        attend_by(lambda q, k, v, first, rule, tap: attention_numpy(q, k, k, first, rule, tap)),
    ),
    Cause(
        "the slopes of ALiBi were missing",
        SOFTMAX,
        attention(lambda a, d: None if a.slopes is None else replace(a, slopes=None)),
    ),
)
