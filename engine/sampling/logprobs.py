"""Log probabilities of tokens under the model alone, before any sampling step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...kernels.select import descending


@dataclass(frozen=True)
class Logprob:
    """The sampled token's natural log probability, and the most likely tokens as (id, logprob), descending."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def logprobs_of(logits: NDArray[np.float32], id: int, n_top: int = 0) -> Logprob:
    """Compute ln softmax of raw logits over the whole vocabulary: temperature 1, no penalty.  logits f32 [n_vocab]

    ln p = l - l_max - ln sum(exp(l - l_max)), the sum in float64.  Of equal logits the lower id comes first.
    """
    shifted = logits - logits.max()
    ln_sum = np.log(np.sum(np.exp(shifted), dtype=np.float64))
    top = descending(logits, min(n_top, len(logits))) if n_top > 0 else ()
    return Logprob(id, float(shifted[id] - ln_sum), tuple((int(i), float(shifted[i] - ln_sum)) for i in top))
