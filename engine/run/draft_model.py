"""Guesses from a second, smaller model with the same vocabulary (a Modelfile's DRAFT).

It reads the text beside the model and draws each guess as the model's sampler will draw the token: with the same
options and the same random numbers.  Where the two models agree on the probabilities they agree on the token, at any
temperature.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from time import perf_counter_ns

import numpy as np

from ...kernels import NUMBA, Kernels
from ..model.batch import Batch
from ..model.cache import KVCache
from ..model.decoder import forward
from ..model.model import Model
from .draft import PassTimes
from .prefix import common_prefix
from .sequence import Sequence


class DraftModel:
    """A draft model, with a slot of its own for each of the model's.

    n_most   guesses for one pass, at most
    times    how long its own passes take
    """

    def __init__(self, model: Model, cache: KVCache, kernels: Kernels = NUMBA, n_most: int = 4, num_batch: int = 512):
        self.model, self.cache, self.kernels = model, cache, kernels
        self.n_most, self.num_batch, self.times = n_most, num_batch, PassTimes()
        self._held: list[list[int]] = [[] for _ in range(cache.n_slot)]  # tokens in each slot
        self._first = [0] * cache.n_slot  # index of a sequence's first token that its slot holds
        self._owner: list[Sequence | None] = [None] * cache.n_slot

    def guess(self, asked: Many[tuple[Sequence, int]]) -> list[list[int]]:
        """Guess the next tokens of each sequence, as many as asked for; none after an image."""
        going = [(seq, n, i) for i, (seq, n) in enumerate(asked) if n > 0 and min(seq.tokens) >= 0]
        guesses: list[list[int]] = [[] for _ in asked]
        samplers = {i: seq.sampler.fork() for seq, _, i in going}
        batches = [self._unread(seq, n) for seq, n, _ in going]
        while going:
            batch, began = Batch.join(batches), perf_counter_ns()
            rows = forward(self.model, batch, self.cache, self.kernels)
            self.times.add(len(batch.tokens), perf_counter_ns() - began)
            left, batches = [], []
            for (seq, n, i), row in zip(going, rows, strict=True):
                if not np.isfinite(row).all():
                    continue
                guesses[i].append(samplers[i].sample(row, seq.tokens + guesses[i]))
                if len(guesses[i]) < n and guesses[i][-1] not in self.model.tokenizer.eog:
                    batches.append(Batch.of(guesses[i][-1:], seq.slot, len(self._held[seq.slot])))
                    self._held[seq.slot].append(guesses[i][-1])
                    left.append((seq, n, i))
            going = left
        return guesses

    def _unread(self, seq: Sequence, n: int) -> Batch:
        """Read a sequence's text up to at most `num_batch` tokens, and return these; `n` more must fit behind them.

        A text too long for the window is read from a later beginning: half a window before its end.
        """
        slot, n_ctx = seq.slot, self.cache.n_ctx
        if self._owner[slot] is not seq:
            self._owner[slot], self._first[slot] = seq, 0
        if len(seq.tokens) - self._first[slot] + n > n_ctx:
            self._first[slot] = len(seq.tokens) - n_ctx // 2
        text = seq.tokens[self._first[slot] :]
        start = common_prefix(self._held[slot], text)
        if not self.cache.resumes(slot, start):
            start = 0
        while len(text) - start > self.num_batch:
            part = Batch.of(text[start : start + self.num_batch], slot, start, outputs=())
            forward(self.model, part, self.cache, self.kernels)
            start += self.num_batch
        self._held[slot] = text
        return Batch.of(text[start:], slot, start)
