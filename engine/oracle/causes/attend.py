"""Changes of attention: its rule, its mask, its softmax, the heads that it reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ....kernels import Attention
from ....kernels.attention import attention_numpy
from ....kernels.kv import numbers
from ...model.encoder import alibi_slopes
from ..setting import Setting
from .cause import Change
from .change import other_kernel


def attention(change: Callable[[Attention, int], Attention | None]) -> Change:
    """Change the rule of attention, given the head size; a change that returns None does not apply."""

    def changed(s: Setting) -> Setting | None:
        hp = s.model.hparams
        rule = hp.attention[0] if hp.attention else Attention(hp.n_head_dim**-0.5)
        if not s.model.family.causal:  # an encoder makes its own rule
            slopes = alibi_slopes(hp.n_head) if s.model.family.positions == "alibi" else None
            rule = replace(rule, causal=False, slopes=slopes)
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


def scale_of(scale: Callable[[Setting], float]) -> Change:
    """Scale scores by another factor; it does not apply if that is the model's."""

    def changed(s: Setting) -> Setting | None:
        other = scale(s)
        return attention(lambda rule, d: None if abs(rule.scale - other) < 1e-9 else replace(rule, scale=other))(s)

    return changed


def key_heads(order: Callable[[int, int], np.ndarray], of: str = "kv") -> Change:
    """Let query heads read other heads of keys, of values or of both: n_head, n_head_kv -> i [n_head]"""

    def attend(q: Any, k: Any, v: Any, first: int, rule: Attention, tap: Any) -> Any:
        n_head, n_head_kv = q.shape[1], k.shape[1]
        right, other = np.arange(n_head) // (n_head // n_head_kv), order(n_head, n_head_kv)
        k, v = (numbers(x, q.dtype) for x in (k, v))
        k, v = (x[:, other if name in of else right] for name, x in (("k", k), ("v", v)))
        return attention_numpy(q, k, v, first, rule, tap)

    return attend_by(attend)


def masked(visible: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Change:
    """Let a query at position i see the keys j of its window where visible(i, j); if there are none, itself."""

    def attend(q: Any, k: Any, v: Any, first: int, rule: Attention, tap: Any) -> Any:
        i, j = first + np.arange(len(q))[:, None], np.arange(len(k))[None]
        seen = visible(i, j) & (not rule.window or j > i - rule.window)
        seen = seen | (~seen.any(axis=1, keepdims=True) & (i == j))
        return attend_with(q, k, v, first, rule, tap, seen)

    return attend_by(attend)


def softmax_of(score: Any) -> Any:
    e = np.exp(score - np.max(score, axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def in_order(score: Any, rule: Attention, distance: Any) -> Any:
    """Scale, cap and bias scores as the rule has it.  [n_head, n_tok, n_pos] -> the same"""
    score = score * rule.scale
    if rule.softcap:
        score = rule.softcap * np.tanh(score / rule.softcap)
    return score if rule.slopes is None else score - rule.slopes[:, None, None] * distance


def attend_with(
    q: Any,
    k: Any,
    v: Any,
    first: int,
    rule: Attention,
    tap: Any,
    seen: Any = None,
    softmax: Callable[[Any], Any] = softmax_of,
    scored: Callable[[Any, Attention, Any], Any] = in_order,
) -> Any:
    """Compute attention with a mask, a softmax or scores of its own.

    seen      bool [n_tok, n_pos]; None: as the rule has it
    softmax   scores with -inf where hidden -> weights
    scored    q . k, the rule and |i - j| -> scores
    """
    n_tok, n_head, d = q.shape
    group = n_head // k.shape[1]
    keys, values = (numbers(x, q.dtype).repeat(group, axis=1) for x in (k, v))
    i, j = first + np.arange(n_tok)[:, None], np.arange(len(k))[None]
    if seen is None:
        begin, end = np.transpose([rule.seen(first + t, len(k)) for t in range(n_tok)])[:, :, None]
        seen = (begin <= j) & (j < end)
    kq = tap("kq", np.einsum("thd,jhd->htj", q, keys))
    score = np.where(seen, scored(kq, rule, np.abs(i - j)), -np.inf)
    if rule.sinks is not None:
        sink = np.broadcast_to(rule.sinks[:, None, None].astype(q.dtype), (n_head, n_tok, 1))
        score = np.concatenate([score, sink], axis=-1)
    p = tap("kq_soft_max", softmax(score)[..., : len(k)])
    return np.ascontiguousarray(np.einsum("htj,jhd->thd", p, values)).reshape(n_tok, n_head * d)


def special_softmax(softmax: Callable[[Any], Any]) -> Change:
    """Replace the softmax over visible scores."""
    return attend_by(
        lambda q, k, v, first, rule, tap: attend_with(q, k, v, first, rule, tap, softmax=softmax),
    )


def special_scores(scored: Callable[[Any, Attention, Any], Any], applies: Callable[[Attention], object]) -> Change:
    """Replace what makes scores of q . k, in models to whose rule it applies."""

    def attend(q: Any, k: Any, v: Any, first: int, rule: Attention, tap: Any) -> Any:
        return attend_with(q, k, v, first, rule, tap, scored=scored)

    has = attention(lambda rule, d: rule if applies(rule) else None)
    return lambda s: attend_by(attend)(s) if has(s) else None


def reweighted(weigh: Callable[[Any, np.ndarray, np.ndarray], Any]) -> Change:
    """Replace mask and softmax.  weigh: scores [n_head, n_tok, n_pos], positions i [n_tok, 1] and j [1, n_pos] -> p"""

    def attend(q: Any, k: Any, v: Any, first: int, rule: Attention, tap: Any) -> Any:
        i, j = first + np.arange(len(q))[:, None], np.arange(len(k))[None]
        everything = np.ones((len(q), len(k)), bool)
        return attend_with(q, k, v, first, rule, tap, everything, lambda score: weigh(score[..., : len(k)], i, j))

    return attend_by(attend)
