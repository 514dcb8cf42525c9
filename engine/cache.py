"""The KV cache: what attention remembers, so that a token is computed once.

    slot    one sequence's place: n_ctx positions of its own in every layer (memory = n_ctx x slots)
    layer   keys and values [n_slot, n_ctx, n_head_kv, n_head_dim];  keys are stored already turned by RoPE

`cache.k[il][slot]` prints what layer il remembers.  In memory a head's positions follow each other, since attention
reads one head after the other: at 4096 positions 8 heads of 64 take 0.56 ms so, 0.98 ms with the heads inside.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..kernels import Kernels, Rope
from .batch import Span

Ropes = Sequence[Rope | None]
CACHE_TYPES = {"f16": np.float16, "f32": np.float32, "f64": np.float64}


class KVCache:
    """Keys and values per layer, slot, position and key head."""

    def __init__(
        self, n_layer: int, n_head_kv: int, n_head_dim: int, n_ctx: int, n_slot: int = 1, dtype: type = np.float16
    ):
        shape = (n_slot, n_head_kv, n_ctx, n_head_dim)
        self.n_ctx, self.n_slot = n_ctx, n_slot
        self.k: list[np.ndarray] = [np.zeros(shape, dtype).swapaxes(1, 2) for _ in range(n_layer)]
        self.v: list[np.ndarray] = [np.zeros(shape, dtype).swapaxes(1, 2) for _ in range(n_layer)]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (*self.k, *self.v))

    def write(self, il: int, span: Span, k: np.ndarray, v: np.ndarray) -> None:
        """Remember a span's keys and values in layer `il`.  k and v float [span.length, n_head_kv, n_head_dim]"""
        where = span.slot, slice(span.start, span.start + span.length)
        self.k[il][where], self.v[il][where] = k, v

    def read(self, il: int, span: Span) -> tuple[np.ndarray, np.ndarray]:
        """All that `span` may look at in layer `il`: keys and values of positions 0 .. its last, as views."""
        where = span.slot, slice(0, span.start + span.length)
        return self.k[il][where], self.v[il][where]

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Positions start .. end - 1 of slot `target` become those of `source`."""
        for array in (*self.k, *self.v):
            array[target, start:end] = array[source, start:end]

    def shift(self, slot: int, n_cached: int, keep: int, discard: int, kernels: Kernels, ropes: Ropes) -> int:
        """Forget `discard` positions after the first `keep`; later ones move down.  -> positions now cached

        Their keys are turned back by `discard` positions, which is what they would have been but for what they had
        already seen of the forgotten ones: the values stay, as in llama.cpp.  ropes: of each layer, None for none
        """
        source, target = slice(keep + discard, n_cached), slice(keep, n_cached - discard)
        positions = np.full(n_cached - keep - discard, -discard, np.int32)
        for k, v, rope in zip(self.k, self.v, ropes, strict=True):
            moved = k[slot, source].astype(np.float32 if k.dtype == np.float16 else k.dtype)
            k[slot, target] = moved if rope is None else kernels.rope(moved, positions, rope.unstretched)
            v[slot, target] = v[slot, source].copy()
        return n_cached - discard
