"""Rotary position embedding: pairs of a head's components are rotated by an angle proportional to the position.

    component   0 1 2 3 4 5 6 7           pair i is rotated by  position * freqs[i]
    "norm"      a a b b c c d d           Llama as stored in GGUF: neighbours
    "neox"      a b c d a b c d           Qwen, NeoX: the two halves

Components from n_rot on are not rotated.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np

from .jit import inner, kernel
from .simd import bits, f32x16, i32x16, load, load_twice, store, swap_neighbours
from .threads import parallel_for, run

SIGN_OF_EVEN = np.tile(np.array([-(2**31), 0], np.int32), 8)


@dataclass(frozen=True, eq=False)
class Rope:
    """A model's rotary position embedding.

    style        "norm" or "neox", the pairing
    n_rot        number of rotated components, even
    base         freqs[i] = scale * base ** (-2 i / n_rot) / factors[i]
    scale        1 / the factor by which the context window was stretched
    factors      f32 [n_rot / 2] or None: divisors of the frequencies; Llama 3's rope_freqs, Phi 3's rope_factors_*
    ramp         f32 [n_rot / 2] or None: the part of each pair's angle that `scale` does not affect, 0 to 1; for YaRN
    attn_factor  factor of the rotated components
    """

    style: str
    n_rot: int
    base: float = 10000.0
    scale: float = 1.0
    factors: np.ndarray | None = None
    ramp: np.ndarray | None = None
    attn_factor: float = 1.0

    @cached_property
    def freqs(self):
        """The angle per position of each pair, in radians.  f64 [n_rot / 2]"""
        scale = self.scale if self.ramp is None else self.scale * (1 - self.ramp) + self.ramp
        freqs = scale * self.base ** (-2 * np.arange(self.n_rot // 2) / self.n_rot)
        return freqs if self.factors is None else freqs / self.factors

    @cached_property
    def unstretched(self):
        """The same rotation without attn_factor, for keys that were already multiplied by it."""
        return self if self.attn_factor == 1 else replace(self, attn_factor=1.0)

    @cached_property
    def pairs(self):
        """The positions of each pair's two components: slices of the last axis."""
        n = self.n_rot
        return (slice(0, n, 2), slice(1, n, 2)) if self.style == "norm" else (slice(0, n // 2), slice(n // 2, n))


def yarn_ramp(n_rot, base, n_ctx_orig, fast=32.0, slow=1.0):
    """Return which pairs keep their frequency when a window of n_ctx_orig positions is stretched.  -> f32 [n_rot / 2]

    1 for pairs with more than `fast` full turns within the original window, 0 for those with less than `slow`, and
    linear in between.
    Source: Peng et al. 2023, arXiv:2309.00071; rounded as in ggml.c ggml_rope_yarn_corr_dims, llama.cpp 0c1e57098.
    """

    def pair(turns):
        return n_rot * np.log(n_ctx_orig / (turns * 2 * np.pi)) / (2 * np.log(base))

    low, high = max(0, np.floor(pair(fast))), min(n_rot - 1, np.ceil(pair(slow)))
    return (1 - np.clip((np.arange(n_rot // 2) - low) / max(0.001, high - low), 0, 1)).astype(np.float32)


def yarn_stretch(factor, weight=1.0):
    """Return YaRN's factor for rotated components in a window stretched by `factor`; it keeps scores sharp."""
    return 1 + 0.1 * weight * np.log(factor) if factor > 1 else 1.0


def rotate(x, cos, sin, pairs):
    """Rotate the pairs of `x` by the angles with the given cosines and sines.

    x float [n_tok, n_head, n_head_dim], cos and sin float [n_tok, n_rot / 2] -> a new array as x
    """
    a, b = x[..., pairs[0]], x[..., pairs[1]]  # [n_tok, n_head, n_rot / 2]
    cos, sin = cos[:, None, :], sin[:, None, :]
    y = x.copy()
    y[..., pairs[0]] = a * cos - b * sin
    y[..., pairs[1]] = a * sin + b * cos
    return y


def rope_numpy(x, positions, rope):
    """Rotate `x` to `positions`.

    x float [n_tok, n_head, n_head_dim], positions i32 [n_tok] -> a new array as x
    Negative positions rotate back, which moves keys when the window shifts.  Source: Su et al. 2021, arXiv:2104.09864.
    """
    angle = np.asarray(positions)[:, None] * rope.freqs  # f64 [n_tok, n_rot / 2]
    cos, sin = rope.attn_factor * np.cos(angle), rope.attn_factor * np.sin(angle)
    return rotate(x, cos.astype(x.dtype), sin.astype(x.dtype), rope.pairs)


def rope_ggml(x, positions, rope):
    """Compute rope_numpy with ggml's float32 angles.

    x f32 [n_tok, n_head, n_head_dim], positions i32 [n_tok] -> a new array as x
    """
    return rotate(x, *cos_and_sin_ggml(positions, rope), rope.pairs)


def cos_and_sin_ggml(positions, rope):
    """Compute cosines and sines as ggml does, of float32 angles; each rounded once.

    positions i32 [n_tok] -> two f32 [n_tok, n_rot / 2]
    """
    f32 = np.float32
    angle = angles_ggml(positions, rope).astype(np.float64)
    return np.cos(angle).astype(f32) * f32(rope.attn_factor), np.sin(angle).astype(f32) * f32(rope.attn_factor)


def angles_ggml(positions, rope):
    """Compute each pair's angle as the previous one times base ** (-2 / n_rot), rounded.

    positions i32 [n_tok] -> f32 [n_tok, n_rot / 2]
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
    scaled = angle * f32(rope.scale)
    return scaled if rope.ramp is None else scaled * (1 - rope.ramp) + angle * rope.ramp


_tables: WeakKeyDictionary[Rope, tuple[np.ndarray, np.ndarray]] = WeakKeyDictionary()


def cos_and_sin_table(rope, n):
    """Return cos_and_sin_ggml for at least positions 0 .. n - 1, computed once.  -> two f32 [n or more, n_rot / 2]"""
    if rope not in _tables or len(_tables[rope][0]) < n:
        _tables[rope] = cos_and_sin_ggml(np.arange(max(512, 1 << (n - 1).bit_length())), rope)
    return _tables[rope]


def check_pairs(x, positions, rope):
    """Check that `x` [n_tok, n_head, n_head_dim] has a token for each position and `rope`'s pairs in each head.

    Raises: ValueError
    """
    if x.ndim != 3 or len(x) != len(positions) or not 0 <= rope.n_rot <= x.shape[2] or rope.n_rot % 2:
        expected = f"one token for each of {len(positions)} positions, and heads of {rope.n_rot} numbers or more"
        raise ValueError(f"x has shape {x.shape}, expected {expected}")


def rope_numba(x, positions, rope):
    """Compute rope_ggml with cached tables.

    x f32 [n_tok, n_head, n_head_dim], positions i32 [n_tok] -> a new array as x
    Raises: ValueError unless `x` has a token for each position and heads of at least n_rot numbers
    """
    check_pairs(x, positions, rope)
    x, positions = np.ascontiguousarray(x, np.float32), np.asarray(positions, np.int32)
    y = np.empty_like(x)
    sizes, neighbours = x.shape[1:], rope.style == "norm"

    def rotate_by(rows, cos, sin):
        table = cos.reshape(-1), sin.reshape(-1), cos.shape[1]
        return run(rotate_tokens, 2 * x.size, x.reshape(-1), *sizes, rows, *table, neighbours, y.reshape(-1))

    if not rotate_by(positions, *cos_and_sin_table(rope, 1)):
        if positions.min() < 0:
            rotate_by(np.arange(len(positions), dtype=np.int32), *cos_and_sin_ggml(positions, rope))
        else:
            rotate_by(positions, *cos_and_sin_table(rope, int(positions.max()) + 1))
    return y


@kernel
def rotate_tokens(team, x, n_head, d, rows, cos, sin, n_pair, neighbours, y):
    """Rotate token t of `x` by row rows[t] of the tables.  Returns False, with nothing done, if they are too short.

    x and y f32 [n_tok * n_head * d], which may be one array; cos and sin f32 [n * n_pair]
    """
    for row in rows:
        if not 0 <= row < cos.size // n_pair:
            return False
    parallel_for(team, _rotate_part, (x, n_head, d, rows, cos, sin, n_pair, neighbours, y), rows.size)
    return True


@inner
def _rotate_part(x, n_head, d, rows, cos, sin, n_pair, neighbours, y, first, last):
    for t in range(first, last):
        row = rows[t] * n_pair
        for h in range(n_head):
            at = (t * n_head + h) * d
            if neighbours:
                _rotate_neighbours(x, at, row, cos, sin, n_pair, y)
            else:
                _rotate_halves(x, at, row, cos, sin, n_pair, y)
            for i in range(2 * n_pair, d):
                y[at + i] = x[at + i]


@inner
def _rotate_neighbours(x, at, row, cos, sin, n_pair, y):
    """Rotate a head, whose pairs are neighbours: y = x c + (x with neighbours swapped) s, s negative in even lanes."""
    whole = n_pair // 8 * 8
    for i in range(0, whole, 8):
        v, c = load(f32x16, x, at + 2 * i), load_twice(f32x16, cos, row + i)
        s = bits(f32x16, bits(i32x16, load_twice(f32x16, sin, row + i)) ^ load(i32x16, SIGN_OF_EVEN, 0))
        store(y, at + 2 * i, v * c + swap_neighbours(v) * s)
    for i in range(whole, n_pair):
        a, b, c, s = x[at + 2 * i], x[at + 2 * i + 1], cos[row + i], sin[row + i]
        y[at + 2 * i], y[at + 2 * i + 1] = a * c - b * s, b * c + a * s


@inner
def _rotate_halves(x, at, row, cos, sin, n_pair, y):
    """Rotate a head, whose pairs are in two halves."""
    whole = n_pair // 16 * 16
    for i in range(0, whole, 16):
        a, b = load(f32x16, x, at + i), load(f32x16, x, at + n_pair + i)
        c, s = load(f32x16, cos, row + i), load(f32x16, sin, row + i)
        store(y, at + i, a * c - b * s)
        store(y, at + n_pair + i, a * s + b * c)
    for i in range(whole, n_pair):
        a, b = x[at + i], x[at + n_pair + i]
        y[at + i] = a * cos[row + i] - b * sin[row + i]
        y[at + n_pair + i] = a * sin[row + i] + b * cos[row + i]
