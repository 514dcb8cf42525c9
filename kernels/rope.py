"""Rotary position embedding: pairs of a head's components turned by an angle that grows with the position.

    component   0 1 2 3 4 5 6 7           pair i turns by  position * freqs[i]
    "norm"      a a b b c c d d           Llama as GGUF stores it: neighbours
    "neox"      a b c d a b c d           Qwen, NeoX: the two halves

Components from n_rot on stay as they are.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class Rope:
    """How a model turns its queries and keys.

    style    "norm" or "neox", the pairing
    n_rot    components that take part, an even number
    base     freqs[i] = scale * base ** (-2 i / n_rot) / factors[i]
    scale    1 / the linear scaling factor
    factors  f32 [n_rot / 2] or None: llama3's per-frequency divisors, the tensor rope_freqs.weight
    """

    style: str
    n_rot: int
    base: float = 10000.0
    scale: float = 1.0
    factors: np.ndarray | None = None

    @cached_property
    def freqs(self):
        """Angle per position of each pair, in radians.  f64 [n_rot / 2]"""
        freqs = self.scale * self.base ** (-2 * np.arange(self.n_rot // 2) / self.n_rot)
        return freqs if self.factors is None else freqs / self.factors

    @cached_property
    def pairs(self):
        """Where each pair's two components lie: slices of the last axis."""
        n = self.n_rot
        return (slice(0, n, 2), slice(1, n, 2)) if self.style == "norm" else (slice(0, n // 2), slice(n // 2, n))


def turn(x, cos, sin, pairs):
    """The pairs of `x` rotated by angles of the given cosines and sines.

    x float [n_tok, n_head, n_head_dim], cos and sin float [n_tok, n_rot / 2] -> a new array as x
    """
    a, b = x[..., pairs[0]], x[..., pairs[1]]  # [n_tok, n_head, n_rot / 2]
    cos, sin = cos[:, None, :], sin[:, None, :]
    y = x.copy()
    y[..., pairs[0]] = a * cos - b * sin
    y[..., pairs[1]] = a * sin + b * cos
    return y


def rope_numpy(x, positions, rope):
    """`x` turned to `positions`.

    x float [n_tok, n_head, n_head_dim], positions i32 [n_tok] -> a new array as x
    Negative positions turn back: keys move when the window shifts.  Source: Su et al. 2021, arXiv:2104.09864.
    """
    angle = np.asarray(positions)[:, None] * rope.freqs  # f64 [n_tok, n_rot / 2]
    return turn(x, np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype), rope.pairs)


def rope_ggml(x, positions, rope):
    """As rope_numpy with ggml's float32 angles: each pair's is the one before times base ** (-2 / n_rot), rounded.

    x f32 [n_tok, n_head, n_head_dim], positions i32 [n_tok] -> a new array as x
    Source: ggml-cpu/ops.cpp ggml_rope_cache_init, llama.cpp 0c1e57098.
    """
    f32 = np.float32
    step = f32(f32(rope.base) ** f32(-2 / rope.n_rot))
    angle = np.empty((len(positions), rope.n_rot // 2), f32)
    angle[:, 0] = positions
    for i in range(1, rope.n_rot // 2):
        angle[:, i] = angle[:, i - 1] * step
    if rope.factors is not None:
        angle /= rope.factors
    angle = (angle * f32(rope.scale)).astype(np.float64)
    return turn(x, np.cos(angle).astype(f32), np.sin(angle).astype(f32), rope.pairs)
