"""What every packed product shares: weights in groups of 16 rows, activations in tiles of 4 tokens.

    y[t, r] = sum over blocks b of  d_w[r, b] * d_x[t, b] * (dot product of 32 whole numbers)

    group   16 weight rows side by side, one f32x16 of sums.  64 bytes of codes hold 16 rows x 4 columns, so that one
            dot4 adds 4 products to the sum of each row
    tile    4 tokens side by side (1 if that is the whole batch), 4 columns of each at a time
    dot     a format's kernel: T tokens at a time against a group, T = 1, 4, 8 or 12; codes are unpacked once for all T

Each y[t, r] is one sum, from the first block to the last, by the same operations at every T: a token's result does not
depend on what else is in the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..jit import inner, kernel
from ..simd import (
    bits,
    broadcast,
    convert,
    f32x16,
    i8x16,
    i8x64,
    i32x4,
    i32x16,
    largest,
    load,
    maximum,
    minimum,
    prefetch,
    round_to_half,
    scatter,
    splat,
    store,
    total,
)
from ..threads import parallel_for

LANES = 4  # tokens in a tile
AHEAD = 4096  # bytes; one token, one busy Xeon core: 11 GB/s without, 15 with 4096, 14 with 2048 or 16384
TWO_TILES = 8
NEAR = 1 << 19  # bytes of activations that stay in a core's cache while all weights pass
WIDE = 12  # tokens against one unpacked group: with 24 registers for sums, some are left for codes


class Packed(NamedTuple):
    """A weight in groups, its rows padded with zeros to whole ones.  Each format's section draws its blocks.

    codes, scales   u8, flat: [n_group, n_block, bytes of a block of 16 rows]; n_block counts the format's own blocks
    """

    codes: np.ndarray
    scales: np.ndarray
    n_group: int
    n_block: int


class Tiles(NamedTuple):
    """Activations as 8-bit blocks of 32 columns.  All arrays are flat; L, the lanes, are LANES or 1.

    q      i32 [n_tile, n_block, 8, L]       four i8 codes each: columns 4 j .. 4 j + 3
    d      f32 [n_tile, n_block, L]          scales
    start  i32 [n_tile, n_block, parts, L]   -bias * sum of the codes of 32 / parts columns
    sums   f32 [n_tile, n_block, L]          d * sum of the codes
    """

    q: np.ndarray
    d: np.ndarray
    start: np.ndarray
    sums: np.ndarray
    n_tok: int
    n_tile: int
    n_block: int


@inner(makes_arrays=True)
def new_tiles(n_tok, n_block, parts):
    """Room for `n_tok` rows of `n_block` blocks; with 0 parts for a number a block, in `d`."""
    n_lane = 1 if n_tok == 1 else LANES
    n_tile = -(-n_tok // n_lane)
    n = n_tile * n_lane * n_block
    n_code = n if parts > 0 else 0
    q, d, start = np.empty(8 * n_code, np.int32), np.empty(n, np.float32), np.empty(parts * n, np.int32)
    return Tiles(q, d, start, np.empty(n_code, np.float32), n_tok, n_tile, n_block)


@inner
def lanes(x):
    return 1 if x.n_tok == 1 else LANES


# --- filling tiles


@inner
def magnitude(v):
    return bits(f32x16, bits(i32x16, v) & 0x7FFFFFFF)


@inner
def nearest(v):
    """f32x16 below 2^22 -> i32x16, ties to even: adding 1.5 * 2^23 leaves the whole number in the low bits."""
    return bits(i32x16, v + np.float32(12582912.0)) - 0x4B400000


@inner
def put_block(x, tile, b, lane, low, high, d, bias):
    """One token's block: codes `low` and `high` i32x16, scale `d`."""
    n_lane = lanes(x)
    place = tile * x.n_block + b
    scatter(x.q, 8 * place * n_lane + lane, n_lane, bits(i32x4, convert(i8x16, low)))
    scatter(x.q, (8 * place + 4) * n_lane + lane, n_lane, bits(i32x4, convert(i8x16, high)))
    sum_low, sum_high = total(low), total(high)
    x.d[place * n_lane + lane] = d
    x.sums[place * n_lane + lane] = d * np.float32(sum_low + sum_high)
    if x.start.size == x.d.size:
        x.start[place * n_lane + lane] = -bias * (sum_low + sum_high)
    else:
        x.start[2 * place * n_lane + lane] = -bias * sum_low
        x.start[(2 * place + 1) * n_lane + lane] = -bias * sum_high


@inner
def put_nothing(x, tile, lane, bias):
    """A lane without a token: zeros."""
    for b in range(x.n_block):
        put_block(x, tile, b, lane, splat(i32x16, 0), splat(i32x16, 0), np.float32(0), bias)


@inner
def quantize_q8_0_part(rows, x, bias, first, last):
    """Tiles first .. last of f32 `rows`, rounded to Q8_0: d = amax / 127 as f16, codes are x * (127 / amax).

    As ggml's x86 code does it, see activations.py.
    """
    for tile in range(first, last):
        for lane in range(lanes(x)):
            t = tile * lanes(x) + lane
            if t >= x.n_tok:
                put_nothing(x, tile, lane, bias)
                continue
            for b in range(x.n_block):
                i = (t * x.n_block + b) * 32
                low, high = load(f32x16, rows, i), load(f32x16, rows, i + 16)
                amax = largest(maximum(magnitude(low), magnitude(high)))
                per_d = np.float32(127) / amax if amax > 0 else np.float32(0)
                d = round_to_half(amax / np.float32(127))
                put_block(x, tile, b, lane, nearest(low * per_d), nearest(high * per_d), d, bias)


@inner
def quantize_q8_0(team, rows, x, bias):
    parallel_for(team, quantize_q8_0_part, (rows, x, bias), x.n_tile)


@inner
def quantize_q8_k_part(rows, x, bias, first, last):
    """Tiles first .. last of f32 `rows`, rounded to Q8_K: over 256 columns, codes are x * (-127 / extreme).

    As in ggml-quants.c quantize_row_q8_K_ref, 0c1e57098.
    """
    for tile in range(first, last):
        for lane in range(lanes(x)):
            t = tile * lanes(x) + lane
            if t >= x.n_tok:
                put_nothing(x, tile, lane, bias)
                continue
            for b in range(0, x.n_block, 8):
                start = (t * x.n_block + b) * 32
                per_d = np.float32(-127) / extreme(rows, start, 256)
                d = np.float32(1) / per_d
                if np.isinf(per_d):
                    per_d, d = np.float32(0), np.float32(0)
                for i in range(8):
                    low, high = load(f32x16, rows, start + 32 * i), load(f32x16, rows, start + 32 * i + 16)
                    put_block(x, tile, b + i, lane, at_most_127(low * per_d), at_most_127(high * per_d), d, bias)


@inner
def at_most_127(v):
    return minimum(nearest(v), splat(i32x16, 127))


@inner
def extreme(rows, start, n):
    """The value largest in magnitude of rows[start : start + n], the first among equals."""
    amax = magnitude(load(f32x16, rows, start))
    for i in range(16, n, 16):
        amax = maximum(magnitude(load(f32x16, rows, start + i)), amax)
    most = largest(amax)
    for i in range(n):
        if abs(rows[start + i]) == most:
            return rows[start + i]
    return np.float32(0)


@inner
def quantize_q8_k(team, rows, x, bias):
    parallel_for(team, quantize_q8_k_part, (rows, x, bias), x.n_tile)


# --- what a dot reads and writes; token t is counted from tile m, L = min(T, LANES)


@inner
def place_of(x, m, b, t, L):
    """Index of block b of token t in arrays [n_tile, n_block, L]."""
    return ((m + (t >> 2)) * x.n_block + b) * L + (t & 3)


@inner
def four_codes(x, m, b, j, t, L):
    """Columns 4 j .. 4 j + 3 of block b, once for every row of a group.  -> i8x64"""
    return bits(i8x64, broadcast(i32x16, x.q, (((m + (t >> 2)) * x.n_block + b) * 8 + j) * L + (t & 3)))


@inner
def fetch_ahead(w, block, code_bytes, scale_bytes):
    """Asks for the codes and scales AHEAD bytes on: with few tokens, memory is what one waits for."""
    for i in range(0, code_bytes, 64):
        prefetch(w.codes, block * code_bytes + AHEAD + i)
    prefetch(w.scales, block * scale_bytes + AHEAD * scale_bytes // code_bytes)


@inner
def put_sums(y, w, g, m, t, L, sums):
    """y f32 [n_tile * L, 16 n_group], flat."""
    store(y, ((m * L + t) * w.n_group + g) * 16, sums)


@kernel(inline="always")  # so that `dot` is known where it is called
def multiply_tiles(team, dot, w, x, y):
    """`dot` for every token and group: WIDE tokens at a time while there are as many, then one or two tiles."""
    wide = x.n_tile // (WIDE // LANES) * (WIDE // LANES)
    if x.n_tok == 1:
        parallel_for(team, dot, (w, x, y, 0, 1, 1), w.n_group)
    else:
        n_tile = WIDE // LANES * max(1, NEAR // (WIDE // LANES * 4 * (x.q.size + x.d.size) // x.n_tile))
        for m in range(0, wide, n_tile):
            parallel_for(team, dot, (w, x, y, m, min(m + n_tile, wide), WIDE), w.n_group)
        if x.n_tile == wide + 1:
            parallel_for(team, dot, (w, x, y, wide, x.n_tile, LANES), w.n_group)
        if x.n_tile == wide + 2:
            parallel_for(team, dot, (w, x, y, wide, x.n_tile, TWO_TILES), w.n_group)
