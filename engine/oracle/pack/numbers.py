"""Numbers from an integer formula: the same with every machine, library and version."""

from __future__ import annotations

from zlib import crc32

import numpy as np

WIDE = (
    np.longdouble
)  # computations that are rounded to float64 at their end: no vector code, so the same bits everywhere


class Numbers:
    """A stream of numbers, named by a text.  Floats are multiples of 2^-23: exact in float32."""

    def __init__(self, name: str):
        self.state = np.uint64(crc32(name.encode()) << 32)

    def words(self, n: int) -> np.ndarray:
        """Return the next `n` outputs of splitmix64.  -> u64 [n]"""
        z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + self.state
        self.state = z[-1] if n else self.state
        for factor, shift in ((0xBF58476D1CE4E5B9, 30), (0x94D049BB133111EB, 27)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        return z ^ (z >> np.uint64(31))

    def bytes(self, *shape: int) -> np.ndarray:
        """Return random bytes.  -> u8 of this shape"""
        return (self.words(int(np.prod(shape))) >> np.uint64(56)).astype(np.uint8).reshape(shape)

    def integers(self, end: int, *shape: int) -> np.ndarray:
        """Return integers in 0 .. end - 1.  -> i32 of this shape"""
        return (self.words(int(np.prod(shape))) % np.uint64(end)).astype(np.int32).reshape(shape)

    def uniform(self, *shape: int) -> np.ndarray:
        """Return numbers in -1 .. 1.  -> f64 of this shape"""
        return ((self.words(int(np.prod(shape))) >> np.uint64(40)).astype(np.float64) * 2.0**-23 - 1).reshape(shape)

    def normal(self, *shape: int) -> np.ndarray:
        """Return numbers of mean 0 and variance 1: sums of three uniform ones.  -> f64 of this shape"""
        return np.asarray(self.uniform(3, *shape).sum(axis=0))
