"""What a KV cache keeps of keys and values: numbers, or blocks of 32 under one scale (quants/block32.py).

CACHE_TYPES     by the names that Ollama and llama.cpp give them; f64 is for the definition
write           into the cache, rounded as ggml's CPU code rounds there: Q8_0 as activations, Q4_0 as weights
numbers         what stands in it

llama.cpp 0c1e57098 turns heads of 64 numbers (or 128, ...) by a Hadamard matrix before it makes blocks of them
(LLAMA_ATTN_ROT_DISABLE=1 leaves that out); here they stay as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import config

from .activations import activations_q8_0
from .jit import inner, kernel
from .packed.tiles import extreme, magnitude, nearest
from .quants import block32
from .simd import convert, f32x16, i8x16, i32x16, largest, load, maximum, minimum, splat, store, u8x16

BLOCK = 32  # numbers in a block
CACHE_TYPES: dict[str, np.dtype[Any]] = {
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "q8_0": block32.Q8_0,
    "q4_0": block32.Q4_0,
}
ENCODERS = {block32.Q8_0: activations_q8_0, block32.Q4_0: block32.quantize_q4_0}
DECODERS = {block32.Q8_0: block32.dequantize_q8_0, block32.Q4_0: block32.dequantize_q4_0}


def in_blocks(kept: np.dtype) -> bool:
    return kept in DECODERS


def n_kept(kept: np.dtype, n: int) -> int:
    """How many of `kept` hold n numbers.

    Raises: ValueError where whole blocks do not.
    """
    if not in_blocks(kept):
        return n
    if n % BLOCK:
        raise ValueError(f"a cache in blocks of {BLOCK} numbers cannot keep heads of {n}")
    return n // BLOCK


def numbers(cache, dtype):
    """[..., n_head_dim], or blocks [..., n_head_dim / 32] -> dtype [..., n_head_dim]"""
    if in_blocks(cache.dtype):
        cache = DECODERS[cache.dtype](cache.reshape(-1)).reshape(*cache.shape[:-1], -1)
    return cache.astype(dtype, copy=False)


@np.errstate(all="ignore")
def write_numpy(cache, x):
    """x float [n, n_head_kv, n_head_dim] into `cache`, a view of the same positions"""
    if in_blocks(cache.dtype):
        x = ENCODERS[cache.dtype](x.astype(np.float32, copy=False).reshape(-1, BLOCK)).reshape(cache.shape)
    cache[...] = x


def write_numba(cache, x):
    """As write_numpy, to the bit; blocks of less than 4e-37, whose scale is 0 in f16, may have other codes."""
    if not in_blocks(cache.dtype):
        cache[...] = x
        return
    x = np.ascontiguousarray(x, np.float32).reshape(-1)
    d, is_q8 = np.empty(x.size // BLOCK, np.float32), cache.dtype == block32.Q8_0
    q = np.empty(x.size if is_q8 else x.size // 2, np.uint8)
    (_write_q8_0 if is_q8 else _write_q4_0)(x, d, q)
    codes = cache.dtype["qs"]
    cache["d"], cache["qs"] = d.reshape(cache.shape), q.view(codes.base).reshape(*cache.shape, *codes.shape)


@kernel
def _write_q8_0(x, d, q):
    """x f32 [n * 32] -> d f32 [n], q [n * 32]"""
    for b in range(d.size):
        low, high = load(f32x16, x, 32 * b), load(f32x16, x, 32 * b + 16)
        amax = largest(maximum(magnitude(low), magnitude(high)))
        per_d = np.float32(127) / amax if amax > 0 else np.float32(0)
        d[b] = amax / np.float32(127)
        store(q, 32 * b, convert(i8x16, nearest(low * per_d)))
        store(q, 32 * b + 16, convert(i8x16, nearest(high * per_d)))


@kernel
def _write_q4_0(x, d, q):
    """x f32 [n * 32] -> d f32 [n], q [n * 16]"""
    for b in range(d.size):
        d[b] = extreme(x, 32 * b, 32) / np.float32(-8)
        per_d = np.float32(1) / d[b] if d[b] != 0 else np.float32(0)
        low, high = _nibbles(load(f32x16, x, 32 * b) * per_d), _nibbles(load(f32x16, x, 32 * b + 16) * per_d)
        store(q, 16 * b, convert(u8x16, low | high << 4))


@inner
def _nibbles(v):
    return minimum(convert(i32x16, v + np.float32(8.5)), splat(i32x16, 15))


write = write_numpy if config.DISABLE_JIT else write_numba
