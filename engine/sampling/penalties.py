"""Repetition penalties, the only sampling step that depends on earlier tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .steps import Candidates

_FLOAT32 = np.finfo(np.float32)


def penalties(c: Candidates, window: Sequence[int], repeat: float, frequency: float, presence: float) -> Candidates:
    """Lower the logits of the tokens in `window`; the candidates must be in the order of their ids.

    For a token that occurs `count` > 0 times in the window, all in float32:
        l = l * repeat  if l <= 0  else  l / repeat
        l = l - (count * frequency + presence)
    Division alone, as in the paper, would raise a negative logit.  Source: Keskar et al. 2019, arXiv:1909.05858;
    the rest as in llama-sampler.cpp, 0c1e57098.
    """
    if len(window) == 0 or (repeat == 1 and frequency == 0 and presence == 0):
        return c
    tokens, counts = np.unique(np.asarray(window), return_counts=True)
    at = np.searchsorted(c.ids, tokens)
    found = c.ids[np.minimum(at, len(c.ids) - 1)] == tokens  # a grammar may have removed some
    at, counts = at[found], counts[found].astype(np.float32)
    logits = c.logits.copy()
    old = logits[at]
    new = _finite(np.where(old <= 0, old * np.float32(repeat), old / np.float32(repeat)))
    logits[at] = _finite(new - (counts * np.float32(frequency) + np.float32(presence)))
    return replace(c, logits=logits, sorted=False)


def _finite(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Clip infinities to float32's limits, because even the highest penalty must not forbid a token."""
    return np.clip(x, _FLOAT32.min, _FLOAT32.max)
