"""Storage of a KV cache: plain numbers, or blocks of 32 under one scale (quants/block32.py).

CACHE_TYPES     by Ollama's and llama.cpp's names; f64 is for the reference only
new_cache       zeros for all positions of a layer
write           store keys or values, rounded as in ggml's CPU code: Q8_0 like activations, other blocks like weights
numbers         read them back
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.core import config

from .half import bf16_to_f32, f32_to_bf16
from .jit import inner, kernel
from .packed import arena
from .packed.tiles import largest_in_magnitude, magnitude, nearest
from .quants import block32, floats, iq
from .rounding import activations_q8_0
from .simd import (
    bits,
    convert,
    f32_to_half,
    f32x16,
    i8x16,
    i32x16,
    largest,
    load,
    maximum,
    minimum,
    splat,
    store,
    total,
    u8x16,
    u16x16,
)

BLOCK = 32  # numbers in a block
VECTOR = 16  # numbers in a vector: heads of plain numbers are padded to whole vectors
CACHE_TYPES: dict[str, np.dtype[Any]] = {
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "bf16": floats.BF16,
    "q8_0": block32.Q8_0,
    "q5_1": block32.Q5_1,
    "q5_0": block32.Q5_0,
    "q4_1": block32.Q4_1,
    "q4_0": block32.Q4_0,
    "iq4_nl": np.dtype([("d", "<f2"), ("steps", "u1", 16)]),  # iq.IQ4_NL, whose field names are Q4_0's
}
BF16 = floats.BF16
F32, F16, BF16_KIND, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL = range(9)  # in compiled code
NAMES_OF_KINDS = "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"
KINDS = {CACHE_TYPES[name]: kind for kind, name in enumerate(NAMES_OF_KINDS)}
ENCODERS = {
    block32.Q8_0: activations_q8_0,
    block32.Q5_1: block32.quantize_q5_1,
    block32.Q5_0: block32.quantize_q5_0,
    block32.Q4_1: block32.quantize_q4_1,
    block32.Q4_0: block32.quantize_q4_0,
    CACHE_TYPES["iq4_nl"]: lambda x: iq.quantize_iq4_nl_once(x).view(CACHE_TYPES["iq4_nl"]),
}
DECODERS = {
    block32.Q8_0: block32.dequantize_q8_0,
    block32.Q5_1: block32.dequantize_q5_1,
    block32.Q5_0: block32.dequantize_q5_0,
    block32.Q4_1: block32.dequantize_q4_1,
    block32.Q4_0: block32.dequantize_q4_0,
    CACHE_TYPES["iq4_nl"]: lambda blocks: iq.dequantize_iq4_nl(blocks.view(iq.IQ4_NL)),
}
WRITTEN_FAST = KINDS.keys() - {CACHE_TYPES["iq4_nl"]}  # its encoder fits the scale: NumPy's serves
STEPS = iq.STEPS.copy()
BIT_OF_LANE = 1 << np.arange(16, dtype=np.int32)


def types_of_keys_and_values(name: str) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """Return the types in "q8_0", or of keys and values in "q8_0/q4_0".  Raises: KeyError for an unknown type"""
    k, _, v = name.partition("/")
    return CACHE_TYPES[k], CACHE_TYPES[v or k]


def in_blocks(cache_type: np.dtype) -> bool:
    """Check whether `cache_type` stores blocks."""
    return cache_type in DECODERS


def n_kept(cache_type: np.dtype, n: int) -> int:
    """Return how many elements of `cache_type` hold n numbers: whole blocks, or whole vectors padded with zeros.

    Raises: ValueError if n numbers do not fill whole blocks.
    """
    if not in_blocks(cache_type):
        return -(-n // VECTOR) * VECTOR
    if n % BLOCK:
        raise ValueError(f"a cache in blocks of {BLOCK} numbers cannot keep heads of {n}")
    return n // BLOCK


def new_cache(n_slot: int, n_ctx: int, n_head_kv: int, n_head_dim: int, cache_type: np.dtype) -> np.ndarray:
    """Return zeros [n_slot, n_ctx, n_head_kv, n_head_dim], or the same in blocks.

    In memory, a head's positions are contiguous, and each head is padded as in n_kept.  Raises: as n_kept

    Large pages only where a head's positions fill some: otherwise the first token of a text would take a page of 2 MiB
    in every layer, 120 MiB in a model of 135M.  At 4,000 positions decoding is as fast on small pages, at 16,000 it
    takes 2.5 % longer.
    """
    shape = n_slot, n_head_kv, n_ctx, n_kept(cache_type, n_head_dim)
    head_bytes = shape[2] * shape[3] * cache_type.itemsize
    memory = arena.new_piece(n_slot * n_head_kv * head_bytes, head_bytes >= arena.LARGE_PAGE_BYTES)
    cache = memory.view(cache_type).reshape(shape).swapaxes(1, 2)
    return cache if in_blocks(cache_type) else cache[..., :n_head_dim]


def has_padding(cache) -> bool:
    """Check whether each head of `cache` can be read and written in whole vectors, as in arrays from new_cache."""
    if in_blocks(cache.dtype) or cache.shape[-1] % VECTOR == 0:
        return True
    return (
        cache.base is not None and cache.base.ndim == 4 and cache.base.shape[-1] == n_kept(cache.dtype, cache.shape[-1])
    )


class Rows(NamedTuple):
    """A part of a cache in compiled code: an array that starts at its first position and head, and the strides.

    a            u16, flat
    step, head   u16 from one position to the next, from one head to the next
    kind         one of KINDS
    """

    a: np.ndarray
    step: int
    head: int
    kind: int


def strided(cache) -> Rows:
    """Return `cache` as Rows.  cache [n_pos, n_head_kv, n_head_dim], or the same in blocks, of a type in KINDS"""
    return Rows(cache[0, 0].view(np.uint16), cache.strides[0] // 2, cache.strides[1] // 2, KINDS[cache.dtype])


def numbers(cache, dtype):
    """Return a cache's contents as `dtype`.

    [..., n_head_dim], or blocks [..., n_head_dim / 32] -> dtype [..., n_head_dim]
    """
    if cache.dtype == BF16:
        cache = bf16_to_f32(cache)
    elif in_blocks(cache.dtype):
        cache = DECODERS[cache.dtype](cache.reshape(-1)).reshape(*cache.shape[:-1], -1)
    return cache.astype(dtype, copy=False)


@np.errstate(all="ignore")
def write_numpy(cache, x):
    """Store x float [n, n_head_kv, n_head_dim] in `cache`, a view of the same positions.

    Raises: ValueError if `x` has another shape
    """
    check_room(cache, x)
    if in_blocks(cache.dtype):
        x = ENCODERS[cache.dtype](x.astype(np.float32, copy=False).reshape(-1, BLOCK)).reshape(cache.shape)
    elif cache.dtype == BF16:
        x = f32_to_bf16(x.astype(np.float32, copy=False))
    cache[...] = x


def check_room(cache, x):
    """Check that `cache` has exactly the positions, heads and numbers of `x`.  Raises: ValueError"""
    n = cache.shape[-1] * BLOCK if in_blocks(cache.dtype) else cache.shape[-1]
    if x.shape != (*cache.shape[:-1], n):
        raise ValueError(f"x has shape {x.shape}, expected the cache's, {(*cache.shape[:-1], n)}")


def write_numba(cache, x):
    """Store like write_numpy, to the bit.  Exception: blocks below 4e-37, whose f16 scale is 0, may get other codes.

    Raises: ValueError if `x` has another shape
    """
    check_room(cache, x)
    if cache.dtype not in WRITTEN_FAST or not has_padding(cache):
        write_numpy(cache, x)
    elif x.size:
        x = np.ascontiguousarray(x, np.float32)
        write_rows(x.reshape(-1), *x.shape, strided(cache))


@kernel
def write_rows(x, n, n_head, d, rows):
    """Store x f32 [n, n_head, d] in the first n positions of `rows`."""
    if d % VECTOR == 0:
        for t in range(n):
            for h in range(n_head):
                _write_head(x, (t * n_head + h) * d, d, rows.a, t * rows.step + h * rows.head, rows.kind)
    else:
        _write_padded(x, n, n_head, d, rows)


@inner(makes_arrays=True)
def _write_padded(x, n, n_head, d, rows):
    """Store heads padded with zeros to whole vectors."""
    padded = np.zeros(-(-d // VECTOR) * VECTOR, np.float32)
    for t in range(n):
        for h in range(n_head):
            for i in range(d):  # Numba takes 1.4 s to compile an assignment to a slice
                padded[i] = x[(t * n_head + h) * d + i]
            _write_head(padded, 0, padded.size, rows.a, t * rows.step + h * rows.head, rows.kind)


@inner
def _write_head(x, start, d, a, at, kind):
    """Store d numbers from x[start] on at a[at].  A block of Q8_0 is 17 u16; of Q4_0 9, Q4_1 10, Q5_0 11, Q5_1 12."""
    for i in range(start, start + d, VECTOR if kind <= BF16_KIND else BLOCK):
        if kind == F16:
            store(a, at, f32_to_half(load(f32x16, x, i)))
            at += 16
        elif kind == F32:
            store(a, at, load(f32x16, x, i))
            at += 32
        elif kind == Q8_0:
            low, high = load(f32x16, x, i), load(f32x16, x, i + 16)
            amax = largest(maximum(magnitude(low), magnitude(high)))
            per_d = np.float32(127) / amax if amax > 0 else np.float32(0)
            a[at] = f32_to_half(amax / np.float32(127))
            store(a, at + 1, convert(i8x16, nearest(low * per_d)))
            store(a, at + 9, convert(i8x16, nearest(high * per_d)))
            at += 17
        elif kind == BF16_KIND:
            whole = bits(i32x16, load(f32x16, x, i))
            store(a, at, convert(u16x16, (whole + 0x7FFF + (whole >> 16 & 1)) >> 16))
            at += 16
        elif kind == Q4_0:
            step = largest_in_magnitude(x, i, BLOCK) / np.float32(-8)
            per_d = np.float32(1) / step if step != 0 else np.float32(0)
            low, high = _codes(x, i, np.float32(0), per_d, 8.5, 15), _codes(x, i + 16, np.float32(0), per_d, 8.5, 15)
            a[at] = f32_to_half(step)
            store(a, at + 1, convert(u8x16, low | high << 4))
            at += 9
        elif kind == Q5_0:
            step = largest_in_magnitude(x, i, BLOCK) / np.float32(-16)
            per_d = np.float32(1) / step if step != 0 else np.float32(0)
            low, high = _codes(x, i, np.float32(0), per_d, 16.5, 31), _codes(x, i + 16, np.float32(0), per_d, 16.5, 31)
            a[at] = f32_to_half(step)
            _store_fifth_bits(low, high, a, at + 1)
            store(a, at + 3, convert(u8x16, low & 15 | (high & 15) << 4))
            at += 11
        else:
            n_code, m, top = 15 if kind == Q4_1 else 31, x[i], x[i]
            for j in range(i + 1, i + BLOCK):
                m, top = x[j] if x[j] < m else m, x[j] if x[j] > top else top
            step = (top - m) / np.float32(n_code)
            per_d = np.float32(1) / step if step != 0 else np.float32(0)
            low, high = _codes(x, i, m, per_d, 0.5, n_code), _codes(x, i + 16, m, per_d, 0.5, n_code)
            a[at], a[at + 1] = f32_to_half(step), f32_to_half(m)
            if kind == Q5_1:
                _store_fifth_bits(low, high, a, at + 2)
                at += 2
            store(a, at + 2, convert(u8x16, low & 15 | (high & 15) << 4))
            at += 10


@inner
def _codes(x, start, m, per_d, shift, n_code):
    """Compute the codes of 16 numbers, at most n_code.  -> i32x16"""
    scaled = (load(f32x16, x, start) - m) * per_d + np.float32(shift)
    return minimum(convert(i32x16, scaled), splat(i32x16, n_code))


@inner
def _store_fifth_bits(low, high, a, at):
    """Store bit 4 of 32 codes as two u16."""
    lanes = load(i32x16, BIT_OF_LANE, 0)
    a[at], a[at + 1] = total((low >> 4 & 1) * lanes), total((high >> 4 & 1) * lanes)


write = write_numpy if config.DISABLE_JIT else write_numba
