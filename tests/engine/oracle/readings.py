"""Formats read weight by weight, from their pages in docs/formats.md, with one thing read otherwise.

A reading takes all blocks as bytes and the place of a weight in its block, and returns that weight of each block.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from numllama.kernels.quants.iq import STEPS
from numllama.kernels.quants.iq_grids import codebook

FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


@dataclass(frozen=True, eq=False)
class Reading:
    """A wrong reading of a format.

    at          place of a weight, blocks -> the weights
    explained   whether the table of causes has it
    """

    name: str
    format: str
    at: object
    explained: bool = True


def read(tensor, reading):
    """Dequantize a matrix by a reading.  -> f32 as the tensor"""
    format, blocks = tensor.format, np.ascontiguousarray(tensor.blocks)
    raw = blocks.reshape(-1).view(np.uint8).reshape(blocks.size, format.block_bytes)
    with np.errstate(all="ignore"):
        weights = [reading(raw, i) for i in range(format.block_size)]
    return np.stack(weights, axis=-1).astype(np.float32).reshape(tensor.shape)


def half(b, at):
    return np.ascontiguousarray(b[:, at : at + 2]).view("<f2")[:, 0].astype(np.float32)


def bfloat(b, at):
    return (np.ascontiguousarray(b[:, at : at + 2]).view("<u2")[:, 0].astype(np.uint32) << 16).view(np.float32)


def bit(b, at, i):
    return b[:, at + i // 8] >> i % 8 & 1


def nibble(byte, high):
    return (byte >> 4 if high else byte & 15).astype(np.float32)


def byte_and_half(i, run):
    """Return the byte of weight i, and whether its high bits, if each run of bytes holds twice as many weights."""
    return i // (2 * run) * run + i % run, i // run % 2 == 1


def six(s, j):
    """Return scale and minimum j of Q4_K and Q5_K."""
    if j < 4:
        return s[:, j] & 63, s[:, j + 4] & 63
    return s[:, j + 4] & 15 | s[:, j - 4] >> 6 << 4, s[:, j + 4] >> 4 | s[:, j] >> 6 << 4


def six_in_turns(s, j):
    bits = np.unpackbits(s, axis=1, bitorder="little")

    def number(k):
        return sum(bits[:, 6 * k + n].astype(np.int32) << n for n in range(6))  # lowest bits first

    return number(2 * j), number(2 * j + 1)


def six_halves_exchanged(s, j):
    if j < 4:
        return six(s, j)
    return s[:, j + 4] >> 4 | s[:, j - 4] >> 6 << 4, s[:, j + 4] & 15 | s[:, j] >> 6 << 4


def six_without_upper(s, j):
    return six(s, j) if j < 4 else (s[:, j + 4] & 15, s[:, j + 4] >> 4)


def six_ones(s, j):
    return np.ones(len(s)), np.ones(len(s))


def q4_k(b, i, run=32, group=lambda i: i // 32, six=six, minus=1, swapped=False):
    byte, high = byte_and_half(i, run)
    scale, least = six(b[:, 4:16], group(i))
    d, dmin = (half(b, at) for at in ((2, 0) if swapped else (0, 2)))
    return d * scale * nibble(b[:, 16 + byte], high) - minus * dmin * least


def q5_k(b, i, fifth=lambda i: (i % 32, i // 32), six=six, run=32):
    byte, high = byte_and_half(i, run)
    scale, least = six(b[:, 4:16], i // 32)
    at, n = fifth(i)
    q = nibble(b[:, 48 + byte], high) + 16 * (b[:, 16 + at] >> n & 1)
    return half(b, 0) * scale * q - half(b, 2) * least


def q6_k(b, i, run=64, high_run=32, group=lambda i: i // 16, less=32, signed=True):
    byte, high = byte_and_half(i, run)
    upper = i // (4 * high_run) * high_run + i % high_run
    q = nibble(b[:, byte], high) + 16 * (b[:, 128 + upper] >> 2 * (i // high_run % 4) & 3)
    scale = b[:, 192 + group(i)]
    return half(b, 208) * (scale.view(np.int8) if signed else scale).astype(np.float32) * (q - less)


def q3_scale(s, j):
    low = s[:, j % 8] >> 4 * (j // 8) & 15
    return (low | (s[:, 8 + j % 4] >> 2 * (j // 4) & 3) << 4).astype(np.float32) - 32


def q3_four_bits(s, j):
    return (s[:, j // 2] >> 4 * (j % 2) & 15).astype(np.float32) - 8


def q3_k(b, i, scale=q3_scale, run=32, third=lambda i: (i % 32, i // 32), set_is=4):
    byte = i // (4 * run) * run + i % run
    at, n = third(i)
    q = (b[:, 32 + byte] >> 2 * (i // run % 4) & 3).astype(np.float32) + np.where(b[:, at] >> n & 1, set_is, 4 - set_is)
    return half(b, 108) * scale(b[:, 96:108], i // 16) * (q - 4)


def q2_k(b, i, run=32, group=lambda i: i // 16, exchanged=False):
    byte, s = i // (4 * run) * run + i % run, b[:, group(i)]
    scale, least = (s >> 4, s & 15) if exchanged else (s & 15, s >> 4)
    return half(b, 80) * scale * (b[:, 16 + byte] >> 2 * (i // run % 4) & 3) - half(b, 82) * least


def iq4_xs(b, i, less=32, upper=True, steps=STEPS, exchanged=False, run=16):
    j, (byte, high) = i // 32, byte_and_half(i, run)
    low = b[:, 4 + j // 2] >> 4 * (j % 2 != exchanged) & 15
    top = np.ascontiguousarray(b[:, 2:4]).view("<u2")[:, 0] >> 2 * j & 3
    scale = (low | top << 4 if upper else low).astype(np.float32) - less
    return half(b, 0) * scale * steps[nibble(b[:, 8 + byte], high).astype(int)]


def q4_0(b, i, scale=half, run=16):
    byte, high = byte_and_half(i, run)
    return scale(b, 0) * (nibble(b[:, 2 + byte], high) - 8)


def q4_1(b, i, swapped=False):
    byte, high = byte_and_half(i, 16)
    d, m = (half(b, at) for at in ((2, 0) if swapped else (0, 2)))
    return d * nibble(b[:, 4 + byte], high) + m


def q5_0(b, i, fifth=lambda i: i):
    byte, high = byte_and_half(i, 16)
    return half(b, 0) * (nibble(b[:, 6 + byte], high) + 16 * bit(b, 2, fifth(i)) - 16)


def iq4_nl(b, i, steps=STEPS):
    byte, high = byte_and_half(i, 16)
    return half(b, 0) * steps[nibble(b[:, 2 + byte], high).astype(int)]


def mxfp4(b, i, values=FP4, run=16):
    byte, high = byte_and_half(i, run)
    return np.ldexp(values[nibble(b[:, 1 + byte], high).astype(int)], b[:, 0].astype(int) - 127)


def iq2_xs(b, i, sign=lambda minus, n: minus, half_step=0.5):
    word = np.ascontiguousarray(b[:, 2:66]).view("<u2")[:, i // 8]
    scale = (b[:, 66 + i // 32] >> 4 * (i // 16 % 2) & 15) + half_step
    point = codebook("IQ2_XS")[word & 511][:, i % 8]
    minus = np.bitwise_count(word >> 9) & 1 if i % 8 == 7 else word >> 9 + i % 8 & 1
    return half(b, 0) * scale / 4 * point * np.where(sign(minus, i % 8), -1, 1)


def iq3_s(b, i, upper=True, sign=lambda minus, n: minus):
    code = b[:, 2 + i // 4].astype(int) | (bit(b, 66, i // 4).astype(int) << 8 if upper else 0)
    scale = 2.0 * (b[:, 106 + i // 64] >> 4 * (i // 32 % 2) & 15) + 1
    minus = sign(b[:, 74 + i // 8] >> i % 8 & 1, i)
    return half(b, 0) * scale * codebook("IQ3_S")[code][:, i % 4] * np.where(minus, -1, 1)


def iq1_s(b, i, delta=0.125, minus=0.125):
    qh = np.ascontiguousarray(b[:, 34:50]).view("<u2")[:, i // 32]
    code = b[:, 2 + i // 8].astype(int) | (qh.astype(int) >> 3 * (i // 8 % 4) & 7) << 8
    scale = 2.0 * (qh >> 12 & 7) + 1
    return half(b, 0) * scale * (codebook("IQ1_S")[code][:, i % 8] + np.where(qh >> 15, -minus, delta))


RIGHT_READINGS = {
    "Q4_0": q4_0,
    "Q4_1": q4_1,
    "Q5_0": q5_0,
    "Q2_K": q2_k,
    "Q3_K": q3_k,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
    "IQ4_NL": iq4_nl,
    "IQ4_XS": iq4_xs,
    "MXFP4": mxfp4,
    "IQ2_XS": iq2_xs,
    "IQ3_S": iq3_s,
    "IQ1_S": iq1_s,
}
LINEAR = np.arange(16, dtype=np.float32) - 8
WRONG_READINGS = [
    Reading("neighbours in a byte", "Q4_K", partial(q4_k, run=1)),
    Reading("halves of the super-block", "Q4_K", partial(q4_k, run=128)),
    Reading("runs of 16 bytes", "Q4_K", partial(q4_k, run=16)),
    Reading("six bits in turns", "Q4_K", partial(q4_k, six=six_in_turns)),
    Reading("upper scales and mins exchanged", "Q4_K", partial(q4_k, six=six_halves_exchanged)),
    Reading("upper bits lost", "Q4_K", partial(q4_k, six=six_without_upper)),
    Reading("scales of groups left out", "Q4_K", partial(q4_k, six=six_ones)),
    Reading("minimum added", "Q4_K", partial(q4_k, minus=-1)),
    Reading("d and dmin exchanged", "Q4_K", partial(q4_k, swapped=True)),
    Reading("groups of 16", "Q4_K", partial(q4_k, group=lambda i: i // 16 % 8)),
    Reading("the first half's scales", "Q4_K", partial(q4_k, group=lambda i: i // 32 % 4)),
    Reading("scale of 64 weights", "Q4_K", partial(q4_k, group=lambda i: i // 64 * 2)),
    Reading("fifth bit in plain order", "Q5_K", partial(q5_k, fifth=lambda i: (i // 8, i % 8))),
    Reading("fifth bits from the top", "Q5_K", partial(q5_k, fifth=lambda i: (i % 32, 7 - i // 32))),
    Reading("six bits in turns", "Q5_K", partial(q5_k, six=six_in_turns)),
    Reading("low bits as in Q4_K", "Q6_K", partial(q6_k, run=32)),
    Reading("high bits in plain order", "Q6_K", partial(q6_k, high_run=1)),
    Reading("scales without sign", "Q6_K", partial(q6_k, signed=False)),
    Reading("codes not less 32", "Q6_K", partial(q6_k, less=0)),
    Reading("groups of 32", "Q6_K", partial(q6_k, group=lambda i: i // 32)),
    Reading("scales of four bits", "Q3_K", partial(q3_k, scale=q3_four_bits)),
    Reading("scales not less 32", "Q3_K", partial(q3_k, scale=lambda s, j: q3_scale(s, j) + 32)),
    Reading("third bit inverted", "Q3_K", partial(q3_k, set_is=0)),
    Reading("codes in plain order", "Q3_K", partial(q3_k, run=1)),
    Reading("third bit in plain order", "Q3_K", partial(q3_k, third=lambda i: (i // 8, i % 8))),
    Reading("codes in plain order", "Q2_K", partial(q2_k, run=1)),
    Reading("scale and minimum exchanged", "Q2_K", partial(q2_k, exchanged=True)),
    Reading("groups of 32", "Q2_K", partial(q2_k, group=lambda i: i // 32)),
    Reading("linear codes", "IQ4_XS", partial(iq4_xs, steps=LINEAR)),
    Reading("upper bits of scales lost", "IQ4_XS", partial(iq4_xs, upper=False)),
    Reading("scales not less 32", "IQ4_XS", partial(iq4_xs, less=0)),
    Reading("scales of a byte exchanged", "IQ4_XS", partial(iq4_xs, exchanged=True)),
    Reading("linear codes", "IQ4_NL", partial(iq4_nl, steps=LINEAR)),
    Reading("integers", "MXFP4", partial(mxfp4, values=LINEAR)),
    Reading("neighbours in a byte", "MXFP4", partial(mxfp4, run=1)),
    Reading("scale as bfloat16", "Q4_0", partial(q4_0, scale=bfloat)),
    Reading("scale and minimum exchanged", "Q4_1", partial(q4_1, swapped=True)),
    Reading("fifth bits in pairs", "Q5_0", partial(q5_0, fifth=lambda i: i % 16 * 2 + i // 16)),
    Reading("eighth sign always plus", "IQ2_XS", partial(iq2_xs, sign=lambda minus, n: minus * (n < 7))),
    Reading("no half", "IQ2_XS", partial(iq2_xs, half_step=0.0)),
    Reading("ninth bit lost", "IQ3_S", partial(iq3_s, upper=False)),
    Reading("no signs", "IQ3_S", partial(iq3_s, sign=lambda minus, i: 0 * minus)),
    Reading("no delta", "IQ1_S", partial(iq1_s, delta=0.0, minus=0.0)),
    Reading("delta always plus", "IQ1_S", partial(iq1_s, minus=-0.125)),
]
