"""The k largest of many: what a sampler keeps of a vocabulary.

    descending      where they are, largest first; of equal ones the first comes first

Finding one, as np.argmax does, takes 10 us of 128,256 and needs no kernel.
"""

from __future__ import annotations

import numpy as np
from numba.core import config

from .jit import kernel
from .simd import f32x16, largest, load, maximum

SHORT = 256  # up to here a list kept in order is quicker than a partition


def descending_numpy(x, k):
    """f32 [n], no NaN, k in 1 .. n -> int [k], equal to argsort(-x, kind="stable")[:k]

    40 of 128,256: argsort takes 12 ms, this 0.15, descending_numba 0.04.
    """
    threshold = np.partition(x, len(x) - k)[len(x) - k]  # the k-th largest
    contenders = np.flatnonzero(x >= threshold)  # k of them, and those that equal the last
    return contenders[np.argsort(-x[contenders], kind="stable")][:k]


def descending_numba(x, k):
    """As descending_numpy."""
    if k > SHORT or x.dtype != np.float32:
        return descending_numpy(x, k)
    where, values = np.empty(k, np.int64), np.empty(k, np.float32)
    _descending(np.ascontiguousarray(x), where, values)
    return where


@kernel
def _descending(x, where, values):
    """One look at everything: what exceeds the least of the k largest so far takes its place among them."""
    k, n = where.size, 0
    for begin in range(0, x.size, 64):
        end = min(begin + 64, x.size)
        if n == k and end - begin == 64:
            low = maximum(load(f32x16, x, begin), load(f32x16, x, begin + 16))
            high = maximum(load(f32x16, x, begin + 32), load(f32x16, x, begin + 48))
            if largest(maximum(low, high)) <= values[k - 1]:
                continue
        for i in range(begin, end):
            if n == k and x[i] <= values[k - 1]:
                continue
            n = min(n + 1, k)
            place = n - 1
            while place > 0 and values[place - 1] < x[i]:
                values[place], where[place] = values[place - 1], where[place - 1]
                place -= 1
            values[place], where[place] = x[i], i


descending = descending_numpy if config.DISABLE_JIT else descending_numba
