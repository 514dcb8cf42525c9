"""The KV cache: keys and values of earlier positions, so that each token is computed once.

    slot    room for one sequence: n_ctx positions of its own in every layer (memory = n_ctx x slots)
    layer   keys and values [n_slot, n_ctx, n_head_kv, n_head_dim], or as many blocks as hold n_head_dim;
            keys are stored after RoPE

A layer with a window needs only its last positions.  If a pass has at most `n_batch` tokens of a slot, such a layer
keeps fewer than n_ctx rows, of positions base[slot], base[slot] + 1, ...:

    position   0  ...  base       seen      start                 end
               dropped | ROLLBACK | window  | this pass, n_batch  | free

`make_room` moves the rows down before a pass that would not fit.  The base is a multiple of the tile in which
attention sums, so that the order of sums, and with it every bit, is that of a cache that keeps all.  A text can go on
only where the window before is still there: `resumes`.

`cache.k[il][slot]` prints a slot's keys in layer il.  In memory the positions of one head are adjacent, since attention
reads one head after the other: at 4096 positions, 8 heads of 64 take 0.56 ms, or 0.98 ms with the heads innermost.

The types q8_0, q5_1, q5_0, q4_1, q4_0 and iq4_nl keep blocks of 32 numbers under one scale: q8_0 in 34 bytes and q4_0
in 18, where f16 takes 64.  Keys and values may have types of their own: "q8_0/q4_0".  In blocks, heads of
a multiple of 64 numbers are rotated first (kernels/hadamard.py), as in llama.cpp; queries are rotated to match.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ...kernels import Kernels, Rope
from ...kernels.attention import TILE
from ...kernels.hadamard import key_group, rotate_groups, value_group
from ...kernels.kv import in_blocks, n_kept, new_cache, numbers, types_of_keys_and_values, write
from .batch import Batch, Span

Ropes = Sequence[Rope | None]
ROLLBACK = 1024  # positions at least by which a text can go back where a layer keeps only its window
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


def n_kept_positions(window: int, n_ctx: int, n_batch: int) -> int:
    """Return how many positions of a slot a layer keeps: n_ctx, or enough for its window and a pass.

    window    of the layer; 0: it sees all positions
    n_batch   tokens of a slot in a pass at most; 0: any number, every layer keeps all
    """
    if not window or not n_batch:
        return n_ctx
    return min(n_ctx, -(-(window + n_batch + ROLLBACK + TILE) // TILE) * TILE)


def first_position(arrays: Sequence[np.ndarray], n: int) -> int:
    """Return the first position that all arrays of a snapshot have, which end before position `n`."""
    return n - min(map(len, arrays), default=n)


class KVCache:
    """Keys and values per layer, slot, position and key head.

    windows      each layer's window, 0 for layers that see all positions
    n_batch      tokens of one slot in a pass at most; 0: any number, and every layer keeps all positions
    window       of layers that keep fewer than n_ctx positions, 0 if there are none
    n_kept       positions of a slot in these layers, `n_window_layer` in number
    base         i64 [n_slot], the first position that these layers have
    run_layers   how layers run whose cache lies in other processes (engine/distributed), else None
    Raises: ValueError if n_head_dim is not a multiple of the type's block size
    """

    run_layers: Callable[..., np.ndarray] | None = None

    def __init__(
        self,
        n_layer: int,
        n_head_kv: int,
        n_head_dim: int,
        n_ctx: int,
        n_slot: int = 1,
        type: str = "f16",
        windows: Sequence[int] = (),
        n_batch: int = 0,
    ):
        self.n_ctx, self.n_slot, self.type = n_ctx, n_slot, type
        k_type, v_type = types_of_keys_and_values(type)
        self.k_group: int = key_group(n_head_dim) if in_blocks(k_type) else 0
        self.v_group: int = value_group(n_head_dim) if in_blocks(v_type) else 0
        sizes = [n_kept_positions(window, n_ctx, n_batch) for window in windows or [0] * n_layer]
        self.k: list[np.ndarray] = [new_cache(n_slot, n, n_head_kv, n_head_dim, k_type) for n in sizes]
        self.v: list[np.ndarray] = [new_cache(n_slot, n, n_head_kv, n_head_dim, v_type) for n in sizes]
        self._set_windows(windows, n_batch)

    def _set_windows(self, windows: Sequence[int], n_batch: int) -> None:
        """Set `window`, `base`, and the base of each layer."""
        sizes = [n_kept_positions(window, self.n_ctx, n_batch) for window in windows or [0] * len(self.k)]
        self.n_kept = min(sizes, default=self.n_ctx)
        self.window = max(windows) if self.n_kept < self.n_ctx else 0
        self.base, nothing_dropped = np.zeros((2, self.n_slot), np.int64)
        self.bases = [self.base if n < self.n_ctx else nothing_dropped for n in sizes]
        self.n_window_layer = sum(n < self.n_ctx for n in sizes)

    def __repr__(self) -> str:
        shape = f"{len(self.k)} layers, {self.n_slot} slots of {self.n_ctx} positions"
        if self.window:
            shape += f" ({self.n_kept} in {self.n_window_layer} layers with a window of {self.window})"
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
        where = self._where(il, span.slot, span.start, span.start + span.length)
        write(self.k[il][where], k)
        write(self.v[il][where], v)

    def read(self, il: int, span: Span) -> tuple[np.ndarray, np.ndarray]:
        """Return views of the keys and values that `span` attends to in layer `il`: positions up to its last.

        They begin at position 0, or at base[slot] in a layer that keeps only its window.
        Raises: IndexError for a span outside the cache
        """
        slot, rows = self._where(il, span.slot, span.start, span.start + span.length)
        return self.k[il][slot, : rows.stop], self.v[il][slot, : rows.stop]

    def _where(self, il: int, slot: int, start: int, end: int) -> tuple[int, slice]:
        """Return the indices of positions start .. end - 1 in layer `il`.  Raises: IndexError"""
        self.check(slot, start, end)
        base, n = int(self.bases[il][slot]), self.k[il].shape[1]
        if not base <= start <= end <= base + n:
            raise IndexError(f"positions {start} to {end} of slot {slot}, layer {il} has {base} to {base + n}")
        return slot, slice(start - base, end - base)

    def check(self, slot: int, start: int, end: int) -> None:
        """Check that the cache has positions start .. end - 1 of `slot`.  Raises: IndexError

        Slices would be cut at the cache's end, and compiled code would write behind it.
        """
        if not (0 <= slot < self.n_slot and 0 <= start <= end <= self.n_ctx):
            raise IndexError(
                f"positions {start} to {end} of slot {slot}, "
                f"the cache has {self.n_slot} slots of {self.n_ctx} positions"
            )

    def resumes(self, slot: int, n: int) -> bool:
        """Check whether the text in `slot` can go on after its first `n` positions: layers still have the window."""
        return self.sees_back(int(self.base[slot]), n)

    def sees_back(self, base: int, n: int) -> bool:
        """Check whether rows from position `base` on suffice, in layers that keep only a window, for position `n`."""
        return base == 0 or 0 < self.window <= n + 1 - base

    def make_room(self, batch: Batch) -> None:
        """Drop rows of layers with a window until `batch` fits; called once before its layers run.

        Raises: IndexError for a slot or position outside the cache, for a batch with too many tokens of a slot, and
        for a position whose window was dropped
        """
        if not self.window:
            return
        reach: dict[int, tuple[int, int]] = {}
        for span in batch.spans:
            start, _ = reach.get(span.slot, (span.start, 0))
            reach[span.slot] = start, span.start + span.length
        for slot, (start, end) in reach.items():
            self.check(slot, start, end)
            base = int(self.base[slot])
            if start == 0 and base:
                self.rebase(slot, 0, 0)
            elif not self.sees_back(base, start):
                raise IndexError(f"position {start} of slot {slot}, layers with a window have {base} and later ones")
            elif end > base + self.n_kept:
                self.rebase(slot, self._first_needed(start), start)

    def _first_needed(self, n: int) -> int:
        """Return the first row to keep before position `n`."""
        return max(0, n + 1 - self.window - ROLLBACK) // TILE * TILE

    def rebase(self, slot: int, base: int, n: int) -> None:
        """Let layers with a window have positions from `base` on, of which those before `n` are there already."""
        old = int(self.base[slot])
        for array, bases in self._arrays():
            if bases is self.base:
                array[slot, : n - base] = array[slot, base - old : n - old]
        self.base[slot] = base

    def _arrays(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield each array with its layer's base: k of layer 0, v of layer 0, k of layer 1, ..."""
        for k, v, bases in zip(self.k, self.v, self.bases, strict=True):
            yield k, bases
            yield v, bases

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Copy positions start .. end - 1 from slot `source` to slot `target`, which begins alike.

        Raises: IndexError for a slot or position outside the cache, or dropped
        """
        self.check(source, start, end)
        self.check(target, start, end)
        base = int(self.base[source])
        if not self.sees_back(base, end):
            raise IndexError(f"position {end} of slot {source}, layers with a window have {base} and later ones")
        for array, bases in self._arrays():
            rows = slice(0, end - base) if bases is self.base else slice(start, end)
            array[target, rows] = array[source, rows]
        self.base[target] = base

    def snapshot(self, slot: int, n: int, start: int = 0) -> list[np.ndarray]:
        """Copy positions start .. n - 1 of `slot`: k of layer 0, v of layer 0, k of layer 1, ..., [n, n_head_kv, ...]

        Layers with a window have fewer, the last ones.  Raises: IndexError for a slot or positions outside the cache
        """
        self.check(slot, start, n)
        found = []
        for array, bases in self._arrays():
            base = int(bases[slot])
            found.append(np.array(array[slot, max(start - base, 0) : max(n - base, 0)], order="C"))
        return found

    def restore(self, slot: int, arrays: Sequence[np.ndarray], n: int, start: int, end: int) -> None:
        """Copy positions start .. end - 1 of a snapshot to `slot`, which has those before.

        n   the position after the snapshot's last one: all arrays end there
        Raises: IndexError for a slot or positions outside the cache or the snapshot
        """
        self.check(slot, start, end)
        base = self.restored_base(arrays, n, end)
        for (array, bases), source in zip(self._arrays(), arrays, strict=True):
            first, begin = n - len(source), base if bases is self.base else start
            if not first <= begin <= end <= n:
                raise IndexError(f"positions {begin} to {end} of a snapshot that has {first} to {n}")
            offset = base if bases is self.base else 0
            array[slot, begin - offset : end - offset] = source[begin - first : end - first]
        self.base[slot] = base

    def restored_base(self, arrays: Sequence[np.ndarray], n: int, end: int) -> int:
        """Return the base after `restore`.  Raises: IndexError if the snapshot lacks the window before `end`"""
        if not self.window:
            return 0
        first = first_position(arrays, n)
        if not self.sees_back(first, end):
            raise IndexError(f"position {end} of a snapshot whose layers with a window have {first} and later ones")
        return max(first, self._first_needed(end))

    def shift(self, slot: int, n_cached: int, keep: int, discard: int, kernels: Kernels, ropes: Ropes) -> int:
        """Discard `discard` positions after the first `keep` and move later ones down.  -> positions now cached

        Keys that move are rotated back by `discard` positions; values stay unchanged.  Both were computed with the
        discarded positions in view and keep that influence, as in llama.cpp.  ropes: each layer's, None without RoPE
        Raises: IndexError for a slot or positions outside the cache, or dropped: `Hparams.can_shift` tells before
        """
        self.check(slot, keep, keep + discard)
        self.check(slot, keep + discard, n_cached)
        if self.window:
            raise IndexError(f"positions {keep + discard} to {n_cached} cannot move: layers keep only a window")
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
