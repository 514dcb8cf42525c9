"""The layouts of both sides of a product: weights in groups of 16 rows, activations in tiles of 4 tokens.

group   16 weight rows side by side, one f32x16 of sums.  A line of 64 bytes of codes holds 16 rows x 4 columns, so that
        one dot4 adds 4 products to the sum of each row
tile    4 tokens side by side (1 if that is the whole batch), 4 columns of each at a time
"""

from __future__ import annotations

from collections import namedtuple
from typing import NamedTuple

import numpy as np
from numba import literally

from ..jit import inner, kernel
from ..simd import (
    bits,
    convert,
    f32x4,
    f32x16,
    i8x16,
    i32x4,
    i32x16,
    interleave,
    lane,
    largest,
    largests,
    load,
    maximum,
    minimum,
    prefetch,
    registers,
    round_to_half,
    scatter,
    splat,
    store,
    total,
    totals,
    with_lane,
)
from ..threads import parallel_for

LANES = 4  # tokens in a tile
PAIR_TOKENS = 2 * LANES  # in two tiles
WIDE_TOKENS = 12  # against one unpacked group: with 24 registers for sums, some are left for codes
PREFETCH_BYTES = 4096  # one token, one busy Xeon core: 11 GB/s without, 15 with 4096, 14 with 2048 or 16384
MAX_FACTOR = np.finfo(np.float32).max  # of numbers below 4e-37, whose scale as f16 is 0
NEAR_ACTIVATION_BYTES = 1 << 19  # they stay in a core's cache while all weights pass


class Packed(NamedTuple):
    """A weight in groups, its rows padded with zeros to a multiple of 16.  formats.py draws the blocks.

    codes, scales   u8, flat: [n_group, n_block, bytes of a block of 16 rows]; n_block counts the blocks of the file
    """

    codes: np.ndarray
    scales: np.ndarray
    n_group: int
    n_block: int


def packed_type(name: str, module: str) -> type:
    """Make the type by which kernels choose a format's functions; its fields are Packed's."""
    return namedtuple(name, Packed._fields, module=module)


class Tiles(NamedTuple):
    """Activations as 8-bit blocks of 32 columns.  All arrays are flat; L, the lanes, are LANES or 1.

    q      i32 [n_tile, n_block, 8, L]       four i8 codes each: columns 4 j .. 4 j + 3
    d      f32 [n_tile, n_block, parts, L]   the block's scale for each part: two copies cost less
                                             than keeping one, broadcast, for each token
    start  i32 [n_tile, n_block, parts, L]   -bias * sum of the codes of 32 / parts columns
    sums   f32 [n_tile, n_block, parts, L]   d * sum of the same codes; Q8_1's s where d is that of 32 columns
    """

    q: np.ndarray
    d: np.ndarray
    start: np.ndarray
    sums: np.ndarray
    n_tok: int
    n_tile: int
    n_block: int
    parts: int
    bias: int


def kernel_for(format: type, function):
    """Compile `function` under a name with the format's in it, since Numba keeps machine code in a file per name."""
    function.__name__ = function.__qualname__ = f"{function.__name__}_{format.__name__.lower()}"
    return kernel(function)


def words_of_block(parts: int) -> int:
    """Return how many i32 of memory the tiles of a token's block take."""
    return 8 + 3 * parts if parts else 1


def padded_tokens(n_tok: int) -> int:
    """Return how many tokens the tiles of `n_tok` tokens have room for."""
    return -(-n_tok // LANES) * LANES if n_tok > 1 else 1


in_whole_tiles = inner(padded_tokens)


@kernel(inline="always")
def tiles_in(memory, n_tok, n_block, parts, bias):
    """Return tiles for `n_tok` rows of `n_block` blocks, one array after the other in i32 memory.

    With 0 parts a block is one number, in `d`.  `start` and `sums` extend to the end of the memory.
    """
    n_lane = 1 if n_tok == 1 else LANES
    n_tile = -(-n_tok // n_lane)
    n = n_tile * n_lane * n_block
    end_q = 8 * n if parts > 0 else 0
    end_d = end_q + max(1, parts) * n
    numbers = memory.view(np.float32)
    q, d, start, sums = memory[:end_q], numbers[end_q:end_d], memory[end_d:], numbers[end_d + parts * n :]
    return Tiles(q, d, start, sums, n_tok, n_tile, n_block, parts, bias)


@inner
def lanes(x):
    return 1 if x.n_tok == 1 else LANES


# --- filling tiles


@inner
def magnitude(v):
    return bits(f32x16, bits(i32x16, v) & 0x7FFFFFFF)


@inner
def nearest(v):
    """f32x16 below 2^22 -> i32x16, ties to even: adding 1.5 * 2^23 leaves the integer in the low bits."""
    return bits(i32x16, v + np.float32(12582912.0)) - 0x4B400000


@inner
def largest_in_magnitude(rows, start, n):
    """Find the value largest in magnitude of rows[start : start + n], the first among equals."""
    top = load(f32x16, rows, start)
    low = top
    for i in range(16, n, 16):
        top, low = maximum(load(f32x16, rows, start + i), top), minimum(load(f32x16, rows, start + i), low)
    return larger_in_magnitude(rows, start, n, largest(top), -largest(low * np.float32(-1)))


@inner
def larger_in_magnitude(rows, start, n, top, low):
    """Choose between the largest and the smallest of rows[start : start + n]."""
    if top > -low:
        return top
    if top < -low:
        return low
    for i in range(n):
        if abs(rows[start + i]) == top:
            return rows[start + i]
    return np.float32(0)


@inner
def factor_and_scale(rows, start, n_sub):
    """Compute what a block's numbers are multiplied by, and its scale, not yet as f16.  -> f32, f32

    Q8_0 and Q8_1, 32 columns: 127 / amax, and amax / 127.  As ggml's x86 code does it, see rounding.py.
    Q8_K, 256 columns: -127 / the number largest in magnitude, and one over that.  As in ggml-quants.c
    quantize_row_q8_K_ref, 0c1e57098.
    """
    if n_sub == 1:
        amax = largest(maximum(magnitude(load(f32x16, rows, start)), magnitude(load(f32x16, rows, start + 16))))
        return min(np.float32(127) / amax, MAX_FACTOR), amax / np.float32(127)
    return super_factor_and_scale(largest_in_magnitude(rows, start, 32 * n_sub))


@inner
def super_factor_and_scale(most):
    factor = np.float32(-127) / most
    if np.isinf(factor):
        return np.float32(0), np.float32(0)
    return factor, np.float32(1) / factor


@inner
def put_columns(x, tile, b, lane, low, high, d, n_sub):
    """Write a token's block of 32 columns: codes `low` and `high` i32x16, scale `d`.

    Q8_0 has the scale as f16, and Q8_1 beside it d * sum as f16, from a `d` that is not rounded.
    """
    n_lane, block = lanes(x), tile * x.n_block + b
    scatter(x.q, 8 * block * n_lane + lane, n_lane, bits(i32x4, convert(i8x16, low)))
    scatter(x.q, (8 * block + 4) * n_lane + lane, n_lane, bits(i32x4, convert(i8x16, high)))
    for part in range(x.parts):
        x.d[(block * x.parts + part) * n_lane + lane] = round_to_half(d) if n_sub == 1 else d
    sum_low, sum_high = total(low), total(high)
    if x.parts == 1:
        put_sum(x, block * n_lane + lane, sum_low + sum_high, d)
        if n_sub == 1:
            x.sums[block * n_lane + lane] = round_to_half(x.sums[block * n_lane + lane])
    else:
        put_sum(x, 2 * block * n_lane + lane, sum_low, d)
        put_sum(x, (2 * block + 1) * n_lane + lane, sum_high, d)


@inner
def put_sum(x, place, sum, d):
    x.start[place], x.sums[place] = -x.bias * sum, d * np.float32(sum)


@inner
def at_most_127(v):
    return minimum(nearest(v), splat(i32x16, 127))


@inner
def fill_some_tiles(rows, x, n_sub, first, last):
    """Round f32 `rows`, flat [n_tok, n_in], to tiles first .. last: Q8_0 (n_sub 1) or Q8_K (n_sub 8).

    A lane without a token gets zeros.
    """
    literally(n_sub)
    for tile in range(first, last):
        if LANES * (tile + 1) <= x.n_tok:
            fill_whole_tile(rows, x, n_sub, tile)
            continue
        for place in range(lanes(x)):
            t = tile * lanes(x) + place
            for b in range(0, x.n_block, n_sub):
                start, factor, d = (t * x.n_block + b) * 32, np.float32(0), np.float32(0)
                if t < x.n_tok:
                    factor, d = factor_and_scale(rows, start, n_sub)
                for i in range(n_sub):
                    low, high = splat(i32x16, 0), splat(i32x16, 0)
                    if t < x.n_tok:
                        low = at_most_127(load(f32x16, rows, start + 32 * i) * factor)
                        high = at_most_127(load(f32x16, rows, start + 32 * i + 16) * factor)
                    put_columns(x, tile, b + i, place, low, high, d, n_sub)


@inner
def fill_whole_tile(rows, x, n_sub, tile):
    """Round the rows of LANES tokens together, to the bits of one after the other, in 0.35 to 0.6 of the time."""
    literally(n_sub)
    n_in, low, high = 32 * x.n_block, registers(i32x16, LANES), registers(i32x16, LANES)
    for b in range(0, x.n_block, n_sub):
        start = tile * LANES * n_in + 32 * b
        factor, d = factors_and_scales(rows, start, n_in, n_sub)
        for i in range(n_sub):
            for t in range(LANES):
                at = start + t * n_in + 32 * i
                low[t] = at_most_127(load(f32x16, rows, at) * lane(factor, t))
                high[t] = at_most_127(load(f32x16, rows, at + 16) * lane(factor, t))
            block = tile * x.n_block + b + i
            store(x.q, 8 * LANES * block, four_codes(low[0], low[1], low[2], low[3]))
            store(x.q, 8 * LANES * block + 16, four_codes(high[0], high[1], high[2], high[3]))
            for part in range(x.parts):
                store(x.d, (block * x.parts + part) * LANES, round_to_half(d) if n_sub == 1 else d)
            if x.parts == 1:
                for t in range(LANES):
                    low[t] = low[t] + high[t]
                put_sums_of_four(x, block, totals(low[0], low[1], low[2], low[3]), d, n_sub)
            else:
                put_sums_of_four(x, 2 * block, totals(low[0], low[1], low[2], low[3]), d, n_sub)
                put_sums_of_four(x, 2 * block + 1, totals(high[0], high[1], high[2], high[3]), d, n_sub)


@inner
def factors_and_scales(rows, start, n_in, n_sub):
    """Compute factor_and_scale for LANES rows of n_in numbers.  -> f32x4, f32x4"""
    literally(n_sub)
    top, low = registers(f32x16, LANES), registers(f32x16, LANES)
    if n_sub == 1:
        for t in range(LANES):
            at = start + t * n_in
            top[t] = maximum(magnitude(load(f32x16, rows, at)), magnitude(load(f32x16, rows, at + 16)))
        amax = largests(top[0], top[1], top[2], top[3])
        factor = minimum(splat(f32x4, np.float32(127)) / amax, splat(f32x4, MAX_FACTOR))
        return factor, amax / np.float32(127)
    for t in range(LANES):
        at = start + t * n_in
        top[t] = low[t] = load(f32x16, rows, at)
        for i in range(16, 32 * n_sub, 16):
            v = load(f32x16, rows, at + i)
            top[t], low[t] = maximum(v, top[t]), minimum(v, low[t])
    for t in range(LANES):
        low[t] = low[t] * np.float32(-1)
    tops, lows = largests(top[0], top[1], top[2], top[3]), largests(low[0], low[1], low[2], low[3])
    pairs = registers(f32x4, 2)
    for t in range(LANES):
        most = larger_in_magnitude(rows, start + t * n_in, 32 * n_sub, lane(tops, t), -lane(lows, t))
        factor, d = super_factor_and_scale(most)
        pairs[0], pairs[1] = with_lane(pairs[0], t, factor), with_lane(pairs[1], t, d)
    return pairs[0], pairs[1]


@inner
def four_codes(a, b, c, e):
    """Return the codes of 16 columns of four tokens as a tile has them.  Each i32x16 -> i32x16, four i8 to a lane"""
    return interleave(
        bits(i32x4, convert(i8x16, a)),
        bits(i32x4, convert(i8x16, b)),
        bits(i32x4, convert(i8x16, c)),
        bits(i32x4, convert(i8x16, e)),
    )


@inner
def put_sums_of_four(x, place, sums, d, n_sub):
    """As put_sum for LANES tokens.  sums i32x4, d f32x4"""
    store(x.start, place * LANES, sums * -x.bias)
    scaled = d * convert(f32x4, sums)
    store(x.sums, place * LANES, round_to_half(scaled) if n_sub == 1 and x.parts == 1 else scaled)


# --- reading and writing in a product; token t is counted from tile m, L = min(T, LANES)


@inner
def block_of(x, m, b, t):
    """Index of block b of token t in arrays [n_tile, n_block]; its items follow each other, L lanes of each."""
    return (m + (t >> 2)) * x.n_block + b


@inner
def fetch_ahead(w, block, code_bytes, scale_bytes):
    """Prefetch the codes and scales PREFETCH_BYTES further on: with few tokens, memory is the limit."""
    for i in range(0, code_bytes, 64):
        prefetch(w.codes, block * code_bytes + PREFETCH_BYTES + i)
    prefetch(w.scales, block * scale_bytes + PREFETCH_BYTES * scale_bytes // code_bytes)


@inner
def put_sums(y, w, g, m, t, L, sums):
    """Write a token's sums for group g.  y f32 [n_tile * L, 16 n_group], flat"""
    store(y, ((m * L + t) * w.n_group + g) * 16, sums)


@kernel(inline="always")  # so that `dot` is known where it is called
def multiply_tiles(team, dot, w, x, y):
    """Call `dot` for all tokens and groups, many at a time while there are as many, then one or two tiles.

    Many is WIDE_TOKENS, or PAIR_TOKENS where a block has two parts, whose scales need the registers of four tokens.
    """
    tiles = (WIDE_TOKENS if x.parts < 2 else PAIR_TOKENS) // LANES
    wide = x.n_tile // tiles * tiles
    if x.n_tok == 1:
        parallel_for(team, dot, (w, x, y, 0, x.n_tile, 1), w.n_group)
    else:
        n_byte = tiles * 4 * (x.q.size + x.d.size) // x.n_tile
        n_tile = tiles * max(1, NEAR_ACTIVATION_BYTES // n_byte)
        for m in range(0, wide, n_tile):
            if x.parts < 2:
                parallel_for(team, dot, (w, x, y, m, min(m + n_tile, wide), WIDE_TOKENS), w.n_group)
            else:
                parallel_for(team, dot, (w, x, y, m, min(m + n_tile, wide), PAIR_TOKENS), w.n_group)
        if x.n_tile == wide + 1:
            parallel_for(team, dot, (w, x, y, wide, x.n_tile, LANES), w.n_group)
        if x.n_tile == wide + 2:
            parallel_for(team, dot, (w, x, y, wide, x.n_tile, PAIR_TOKENS), w.n_group)
