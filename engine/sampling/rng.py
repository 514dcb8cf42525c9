"""llama.cpp's random number generator, so that a seed gives the same text as in Ollama."""

from __future__ import annotations

import secrets
from copy import copy

import numpy as np

RANDOM_SEED = 2**32 - 1  # llama.cpp's LLAMA_DEFAULT_SEED; equals -1 modulo 2**32
_BELOW_ONE = 1 - 2.0**-53


def seed_of_choice(seed: int, i: int) -> int:
    """Return the seed of the i-th answer to one prompt: -1 stays random, any other is followed by the next."""
    return seed if seed % 2**32 == RANDOM_SEED else (seed % 2**32 + i) % RANDOM_SEED


class Rng:
    """MT19937 seeded with 32 bits; two of its outputs make a uniform double, low half first.

    This equals uniform_real_distribution<double> over std::mt19937 in libstdc++.  A RandomState with an integer seed
    has the same initial state (`init_genrand`), and its bytes() are the generator's outputs, little-endian.
    """

    def __init__(self, seed: int):
        """Seed with `seed` modulo 2**32, or randomly if it is -1; `self.seed` is the seed in use."""
        self.seed = seed % 2**32 if seed % 2**32 != RANDOM_SEED else secrets.randbelow(RANDOM_SEED)
        self._state = np.random.RandomState(self.seed)

    def fork(self) -> Rng:
        """Return a generator that draws the same numbers as this one from now on."""
        other = copy(self)
        other._state = np.random.RandomState()
        other._state.set_state(self._state.get_state())
        return other

    def draw(self) -> float:
        """Return the next number in [0, 1): (a + 2**32 b) / 2**64 for the next two outputs a and b."""
        return min(int.from_bytes(self._state.bytes(8), "little") / 2**64, _BELOW_ONE)
