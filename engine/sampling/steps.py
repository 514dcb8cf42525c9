"""The sampling steps, each a function from candidates to candidates; sampler.py puts them in order.

All arithmetic is float32, and sums run from the first candidate to the last, as in a C loop (np.cumsum does this,
np.sum adds in pairs).  So with equal logits, a seed draws the same token as in llama.cpp (llama-sampler.cpp,
0c1e57098).

The order of equal logits is unspecified in llama.cpp, which uses std::sort and std::partial_sort (of twelve equal
logits its top_k 5 returns 3 4 1 0 2).  Here the order is stable, so in most chains the lower id comes first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...kernels.select import descending
from ..errors import EngineError, ModelError

_TINY = np.float32(2.0**-149)  # the smallest positive float32, which replaces a probability of 0 in a logarithm


@dataclass(frozen=True)
class Candidates:
    """The tokens that may still be sampled, in an order that matters, because sums and draws follow it.

    ids int32 [n], logits f32 [n], n >= 1; `sorted`: known to be in descending order of logits.
    """

    ids: NDArray[np.integer]
    logits: NDArray[np.float32]
    sorted: bool = False

    def take(self, which: NDArray[np.integer] | NDArray[np.bool_] | slice, sorted: bool) -> Candidates:
        """Select candidates by index or mask, in the order of `which`."""
        return Candidates(self.ids[which], self.logits[which], sorted)


def candidates(ids: NDArray[np.integer], logits: NDArray[np.floating], mask: NDArray[np.bool_] | None) -> Candidates:
    """Return the tokens of the vocabulary that `mask` allows, in the order of ids.

    ids int32 [n_vocab], logits f32 [n_vocab], mask bool [n_vocab] or None for all
    A token with logit -inf is never sampled.
    Raises: ModelError for a NaN, +inf, or only -inf in logits; EngineError if the mask allows no token.
    """
    top = logits.max()  # NaN if any logit is NaN
    if not np.isfinite(top):
        raise ModelError(
            f"logits are not finite: {top} for token {np.argmax(logits)}; weights or arithmetic are broken"
        )
    c = Candidates(ids, np.asarray(logits, np.float32))
    if mask is None:
        return c
    allowed = c.take(np.flatnonzero(mask & (logits > -np.inf)), sorted=False)
    if len(allowed.ids) == 0:
        raise EngineError(f"no token is allowed next: the grammar excludes all {len(ids)}")
    return allowed


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute probabilities, with their sum taken from first to last.  f32 [n] -> f32 [n]"""
    e = np.exp(logits - logits.max())
    p: NDArray[np.float32] = e / np.cumsum(e)[-1]
    return p


def top_k(c: Candidates, k: int) -> Candidates:
    """Keep the `k` most likely tokens, sorted; k = 0 keeps all, unsorted."""
    if k <= 0:
        return c
    k = min(k, len(c.ids))
    return c.take(slice(k), sorted=True) if c.sorted else c.take(descending(c.logits, k), sorted=True)


def tail_free(c: Candidates, z: float) -> Candidates:
    """Keep the tokens up to where the sorted probabilities have used up `z` of their curvature; at least one.

    d1[i] = p[i] - p[i+1];  d2[i] = |d1[i] - d1[i+1]| / sum
    The first i tokens stay, for the smallest i >= 1 with d2[0] + ... + d2[i] > z.
    Source: Phi 2019, "Tail Free Sampling"; details as in llama.cpp of October 2024, the last to have it.
    """
    if z >= 1 or len(c.ids) <= 2:
        return c
    c = top_k(c, len(c.ids))
    d2 = np.abs(np.diff(softmax(c.logits), n=2))
    total = np.cumsum(d2)[-1]
    d2 = d2 / total if total > 1e-6 else np.full_like(d2, 1 / len(d2))
    beyond = np.flatnonzero(np.cumsum(d2)[1:] > np.float32(z)) + 1
    return c.take(slice(beyond[0]), sorted=True) if len(beyond) else c


def typical_p(c: Candidates, p: float) -> Candidates:
    """Keep the tokens whose surprise -ln p is nearest to the entropy, until their total probability exceeds `p`.

    They stay in that order, the most typical first, and count as unsorted.
    Source: Meister et al. 2022, arXiv:2202.00666.
    """
    if p >= 1 or p <= 0:
        return c
    c = top_k(c, len(c.ids))
    probs = softmax(c.logits)
    surprise = -np.log(np.maximum(probs, _TINY))
    entropy = np.cumsum(probs * surprise)[-1]
    order = np.argsort(np.abs(surprise - entropy), kind="stable")
    n = np.searchsorted(np.cumsum(probs[order]), np.float32(p), side="right") + 1
    return c.take(order[:n], sorted=False)


def top_p(c: Candidates, p: float) -> Candidates:
    """Keep the most likely tokens, sorted, until their total probability reaches `p` (nucleus sampling).

    Source: Holtzman et al. 2019, arXiv:1904.09751.
    """
    if p >= 1:
        return c
    n = len(c.ids)
    probs = softmax(c.logits)  # before sorting: the order of the sum affects the last bit
    order = np.arange(n) if c.sorted else descending(c.logits, min(n, 256))
    running = np.cumsum(probs[order])
    if len(order) < n and running[-1] < np.float32(p):  # 256 are nearly always enough
        order = descending(c.logits, n)
        running = np.cumsum(probs[order])
    return c.take(order[: np.searchsorted(running, np.float32(p)) + 1], sorted=True)


def min_p(c: Candidates, p: float) -> Candidates:
    """Keep the tokens at least `p` times as likely as the most likely one, in their order: l >= l_max + ln p.

    Source: Nguyen et al. 2024, arXiv:2407.01082.
    """
    if np.float32(p) <= 0:
        return c
    return c.take(c.logits >= c.logits.max() + np.log(np.float32(min(p, 1))), c.sorted)


def scale_by_temperature(c: Candidates, t: float) -> Candidates:
    """Divide logits by `t`; at 0, or if the quotients overflow, keep only the first of the most likely tokens."""
    if np.float32(t) > 0:
        hot = replace(c, logits=c.logits / np.float32(t))
        if np.isfinite(hot.logits.max()):
            return hot
    first = int(np.argmax(c.logits))
    return c.take(slice(first, first + 1), sorted=True)


def dist(c: Candidates, u: float) -> int:
    """Return the index of the candidate that `u` in [0, 1) selects from the cumulative distribution.

    e = exp(l - l_max) in float32, summed in double in order; the first index whose running sum reaches u of the total.
    A `u` of 0 is replaced by a tiny number, so that it cannot select a probability of 0.
    """
    running = np.cumsum(np.exp(c.logits - c.logits.max()), dtype=np.float64)
    return int(np.searchsorted(running, (u or 2.0**-65) * running[-1]))


def mirostat_v1(c: Candidates, mu: float, n_vocab: int, m: int = 100) -> Candidates:
    """Keep the k most likely tokens, sorted, with k such that the expected surprise is `mu` bits under Zipf's law.

    With s the exponent of the law, fitted to the m most likely tokens, and eps = s - 1:
        k = (eps * 2**mu / (1 - n_vocab**-eps)) ** (1 / s)
    Source: Basu et al. 2020, arXiv:2007.14966, algorithm 1.
    """
    c = top_k(c, len(c.ids))
    k = zipf_k(softmax(c.logits)[:m].astype(np.float64), mu, n_vocab, len(c.ids))
    return c.take(slice(k), sorted=True)


def zipf_k(p: NDArray[np.float64], mu: float, n_vocab: int, n: int) -> int:
    """Compute the k of mirostat_v1, from 1 to n, for descending probabilities `p`; in logarithms to avoid overflow."""
    p = p[p > 0]
    if len(p) < 2:
        return 1
    i = np.arange(1, len(p))
    t, b = np.log((i + 1) / i), np.log(p[:-1] / p[1:])
    s = max((t @ b) / (t @ t), 1e-9)
    eps = (s - 1) or 1e-9  # at 0 the quotient has the limit 1 / ln(n_vocab)
    ln_k = (np.log(eps / -np.expm1(-eps * np.log(n_vocab))) + mu * np.log(2)) / s
    return n if ln_k >= np.log(n) else max(int(np.exp(ln_k)), 1)


def mirostat_v2(c: Candidates, mu: float) -> Candidates:
    """Keep the tokens with a surprise of at most `mu` bits, sorted, at least one.  Source: as above."""
    c = top_k(c, len(c.ids))
    n = int(np.searchsorted(surprise_bits(softmax(c.logits)), mu, side="right"))
    return c.take(slice(max(n, 1)), sorted=True)


def surprise_bits(p: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute -log2 p.  f32 [n] -> f32 [n]"""
    return -np.log2(np.maximum(p, _TINY))
