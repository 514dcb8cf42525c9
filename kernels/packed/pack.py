"""Packing: a file's blocks in groups of 16 rows.

A format gives the loop one function, chosen by the format's type when the loop is compiled:

    put_block(w, lines, i, r, blocks, at)   write row r of block i from the file's bytes, blocks[at] on

`i` counts the file's blocks over all groups; `lines` is w.codes as i32, 16 to a line of 64 bytes, one for each row.

Codes of a super-block become eight blocks of 32 columns.  Bits above the lower four, or all bits where there are fewer,
lie in planes of one line, u8[16][4]:

    ones    bit i of byte (r, c) belongs to column 4 i + c, i < 8
    twos    bits 2 i, 2 i + 1 of byte (r, c) belong to column 4 i + c, i < 4; columns 16 .. 31 have a second plane
"""

from __future__ import annotations

import numpy as np

from ..jit import by_type, inner
from ..simd import bits, i32x4, load, scatter, u8x16
from ..threads import parallel_for
from .tiles import kernel_for

put_block = by_type("put_block")


def pack_for(format: type, file_bytes: int):
    """Make the kernel that packs blocks of `format`; __init__.py's Product has its arguments."""

    def pack(team, blocks, codes, scales, lines, n_group, n_block):
        w = format(codes, scales, n_group, n_block)
        parallel_for(team, pack_some_groups, (blocks, w, lines, w.n_block * file_bytes), n_group)

    return kernel_for(format, pack)


@inner
def pack_some_groups(blocks, w, lines, row_bytes, first, last):
    """Pack groups first .. last.  blocks u8, flat [n_out, row_bytes]"""
    for g in range(first, last):
        for r in range(min(16, blocks.size // row_bytes - 16 * g)):
            for b in range(w.n_block):
                at = (16 * g + r) * row_bytes + b * (row_bytes // w.n_block)
                put_block(w, lines, g * w.n_block + b, r, blocks, at)


# --- bytes that move as they are


@inner
def put_half(scales, place, r, blocks, at):
    """Copy row r's number to f16[16] at scales[place]."""
    scales[place + 2 * r], scales[place + 2 * r + 1] = blocks[at], blocks[at + 1]


@inner
def put_two_halves(scales, place, r, blocks, at):
    """Copy row r's two numbers to f16[2][16] at scales[place]."""
    put_half(scales, place, r, blocks, at)
    put_half(scales, place + 32, r, blocks, at + 2)


@inner
def put_16_bytes(lines, line, r, blocks, at):
    """Copy row r's codes to four lines, four bytes each."""
    scatter(lines, 16 * line + r, 16, bits(i32x4, load(u8x16, blocks, at)))


# --- bit fields: of each `run` bytes the lowest fields come first, in order of bytes, then the next ones


@inner
def four_bytes(blocks, at):
    word = np.uint32(0)
    for k in range(4):
        word |= np.uint32(blocks[at + k]) << np.uint32(8 * k)
    return word


@inner
def fields(blocks, at, n_bit, run, j):
    """The fields of columns 4 j .. 4 j + 3, one to a byte.  -> u32"""
    n = run * 8 // n_bit  # columns in a run
    column = 4 * j % n
    word = four_bytes(blocks, at + 4 * j // n * run + column % run) >> np.uint32(column // run * n_bit)
    return word & np.uint32(((1 << n_bit) - 1) * 0x01010101)


@inner
def put_nibbles(lines, line, r, blocks, at, run, b):
    """Write four lines of four-bit fields, for the b-th 32 columns."""
    for j in range(4):
        low, high = fields(blocks, at, 4, run, 8 * b + j), fields(blocks, at, 4, run, 8 * b + 4 + j)
        lines[16 * (line + j) + r] = np.int32(low | high << np.uint32(4))


@inner
def put_ones(lines, line, r, blocks, at, run, b):
    """Write a plane of one-bit fields, for the b-th 32 columns."""
    word = np.uint32(0)
    for j in range(8):
        word |= fields(blocks, at, 1, run, 8 * b + j) << np.uint32(j)
    lines[16 * line + r] = np.int32(word)


@inner
def put_twos(lines, line, r, blocks, at, run, b):
    """Write two planes of two-bit fields, for the b-th 32 columns."""
    for half in range(2):
        word = np.uint32(0)
        for j in range(4):
            word |= fields(blocks, at, 2, run, 8 * b + 4 * half + j) << np.uint32(2 * j)
        lines[16 * (line + half) + r] = np.int32(word)


@inner
def put_32_bits(lines, line, r, blocks, at):
    """Write a plane of ones from 32 bits, of which bit k belongs to column k."""
    bit, word = four_bytes(blocks, at), np.uint32(0)
    for k in range(32):
        word |= ((bit >> np.uint32(k)) & np.uint32(1)) << np.uint32(8 * (k % 4) + k // 4)
    lines[16 * line + r] = np.int32(word)
