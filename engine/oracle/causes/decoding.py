"""Mistakes in decode steps, which read what earlier steps stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ....kernels import Attention
from ....kernels.attention import attention_numpy
from ....kernels.kv import numbers
from .attend import attend_by, masked, reweighted, softmax_of
from .cause import SOFTMAX, Cause, Change


def decode_attention(attend: Callable[..., Change]) -> Change:
    """Change the attention of decode steps, given the length of the prompt."""
    return lambda s: attend(s.n_prompt)(s) if s.n_prompt else None


def _decode_mask(visible: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Change:
    return decode_attention(lambda n: masked(lambda i, j: np.where(i >= n, visible(i, j), j <= i)))


def _overwritten_slot(n: int) -> Change:
    """Let each decode step store its key in slot 0 as well: the first key is lost, the newest counts twice."""

    def weigh(score: Any, i: np.ndarray, j: np.ndarray) -> Any:
        score = np.where((j <= i) & ((j > 0) | (i < n)), score, -np.inf)
        return softmax_of(score + np.where((i == j) & (i >= n), np.log(2), 0))

    return reweighted(weigh)


def _stale_values(n: int) -> Change:
    def attend(q: Any, k: Any, v: Any, first: int, rule: Attention, tap: Any) -> Any:
        values = numbers(v, q.dtype).copy()
        values[n:] = values[n - 1]
        return attention_numpy(q, k, values, first, rule, tap)

    return attend_by(attend)


DECODING: tuple[Cause, ...] = (
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
)
