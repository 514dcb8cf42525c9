"""Rotation of heads by a Hadamard matrix, before a cache stores them in blocks.

A block of 32 numbers has one scale, so one large number costs the others their precision.  The rotation spreads each
number evenly over all of its group; queries are rotated like keys, which leaves their products unchanged, and the
weighted sum of the values is rotated back: the matrix, symmetric and orthonormal, is its own inverse.

    size 4:   1/2 [ 1  1  1  1 ]        rotated by butterflies, n log n sums:   u, v -> u + v, u - v
                  [ 1 -1  1 -1 ]
                  [ 1  1 -1 -1 ]
                  [ 1 -1 -1  1 ]

Source: llama.cpp 0c1e57098, llama-kv-cache.cpp and ggml-cpu/ops.cpp ggml_compute_forward_fwht; the same bits.
"""

import numpy as np
from numba.core import config

from .jit import inner, kernel

LEAST_GROUP = 64  # heads of other sizes are not rotated


def key_group(n_head_dim):
    """Return the size of the groups in which keys are rotated: the largest power of two, 0 if below 64.

    >>> [key_group(n) for n in (32, 64, 80, 96, 128, 192, 256)]
    [0, 64, 0, 0, 128, 64, 256]
    """
    group = n_head_dim & -n_head_dim
    return group if group >= LEAST_GROUP else 0


def value_group(n_head_dim):
    """Return the size of the groups in which values are rotated: 64, or 0.

    >>> [value_group(n) for n in (32, 64, 96, 128)]
    [0, 64, 0, 64]
    """
    return 0 if n_head_dim % LEAST_GROUP else LEAST_GROUP


def rotate_groups_numpy(x, group):
    """Rotate each `group` numbers of the last axis.  float [..., n] -> as x, a new array"""
    y = x.reshape(-1, group) * x.dtype.type(np.float32(1) / np.sqrt(np.float32(group)))
    length = 1
    while length < group:
        pairs = y.reshape(len(y), -1, 2, length)
        y = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2).reshape(len(y), group)
        length *= 2
    return y.reshape(x.shape)


def rotate_groups_numba(x, group):
    """Compute rotate_groups_numpy, to the bit."""
    if x.dtype != np.float32:
        return rotate_groups_numpy(x, group)
    y = np.array(x, order="C")
    _rotate_all(y.reshape(-1), group)
    return y


@kernel
def _rotate_all(x, group):
    rotate_in_place(x, group)


@inner
def rotate_in_place(x, group):
    """Rotate each `group` numbers of `x`, f32 [n], n a multiple of `group`."""
    factor = np.float32(1) / np.sqrt(np.float32(group))
    for i in range(x.size):
        x[i] *= factor
    length = 1
    while length < group:
        for i in range(0, x.size, 2 * length):
            first, second = x[i : i + length], x[i + length : i + 2 * length]
            for j in range(length):
                u, v = first[j], second[j]
                first[j], second[j] = u + v, u - v
        length *= 2


rotate_groups = rotate_groups_numpy if config.DISABLE_JIT else rotate_groups_numba
