"""The sampler chain: from a row of logits to the next token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy

import numpy as np
from numpy.typing import NDArray

from ..errors import BadOptions
from ..options import Options
from .penalties import penalties
from .rng import Rng
from .steps import (
    Candidates,
    candidates,
    dist,
    min_p,
    mirostat_v1,
    mirostat_v2,
    scale_by_temperature,
    softmax,
    surprise_bits,
    tail_free,
    top_k,
    top_p,
    typical_p,
)

LookAtSampling = Callable[[str, float, Candidates], None]
"""Called after each step with its name, its parameter and the candidates that are left; at last with "dist", the random
number and the token chosen."""


def no_look(step: str, parameter: float, c: Candidates) -> None:
    """Do nothing."""


class Sampler:
    """The sampling state of one request: options, random numbers and, for mirostat, the target surprise `mu`.

    Truncation comes before the temperature, as in llama.cpp, so a higher temperature does not admit more tokens.
    """

    def __init__(self, options: Options, n_vocab: int):
        """Prepare the sampling state.  Raises: BadOptions for a bias on a token outside the vocabulary"""
        self.options = options
        self.biased = np.array([id for id, _ in options.logit_bias], np.intp)
        self.bias = np.array([bias for _, bias in options.logit_bias], np.float32)
        if len(self.biased) and self.biased.max() >= n_vocab:
            wrong = f'option "logit_bias": unknown token {self.biased.max()}: the vocabulary ends at {n_vocab - 1}'
            raise BadOptions("logit_bias", wrong)
        self.rng = Rng(options.seed)
        self.mu = 2 * options.mirostat_tau  # bits
        self.ids = np.arange(n_vocab, dtype=np.int32)

    def fork(self) -> Sampler:
        """Return a sampler that draws what this one would, without a change to this one."""
        other = copy(self)
        other.rng = self.rng.fork()
        return other

    @np.errstate(over="ignore")  # an overflow here means a probability of zero
    def sample(
        self,
        logits: NDArray[np.floating],
        recent: Sequence[int],
        mask: NDArray[np.bool_] | None = None,
        look: LookAtSampling = no_look,
    ) -> int:
        """Choose the next token and return its id; draws one random number, also at temperature 0 (but see mirostat).

        logits f32 [n_vocab], from the model; recent: BOS, prompt and every sampled token so far;
        mask bool [n_vocab]: tokens that a grammar allows, or None; look: shows each step.
        A bias is applied before everything else, as in llama.cpp.
        Raises: ModelError for logits that are not finite, EngineError for a mask that allows no token.
        """
        assert logits.shape == self.ids.shape, f"{logits.shape} logits for {len(self.ids)} tokens"
        o = self.options
        n_last = o.repeat_last_n if o.repeat_last_n >= 0 else o.num_ctx
        window = recent[max(len(recent) - n_last, 0) :]
        if len(self.biased):
            logits = logits.copy()
            logits[self.biased] += self.bias
            if logits.max() == -np.inf:
                raise BadOptions("logit_bias", 'option "logit_bias" excludes every token')
        c = candidates(self.ids, logits, mask)
        look("logits", 0, c)
        c = penalties(c, window, o.repeat_penalty, o.frequency_penalty, o.presence_penalty)
        look("penalties", o.repeat_penalty, c)
        if o.mirostat and o.temperature > 0:
            c = scale_by_temperature(c, o.temperature)
            look("temperature", o.temperature, c)
            return self._sample_mirostat(c, look)
        c = top_k(c, o.top_k)
        look("top_k", o.top_k, c)
        if o.temperature > 0:  # as in llama.cpp of 2024; at 0 it would only change the input of typical_p
            c = tail_free(c, o.tfs_z)
            look("tfs_z", o.tfs_z, c)
        c = typical_p(c, o.typical_p)
        look("typical_p", o.typical_p, c)
        c = top_p(c, o.top_p)
        look("top_p", o.top_p, c)
        c = min_p(c, o.min_p)
        look("min_p", o.min_p, c)
        c = scale_by_temperature(c, o.temperature)
        look("temperature", o.temperature, c)
        i = dist(c, u := self.rng.draw())
        if look is not no_look:
            look("dist", u, c.take(slice(i, i + 1), True))
        return int(c.ids[i])

    def _sample_mirostat(self, c: Candidates, look: LookAtSampling) -> int:
        """Choose the next token and return its id; then update mu -= eta * (surprise - tau).

        As in llama.cpp, a single candidate consumes no random number here, although it does in the chain.
        """
        o = self.options
        c = mirostat_v1(c, self.mu, len(self.ids)) if o.mirostat == 1 else mirostat_v2(c, self.mu)
        look("mirostat", self.mu, c)
        u = self.rng.draw() if len(c.ids) > 1 else 0.0
        i = dist(c, u)
        if look is not no_look:
            look("dist", u, c.take(slice(i, i + 1), True))
        self.mu -= o.mirostat_eta * (float(surprise_bits(softmax(c.logits))[i]) - o.mirostat_tau)
        return int(c.ids[i])
