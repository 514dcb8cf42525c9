"""llama.cpp's random numbers, so that a seed gives the text that Ollama gives."""

from __future__ import annotations

import secrets

import numpy as np

RANDOM_SEED = 2**32 - 1  # llama.cpp's LLAMA_DEFAULT_SEED; what -1 is modulo 2**32
_BELOW_ONE = 1 - 2.0**-53


class Rng:
    """MT19937 started from a 32-bit seed; two of its outputs make a uniform double, low half first.

    This is what uniform_real_distribution<double> makes of std::mt19937 in libstdc++.  A RandomState seeded with an
    integer starts in the same way (`init_genrand`), and its bytes() are the generator's outputs, little-endian.
    """

    def __init__(self, seed: int):
        """`seed` counts modulo 2**32, -1 asks for a random one; `self.seed` says which it became."""
        self.seed = seed % 2**32 if seed % 2**32 != RANDOM_SEED else secrets.randbelow(RANDOM_SEED)
        self._state = np.random.RandomState(self.seed)

    def draw(self) -> float:
        """The next number, in [0, 1): (a + 2**32 b) / 2**64 for the next two outputs a and b."""
        return min(int.from_bytes(self._state.bytes(8), "little") / 2**64, _BELOW_ONE)
