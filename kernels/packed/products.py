"""The product of activations with packed weights: one loop for every format of integer codes.

    y[t, r] = sum over blocks b of  d_w[r, b] * d_x[t, b] * (integer dot product of 32 columns)  + minimum * sum

A format gives the loop three functions, chosen by the format's type when the loop is compiled:

    codes_of(w, block, half, j)     columns 16 half + 4 j .. + 3 of 16 rows: u8x64 of 0 .. 127, or i8x64
    scale_of(w, block, part)        f32x16; `part` counts the sums of a block, 1 or 2
    minimum_of(w, block, part)      f32x16 that meets the sum of a token's block; most formats have none

`block` counts blocks of 32 columns over all groups.  T tokens are multiplied at a time, T = 1, 4, 8 or 12, and codes
are unpacked once for all of them.  Each y[t, r] is one sum, from the first block to the last, by the same operations
at every T: a token's result does not depend on the rest of the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import literally

from ..jit import by_type, inner
from ..simd import (
    bits,
    broadcast,
    convert,
    dot4,
    dot4_signed,
    f32x16,
    fma,
    i8x64,
    i32x16,
    registers,
    u8x64,
    zero,
)
from ..threads import parallel_for
from .tiles import (
    LANES,
    WIDE_TOKENS,
    block_of,
    fetch_ahead,
    fill_some_tiles,
    kernel_for,
    multiply_tiles,
    put_sums,
    tiles_in,
)


class Layout(NamedTuple):
    """The numbers that differ between formats.

    file_bytes              of a block in the file
    n_sub                   blocks of 32 columns in a block of the file: 1, or 8 in a super-block
    code_bytes, scale_bytes     of 32 columns of 16 rows
    parts                   sums in 32 columns, each with a scale of its own: 1, or 2 of 16 columns
    bias                    subtracted from each code; SIGNED_BIAS where codes are signed
    has_minimum             whether minimum_of has a case for the format
    """

    file_bytes: int
    n_sub: int
    code_bytes: int
    scale_bytes: int
    parts: int
    bias: int
    has_minimum: bool


def without_minimum(w, block, part):
    return zero(f32x16)


layout_of = by_type("layout_of")  # (w) -> Layout, all of it constant to the compiler
codes_of = by_type("codes_of")
scale_of = by_type("scale_of")
minimum_of = by_type("minimum_of", otherwise=without_minimum)
add_products = by_type("add_products")  # (q, s, x): s + the four products of each row


@add_products.case(u8x64)
def add_products_unsigned(q, s, x):
    return dot4(s, q, x)


@add_products.case(i8x64)
def add_products_signed(q, s, x):
    return dot4_signed(s, q, x)


@inner
def dot(w, x, y, m_first, m_last, T, g_first, g_last):
    """Multiply tiles m_first .. m_last, T tokens at a time, with groups g_first .. g_last."""
    literally(T)
    add_blocks(w, x, y, int(m_first), m_last, int(T), g_first, g_last)


@inner(copied=True)
def add_blocks(w, x, y, m_first, m_last, T, g_first, g_last):
    """As `dot`: Numba compiles the loop once, and LLVM once for each T.  So int() and np.int64: no literal types."""
    L, sums, s = min(T, LANES), registers(f32x16, WIDE_TOKENS), registers(i32x16, WIDE_TOKENS)
    form = layout_of(w)
    for g in range(g_first, g_last):
        for m in range(m_first, m_last, T // L):
            for t in range(T):
                sums[t] = zero(f32x16)
            for b in range(x.n_block):
                block = g * x.n_block + b
                fetch_ahead(w, block, form.code_bytes, form.scale_bytes)
                add_part(w, x, sums, s, m, b, block, T, np.int64(0))
                if form.parts > 1:
                    add_part(w, x, sums, s, m, b, block, T, np.int64(1))
            for t in range(T):
                put_sums(y, w, g, m, t, L, sums[t])


@inner(copied=True)
def add_part(w, x, sums, s, m, b, block, T, part):
    """Add one sum of a block to those of T tokens.  `s` are registers for integers"""
    L, form = min(T, LANES), layout_of(w)
    for t in range(T):
        s[t] = zero(i32x16)
        if form.bias != 0:
            place = (block_of(x, m, b, t) * form.parts + part) * L + (t & 3)
            s[t] = broadcast(i32x16, x.start, place)
    for j in range(4):
        for half in range(part, part + 2 // form.parts):
            q = codes_of(w, block, half, j)
            for t in range(T):
                place = (block_of(x, m, b, t) * 8 + 4 * half + j) * L + (t & 3)
                s[t] = add_products(q, s[t], bits(i8x64, broadcast(i32x16, x.q, place)))
    d, minimum = scale_of(w, block, part), minimum_of(w, block, part)
    for t in range(T):
        place = (block_of(x, m, b, t) * form.parts + part) * L + (t & 3)
        sums[t] = fma(convert(f32x16, s[t]), d * broadcast(f32x16, x.d, place), sums[t])
        if form.has_minimum:
            sums[t] = fma(minimum, broadcast(f32x16, x.sums, place), sums[t])


def matmul_for(format: type, layout: Layout):
    """Make the kernel that multiplies with weights packed as `format`; __init__.py's Product has its arguments."""
    n_sub, n_code = layout.n_sub, layout.n_sub * layout.code_bytes
    parts, bias = layout.parts, layout.bias

    def matmul(team, rows, codes, scales, n_tok, n_block, memory, y):
        w = format(codes, scales, codes.size // (n_code * n_block), n_block)
        x = tiles_in(memory, n_tok, n_sub * n_block, parts, bias)
        parallel_for(team, fill_some_tiles, (rows, x, n_sub), x.n_tile)
        multiply_tiles(team, dot, w, x, y)

    return kernel_for(format, matmul)
