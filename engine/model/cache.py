"""The KV cache: keys and values of earlier positions, so that each token is computed once.

    slot    room for one sequence: n_ctx positions of its own in every layer (memory = n_ctx x slots)
    layer   keys and values [n_slot, n_ctx, n_head_kv, n_head_dim], or as many blocks as hold n_head_dim;
            keys are stored after RoPE

`cache.k[il][slot]` prints a slot's keys in layer il.  In memory the positions of one head are adjacent, since attention
reads one head after the other: at 4096 positions, 8 heads of 64 take 0.56 ms, or 0.98 ms with the heads innermost.

The types q8_0, q5_1, q5_0, q4_1, q4_0 and iq4_nl keep blocks of 32 numbers under one scale: q8_0 in 34 bytes and q4_0
in 18, where f16 takes 64.  Keys and values may have types of their own: "q8_0/q4_0".  In blocks, heads of
a multiple of 64 numbers are rotated first (kernels/hadamard.py), as in llama.cpp; queries are rotated to match.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from ...kernels import Kernels, Rope
from ...kernels.hadamard import key_group, rotate_groups, value_group
from ...kernels.kv import in_blocks, n_kept, new_cache, numbers, types_of_keys_and_values, write
from .batch import Span

Ropes = Sequence[Rope | None]
log = logging.getLogger(__name__)


def usable_type(requested: str, n_head_dim: int) -> str:
    """Return `requested`, or "f16" with a warning if that type is unknown or cannot hold heads of this size."""
    try:
        position_bytes(requested, n_head_dim)
    except KeyError:
        log.warning("unknown cache type, f16 is used: OLLAMA_KV_CACHE_TYPE=%s", requested)
    except ValueError as error:
        log.warning("%s, f16 is used: OLLAMA_KV_CACHE_TYPE=%s", error, requested)
    else:
        return requested
    return "f16"


def position_bytes(type: str, n_head_dim: int) -> int:
    """Return the bytes of one head's key and value at one position.

    Raises: KeyError for an unknown type, ValueError if it cannot hold heads of this size
    """
    return sum(one.itemsize * n_kept(one, n_head_dim) for one in types_of_keys_and_values(type))


class KVCache:
    """Keys and values per layer, slot, position and key head.

    run_layers   how layers run whose cache lies in other processes (engine/distributed), else None
    Raises: ValueError if n_head_dim is not a multiple of the type's block size
    """

    run_layers: Callable[..., np.ndarray] | None = None

    def __init__(self, n_layer: int, n_head_kv: int, n_head_dim: int, n_ctx: int, n_slot: int = 1, type: str = "f16"):
        shape = n_slot, n_ctx, n_head_kv, n_head_dim
        self.n_ctx, self.n_slot, self.type = n_ctx, n_slot, type
        k_type, v_type = types_of_keys_and_values(type)
        self.k_group: int = key_group(n_head_dim) if in_blocks(k_type) else 0
        self.v_group: int = value_group(n_head_dim) if in_blocks(v_type) else 0
        self.k: list[np.ndarray] = [new_cache(*shape, k_type) for _ in range(n_layer)]
        self.v: list[np.ndarray] = [new_cache(*shape, v_type) for _ in range(n_layer)]

    def __repr__(self) -> str:
        shape = f"{len(self.k)} layers, {self.n_slot} slots of {self.n_ctx} positions"
        return f"<KVCache: {shape}, {self.type}, {self.nbytes / 2**20:.1f} MiB>"

    @property
    def nbytes(self) -> int:
        return sum(array.base.nbytes for array in (*self.k, *self.v) if array.base is not None)

    def rotated(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rotate queries, keys and values as this cache keeps them.  Each float [n_tok, n_head, n_head_dim]"""
        if self.k_group:
            q, k = rotate_groups(q, self.k_group), rotate_groups(k, self.k_group)
        return q, k, rotate_groups(v, self.v_group) if self.v_group else v

    def rotated_back(self, x: np.ndarray) -> np.ndarray:
        """Rotate what attention computed of this cache's values back.  float [n_tok, n_head * n_head_dim] -> as x"""
        return rotate_groups(x, self.v_group) if self.v_group else x

    def close(self) -> None:
        """End processes that hold a part of the cache; here there are none."""

    def write(self, il: int, span: Span, k: np.ndarray, v: np.ndarray) -> None:
        """Remember a span's keys and values in layer `il`.  k and v float [span.length, n_head_kv, n_head_dim]

        Raises: IndexError for a span outside the cache
        """
        self.check(span.slot, span.start, span.start + span.length)
        where = span.slot, slice(span.start, span.start + span.length)
        write(self.k[il][where], k)
        write(self.v[il][where], v)

    def read(self, il: int, span: Span) -> tuple[np.ndarray, np.ndarray]:
        """Return views of the keys and values that `span` attends to in layer `il`: positions 0 .. its last.

        Raises: IndexError for a span outside the cache
        """
        self.check(span.slot, span.start, span.start + span.length)
        where = span.slot, slice(0, span.start + span.length)
        return self.k[il][where], self.v[il][where]

    def check(self, slot: int, start: int, end: int) -> None:
        """Check that the cache has positions start .. end - 1 of `slot`.  Raises: IndexError

        Slices would be cut at the cache's end, and compiled code would write behind it.
        """
        if not (0 <= slot < self.n_slot and 0 <= start <= end <= self.n_ctx):
            raise IndexError(
                f"positions {start} to {end} of slot {slot}, "
                f"the cache has {self.n_slot} slots of {self.n_ctx} positions"
            )

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Copy positions start .. end - 1 from slot `source` to slot `target`.

        Raises: IndexError for a slot or position outside the cache
        """
        self.check(source, start, end)
        self.check(target, start, end)
        for array in (*self.k, *self.v):
            array[target, start:end] = array[source, start:end]

    def snapshot(self, slot: int, n: int) -> list[np.ndarray]:
        """Copy the first `n` positions of `slot`: k of layer 0, v of layer 0, k of layer 1, ..., [n, n_head_kv, ...]

        Raises: IndexError for a slot or positions outside the cache
        """
        self.check(slot, 0, n)
        return [np.array(array[slot, :n], order="C") for pair in zip(self.k, self.v, strict=True) for array in pair]

    def restore(self, slot: int, start: int, arrays: Sequence[np.ndarray]) -> None:
        """Copy positions that `snapshot` returned, or a part of them, to those of `slot` from `start`.

        Raises: IndexError for a slot or positions outside the cache
        """
        own = [array for pair in zip(self.k, self.v, strict=True) for array in pair]
        for target, source in zip(own, arrays, strict=True):
            self.check(slot, start, start + len(source))
            target[slot, start : start + len(source)] = source

    def shift(self, slot: int, n_cached: int, keep: int, discard: int, kernels: Kernels, ropes: Ropes) -> int:
        """Discard `discard` positions after the first `keep` and move later ones down.  -> positions now cached

        Keys that move are rotated back by `discard` positions; values stay unchanged.  Both were computed with the
        discarded positions in view and keep that influence, as in llama.cpp.  ropes: each layer's, None without RoPE
        Raises: IndexError for a slot or positions outside the cache
        """
        self.check(slot, keep, keep + discard)
        self.check(slot, keep + discard, n_cached)
        source, target = slice(keep + discard, n_cached), slice(keep, n_cached - discard)
        positions = np.full(n_cached - keep - discard, -discard, np.int32)
        for k, v, rope in zip(self.k, self.v, ropes, strict=True):
            k[slot, target] = k[slot, source].copy()
            if rope is not None:
                moved = self._rotate_keys(numbers(k[slot, target], np.float64 if k.dtype == np.float64 else np.float32))
                moved = kernels.rope(moved, positions, rope.unstretched)
                write(k[slot, target], self._rotate_keys(moved))
            v[slot, target] = v[slot, source].copy()
        return n_cached - discard

    def _rotate_keys(self, k: np.ndarray) -> np.ndarray:
        """Rotate keys as this cache keeps them, or back."""
        return rotate_groups(k, self.k_group) if self.k_group else k
