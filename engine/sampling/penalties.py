"""The penalties on repetition: the one step that looks at what was said before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .steps import Candidates

_FLOAT32 = np.finfo(np.float32)


def penalties(c: Candidates, window: Sequence[int], repeat: float, frequency: float, presence: float) -> Candidates:
    """Lower logits for the tokens of `window`; the candidates still in the order of their ids.

    For a token that stands `count` > 0 times in the window, all in float32:
        l = l * repeat  if l <= 0  else  l / repeat
        l = l - (count * frequency + presence)
    Dividing alone, as the paper has it, would make a negative logit more likely.  Source: Keskar et al. 2019,
    arXiv:1909.05858; the rest as in llama-sampler.cpp, 0c1e57098.
    """
    if len(window) == 0 or (repeat == 1 and frequency == 0 and presence == 0):
        return c
    tokens, counts = np.unique(np.asarray(window), return_counts=True)
    at = np.searchsorted(c.ids, tokens)
    found = c.ids[np.minimum(at, len(c.ids) - 1)] == tokens  # a grammar may have taken some away
    at, counts = at[found], counts[found].astype(np.float32)
    logits = c.logits.copy()
    old = logits[at]
    new = _finite(np.where(old <= 0, old * np.float32(repeat), old / np.float32(repeat)))
    logits[at] = _finite(new - (counts * np.float32(frequency) + np.float32(presence)))
    return replace(c, logits=logits, sorted=False)


def _finite(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """`x` with its infinities at float32's limits: however high, a penalty forbids nothing."""
    return np.clip(x, _FLOAT32.min, _FLOAT32.max)
