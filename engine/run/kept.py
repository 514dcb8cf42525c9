"""Beginnings that lost their slot, kept so that they need not be computed again.

    slot 0: conversation A   --- B needs the slot ---------->   memory: A    (OLLAMA_KV_CACHE_RAM)
    slot 0: conversation B   --- A's next question --------->   memory: B;   A is copied back
    memory full, idle, model unloaded, server ended  ------->   disk: a file each (OLLAMA_KV_CACHE_DIR)

A restored position has the bits that computing it again would give: keys and values depend on the tokens up to their
position and on nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..model.cache import KVCache, first_position
from .cache_file import CacheFiles
from .prefix import common_prefix

MIN_TOKENS = 32  # fewer are computed again: that takes no longer than copying


@dataclass(eq=False)
class Kept:
    """Tokens with the keys and values of each layer, as `KVCache.snapshot` returns them.

    stays   longer ones of the same text do not take its place: their layers with a window lack what it has
    """

    tokens: list[int]
    arrays: list[np.ndarray]
    stays: bool = False

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    def known(self, prompt: Sequence[int], cache: KVCache) -> int:
        """Return how many tokens of `prompt` need not be computed in `cache` once they are restored."""
        n = common_prefix(self.tokens, prompt)
        return n if cache.sees_back(first_position(self.arrays, len(self.tokens)), n) else 0


class KeptPrefixes:
    """The beginnings of one model, in memory and on disk.

    n_byte    bytes of memory for them
    files     the files of this model, or None
    """

    def __init__(self, cache: KVCache, n_byte: int = 0, files: CacheFiles | None = None):
        self.cache, self.n_byte, self.files = cache, n_byte, files
        self._kept: list[Kept] = []  # the least recently used first

    @property
    def nbytes(self) -> int:
        return sum(kept.nbytes for kept in self._kept)

    def keep(self, slot: int, tokens: Sequence[int], n_left: int = 0, stays: bool = False) -> None:
        """Keep the beginning in `slot`, of which only `n_left` tokens stay there, unless that is most of it.

        Shorter ones of the same text go.
        """
        n_lost = len(tokens) - n_left
        if n_lost < max(MIN_TOKENS, len(tokens) // 4) or not (self.n_byte or self.files):
            return
        new = Kept(list(tokens), self.cache.snapshot(slot, len(tokens)), stays)
        self._kept = [kept for kept in self._kept if kept.stays or kept.tokens != new.tokens[: len(kept.tokens)]]
        if not any(kept.known([*tokens, -1], self.cache) == len(tokens) for kept in self._kept):
            self._kept.append(new)
        while self._kept and self.nbytes > self.n_byte:
            oldest = self._kept.pop(0)
            if self.files:
                self.files.save(oldest.tokens, oldest.arrays)

    def restore(self, slot: int, prompt: Sequence[int], n_known: int, n_elsewhere: int = 0) -> int:
        """Copy into `slot`, which knows `n_known` tokens of `prompt`, more of them.  -> how many it knows now

        n_elsewhere   tokens that another slot knows, from which they are copied faster
        """
        n_least = max(n_known, n_elsewhere) + MIN_TOKENS
        best = max(self._kept, key=lambda kept: kept.known(prompt, self.cache), default=None)
        n = best.known(prompt, self.cache) if best else 0
        if self.files and (found := self.files.longest(prompt, max(n + MIN_TOKENS, n_least))):
            tokens, arrays = found
            best = Kept(tokens, arrays)
            n = best.known(prompt, self.cache)
        if best is None or n < n_least:
            return n_known
        self.cache.restore(slot, best.arrays, len(best.tokens), n_known, n)
        if best in self._kept:
            self._kept.remove(best)
            if n < len(best.tokens) or best.stays:  # others may want the rest of it, or what the slot will drop
                self._kept.append(best)
        return n

    def save(self, slots: Iterable[tuple[int, Sequence[int]]]) -> None:
        """Write everything to disk: what is kept, and the beginnings in `slots`."""
        if not self.files:
            return
        for kept in self._kept:
            self.files.save(kept.tokens, kept.arrays)
        for slot, tokens in slots:
            if len(tokens) >= MIN_TOKENS and not self.files.has(tokens):
                self.files.save(tokens, self.cache.snapshot(slot, len(tokens)))
