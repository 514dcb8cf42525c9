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
from .attend import (
    attend_by,
    attend_with,
    attention,
    in_order,
    key_heads,
    masked,
    reweighted,
    scale_of,
    softcap_of,
    softmax_of,
    special_scores,
    special_softmax,
    window_of,
)
from .cause import SCORES, SOFTMAX, Cause, Change
from .change import hparams, other_values


def _sink(score: Any) -> Any:
    top = np.maximum(np.max(score, axis=-1, keepdims=True), 0)
    e = np.exp(score - top)
    return e / (e.sum(axis=-1, keepdims=True) + np.exp(-top))


def _over_queries(score: Any) -> Any:
    e = np.exp(score - np.max(score))
    return e / np.maximum(e.sum(axis=1, keepdims=True), 1e-300)


def _after_softmax(score: Any, i: np.ndarray, j: np.ndarray) -> Any:
    return np.where(j <= i, softmax_of(score), 0)


def _slot_early(score: Any, i: np.ndarray, j: np.ndarray) -> Any:
    """Weigh keys that lie one slot early: the first one is lost, and an empty slot is read in its place."""
    score = np.where((j <= i) & ((j > 0) | (i == 0)), score, -np.inf)
    top = np.maximum(np.max(score, axis=-1, keepdims=True), 0)
    e = np.exp(score - top)
    return e / (e.sum(axis=-1, keepdims=True) + np.where(i > 0, np.exp(-top), 0))


def _cap_after_mask(q: Any, k: Any, v: Any, first: int, rule: Attention, tap: Any) -> Any:
    """Cap scores after the mask: hidden keys get the lowest score, not none."""

    def scored(kq: Any, rule: Attention, distance: Any) -> Any:
        score, n_pos = in_order(kq, rule, distance), kq.shape[-1]
        seen = np.array([[b <= j < e for j in range(n_pos)] for b, e in (rule.seen(t, n_pos) for t in range(len(q)))])
        return np.where(seen, score, -rule.softcap)

    return attend_with(q, k, v, first, rule, tap, np.ones((len(q), len(k)), bool), scored=scored)


def _other_windows(s: Setting) -> Setting | None:
    """Give the layer the window of layers of the other kind."""
    rules = s.whole.hparams.attention if s.whole is not None else ()
    own = s.model.hparams.attention
    other = next((rule.window for rule in rules if own and rule.window != own[0].window), None)
    return None if other is None else attention(lambda rule, d: replace(rule, window=other))(s)


def _merged(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Reorder what attention computes, given as [n_tok, n_head, n_head_dim], before its heads are merged."""
    return lambda s: other_values(
        kqv_out=lambda x, before: np.ascontiguousarray(
            change(x.reshape(len(x), s.model.hparams.n_head, -1)),
        ).reshape(x.shape)
    )(s)


def _shifted_values(by: int) -> Change:
    def attend(q: Any, k: Any, v: Any, first: int, rule: Attention, tap: Any) -> Any:
        return attention_numpy(q, k, np.roll(numbers(v, q.dtype), by, axis=0), first, rule, tap)

    return attend_by(attend)


def _slopes_by_position(q: Any, k: Any, v: Any, first: int, rule: Attention, tap: Any) -> Any:
    """Bias scores by slope * (j - i), with its sign."""
    i, j = first + np.arange(len(q))[:, None], np.arange(len(k))[None]
    return attend_with(q, k, v, first, rule, tap, scored=lambda kq, rule, distance: in_order(kq, rule, i - j))


ATTENTION: tuple[Cause, ...] = (
    Cause(
        "scores were divided by n_head_dim, not by its root", SCORES, attention(lambda a, d: replace(a, scale=1 / d))
    ),
    Cause("scores were not scaled", SCORES, attention(lambda a, d: replace(a, scale=1.0))),
    Cause("scores were scaled by 1 / sqrt(n_head_dim)", SCORES, scale_of(lambda s: s.model.hparams.n_head_dim**-0.5)),
    Cause(
        "scores were scaled by 1 / sqrt(n_embd / n_head)",
        SCORES,
        scale_of(lambda s: (s.model.hparams.n_embd / s.model.hparams.n_head) ** -0.5),
    ),
    Cause("scores were scaled twice", SCORES, attention(lambda a, d: replace(a, scale=a.scale**2))),
    Cause("scores were scaled by 1 / sqrt(n_embd)", SCORES, scale_of(lambda s: s.model.hparams.n_embd**-0.5)),
    Cause(
        "the temperature of queries were missing",
        SCORES | {"Qcur_attn_temp_scaled"},
        hparams(attn_temp=lambda hp: 0.0),
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
    Cause("the window were that of the other layers", SOFTMAX, _other_windows),
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
    Cause(
        "the soft-cap of scores came before the scale",
        SOFTMAX,
        special_scores(
            lambda kq, rule, distance: rule.softcap * np.tanh(kq / rule.softcap) * rule.scale, lambda rule: rule.softcap
        ),
    ),
    Cause(
        "the soft-cap of scores came after the mask",
        SOFTMAX,
        lambda s: attend_by(_cap_after_mask)(s) if any(rule.softcap for rule in s.model.hparams.attention) else None,
    ),
    Cause("query head h read key head h % n_head_kv", SCORES, key_heads(lambda n, n_kv: np.arange(n) % n_kv)),
    Cause(
        "query head h read the keys of head h % n_head_kv, and the right values",
        SCORES,
        key_heads(lambda n, n_kv: np.arange(n) % n_kv, of="k"),
    ),
    Cause(
        "query head h read the values of head h % n_head_kv",
        frozenset({"kqv_out"}),
        key_heads(lambda n, n_kv: np.arange(n) % n_kv, of="v"),
    ),
    Cause(
        "query heads read key heads in reverse order",
        SCORES,
        key_heads(lambda n, n_kv: n_kv - 1 - np.arange(n) // (n // n_kv)),
    ),
    Cause(
        "query heads read the next key head",
        SCORES,
        key_heads(lambda n, n_kv: (np.arange(n) // (n // n_kv) + 1) % n_kv),
    ),
    Cause("the mask came after the softmax", SOFTMAX, reweighted(_after_softmax)),
    Cause("keys and values were stored one slot early", SOFTMAX, reweighted(_slot_early)),
    Cause("all query heads read key head 0", SCORES, key_heads(lambda n, n_kv: np.zeros(n, int))),
    Cause(
        "all query heads read the values of head 0",
        frozenset({"kqv_out"}),
        key_heads(lambda n, n_kv: np.zeros(n, int), of="v"),
    ),
    Cause("the softmax went over queries, not keys", SOFTMAX, special_softmax(_over_queries)),
    Cause("the softmax had one more key with score 0 (a sink)", SOFTMAX, special_softmax(_sink)),
    Cause(
        "the softmax were missing its sum",
        SOFTMAX,
        special_softmax(lambda s: np.exp(s - np.max(s, axis=-1, keepdims=True))),
    ),
    Cause("the softmax were in base 2", SOFTMAX, special_softmax(lambda s: softmax_of(s * np.log(2)))),
    Cause(
        "the sinks were missing", SOFTMAX, attention(lambda a, d: None if a.sinks is None else replace(a, sinks=None))
    ),
    Cause(
        "the sinks were those of the heads in reverse order",
        SOFTMAX,
        attention(lambda a, d: None if a.sinks is None else replace(a, sinks=a.sinks[::-1])),
    ),
    Cause(
        "the softmax were doubled (a softmax of weights)", SOFTMAX, special_softmax(lambda s: softmax_of(softmax_of(s)))
    ),
    Cause(
        "the components of heads were woven when they were merged",
        frozenset({"kqv_out"}),
        _merged(lambda x: x.swapaxes(1, 2)),
    ),
    Cause(
        "heads and tokens were not exchanged before heads were merged",
        frozenset({"kqv_out"}),
        _merged(lambda x: x.swapaxes(0, 1)),
    ),
    Cause("heads were merged in reverse order", frozenset({"kqv_out"}), _merged(lambda x: x[:, ::-1])),
    Cause("the values stood one position late", frozenset({"kqv_out"}), _shifted_values(1)),
    Cause("the values stood one position early", frozenset({"kqv_out"}), _shifted_values(-1)),
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
    Cause(
        "the slopes of ALiBi were 2^(-8 h / n_head), h from 1, whatever the number of heads",
        SOFTMAX,
        attention(
            lambda a, d: (
                None
                if a.slopes is None
                else replace(a, slopes=2.0 ** (-8 * np.arange(1, len(a.slopes) + 1) / len(a.slopes)))
            )
        ),
    ),
    Cause(
        "the slopes of ALiBi were 2^(-8 h / n_head), h from 0",
        SOFTMAX,
        attention(
            lambda a, d: (
                None if a.slopes is None else replace(a, slopes=2.0 ** (-8 * np.arange(len(a.slopes)) / len(a.slopes)))
            )
        ),
    ),
    Cause(
        "ALiBi were added, not subtracted",
        SOFTMAX,
        attention(lambda a, d: None if a.slopes is None else replace(a, slopes=-a.slopes)),
    ),
    Cause(
        "ALiBi were scaled with the scores",
        SOFTMAX,
        attention(lambda a, d: None if a.slopes is None else replace(a, slopes=a.slopes * a.scale)),
    ),
    Cause(
        "ALiBi took the position of the key, not its distance",
        SOFTMAX,
        lambda s: None if s.model.family.positions != "alibi" else attend_by(_slopes_by_position)(s),
    ),
)
