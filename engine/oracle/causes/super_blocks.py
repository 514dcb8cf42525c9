"""Mistakes in reading K-quants: super-blocks of 256 weights, whose groups have scales of 4, 6 or 8 bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ....kernels.quants.bits import pack, unpack
from ....kernels.quants.k import pack_scales_and_mins, unpack_scales_and_mins
from .block_fields import Dequantize, FormatMistake, Wrong, changed_fields, reverse_bits, runs_of, swap_nibbles

SIX_BITS = ("Q4_K", "Q5_K")


def scales_and_mins(change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Wrong:
    """Change the six-bit scales and mins of Q4_K and Q5_K.  change: u8 [n, 8], u8 [n, 8] -> the same"""
    return changed_fields(scales=lambda packed: pack_scales_and_mins(*change(*unpack_scales_and_mins(packed))))


def in_sequence(packed: np.ndarray) -> np.ndarray:
    """Read numbers of six bits one after the other, lowest bits first.  u8 [n, 12] -> u8 [n, 16]"""
    bits = np.unpackbits(packed, axis=1, bitorder="little").reshape(len(packed), 16, 6)
    return np.asarray((bits << np.arange(6, dtype=np.uint8)).sum(axis=2, dtype=np.uint8))


def _upper_nibbles_exchanged(scales: np.ndarray) -> np.ndarray:
    """Exchange the nibbles of the last four bytes: the upper scales and mins change places."""
    out = scales.copy()
    out[:, 8:] = swap_nibbles(out[:, 8:])
    return out


def _scales_and_mins_exchanged(scales: np.ndarray) -> np.ndarray:
    return np.concatenate([scales[:, 4:8], scales[:, 0:4], swap_nibbles(scales[:, 8:])], axis=1)


def _no_upper_bits(scales: np.ndarray) -> np.ndarray:
    out = scales.copy()
    out[:, :8] &= 63
    return out


def _upper_bits_of_next(scales: np.ndarray) -> np.ndarray:
    """Take the upper two bits of scales for those of mins, and the reverse."""
    out = scales.copy()
    out[:, 0:4] = scales[:, 0:4] & 63 | scales[:, 4:8] & 192
    out[:, 4:8] = scales[:, 4:8] & 63 | scales[:, 0:4] & 192
    return out


def _unsigned_scales(blocks: np.ndarray, dequantize: Dequantize) -> np.ndarray:
    x, scales = dequantize(blocks), blocks["scales"].astype(np.float32)
    factor = np.where(scales < 0, (scales + 256) / np.where(scales < 0, scales, 1), 1)
    return np.asarray(x * np.repeat(factor, 16, axis=1))


# --- Q3_K ---


def _unpacked_q3(packed: np.ndarray) -> np.ndarray:
    return np.asarray(unpack(packed[:, :8], bits=4, run=8) | unpack(packed[:, 8:], bits=2, run=4) << 4)


def _packed_q3(scales: np.ndarray) -> np.ndarray:
    return np.concatenate([pack(scales & 15, bits=4, run=8), pack(scales >> 4, bits=2, run=4)], axis=1)


def q3_scales(change: Callable[[np.ndarray], np.ndarray]) -> Wrong:
    """Change the sixteen scales of Q3_K, from which 32 is subtracted.  change: the packed bytes -> u8 [n, 16]"""
    return changed_fields(scales=lambda packed: _packed_q3(change(packed).astype(np.uint8)))


def _q3_without_offset(blocks: np.ndarray, dequantize: Dequantize) -> np.ndarray:
    """Use scales in 0..63: the weight for scale 32 + 1, less that for 32, is the code."""
    code = dequantize(_with_scales(blocks, np.full((len(blocks), 16), 33, np.uint8)))
    return np.asarray(code * np.repeat(_unpacked_q3(blocks["scales"]).astype(np.float32), 16, axis=1))


def _with_scales(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    blocks = blocks.copy()
    blocks["scales"] = _packed_q3(scales)
    return blocks


def repeated(scales: np.ndarray) -> np.ndarray:
    """Use the first half of the scales, each for twice as many weights."""
    return np.repeat(scales[:, : scales.shape[1] // 2], 2, axis=1)


SUPER_BLOCK_MISTAKES: tuple[FormatMistake, ...] = (
    *runs_of(1, high=True),
    *runs_of(16, ("Q6_K",), high=True),
    *runs_of(64, ("Q6_K",), high=True),
    FormatMistake("the third bit were ignored", ("Q3_K",), changed_fields(hmask=lambda q: 0 * q)),
    FormatMistake("the third bit were inverted", ("Q3_K",), changed_fields(hmask=lambda q: ~q)),
    FormatMistake("the bits of a byte of high bits were reversed", ("Q5_K", "Q6_K"), changed_fields(qh=reverse_bits)),
    FormatMistake(
        "the upper six-bit scales and mins were exchanged", SIX_BITS, changed_fields(scales=_upper_nibbles_exchanged)
    ),
    FormatMistake("scales and mins were exchanged", SIX_BITS, changed_fields(scales=_scales_and_mins_exchanged)),
    FormatMistake(
        "the upper two bits of the six-bit scales were ignored", SIX_BITS, changed_fields(scales=_no_upper_bits)
    ),
    FormatMistake(
        "the upper two bits of scales and mins were exchanged", SIX_BITS, changed_fields(scales=_upper_bits_of_next)
    ),
    FormatMistake(
        "six-bit scales stood one after the other, then mins",
        SIX_BITS,
        changed_fields(scales=lambda s: pack_scales_and_mins(in_sequence(s)[:, :8], in_sequence(s)[:, 8:])),
    ),
    FormatMistake(
        "six-bit scales and mins took turns",
        SIX_BITS,
        changed_fields(scales=lambda s: pack_scales_and_mins(in_sequence(s)[:, ::2], in_sequence(s)[:, 1::2])),
    ),
    FormatMistake(
        "the scales of groups were left out (d and dmin alone)",
        SIX_BITS,
        scales_and_mins(lambda scales, mins: (0 * scales + 1, 0 * mins + 1)),
    ),
    FormatMistake(
        "the mins of groups were left out (dmin alone)",
        SIX_BITS,
        scales_and_mins(lambda scales, mins: (scales, 0 * mins + 1)),
    ),
    FormatMistake(
        "groups 4 to 7 had the scales of groups 0 to 3",
        SIX_BITS,
        scales_and_mins(lambda scales, mins: (np.tile(scales[:, :4], 2), np.tile(mins[:, :4], 2))),
    ),
    FormatMistake(
        "groups 0 to 3 and 4 to 7 had each other's scales",
        SIX_BITS,
        scales_and_mins(lambda scales, mins: (np.roll(scales, 4, axis=1), np.roll(mins, 4, axis=1))),
    ),
    FormatMistake(
        "each group had the scale of the next one",
        SIX_BITS,
        scales_and_mins(lambda scales, mins: (np.roll(scales, -1, axis=1), np.roll(mins, -1, axis=1))),
    ),
    FormatMistake(
        "scales and mins of groups were reversed",
        SIX_BITS,
        scales_and_mins(lambda scales, mins: (scales[:, ::-1], mins[:, ::-1])),
    ),
    FormatMistake(
        "the scale of 64 weights were that of their first 32",
        SIX_BITS,
        scales_and_mins(
            lambda scales, mins: (np.repeat(scales[:, ::2], 2, axis=1), np.repeat(mins[:, ::2], 2, axis=1))
        ),
    ),
    FormatMistake(
        "groups had 16 weights, not 32",
        SIX_BITS,
        lambda blocks, dequantize: _groups_of_16(blocks, dequantize),
    ),
    FormatMistake(
        "the minimum were scaled by d, not by dmin",
        SIX_BITS,
        lambda blocks, dequantize: _same_scale(blocks, dequantize),
    ),
    FormatMistake("scales and mins were exchanged in their byte", ("Q2_K",), changed_fields(scales=swap_nibbles)),
    FormatMistake(
        "the scales of a super-block were reversed", ("Q6_K", "Q2_K"), changed_fields(scales=lambda s: s[:, ::-1])
    ),
    FormatMistake("the scales were without sign", ("Q6_K",), _unsigned_scales),
    FormatMistake("the scales were left out", ("Q6_K",), changed_fields(scales=lambda s: 0 * s + 1)),
    FormatMistake("groups had 32 weights, not 16", ("Q6_K", "Q2_K"), changed_fields(scales=repeated)),
    FormatMistake(
        "each group of a super-block had the next group's scale",
        ("Q6_K", "Q2_K"),
        changed_fields(scales=lambda s: np.roll(s, -1, axis=-1)),
    ),
    FormatMistake(
        "the scales of even and odd groups were exchanged",
        ("Q6_K", "Q2_K"),
        changed_fields(scales=lambda s: s.reshape(len(s), -1, 2)[..., ::-1].reshape(s.shape)),
    ),
    FormatMistake(
        "scales took turns between the halves of a super-block",
        ("Q6_K", "Q2_K"),
        changed_fields(scales=lambda s: s.reshape(len(s), 8, 2).swapaxes(1, 2).reshape(s.shape)),
    ),
    FormatMistake("nothing were subtracted from the scales", ("Q3_K",), _q3_without_offset),
    FormatMistake("the upper bits of scales were ignored", ("Q3_K",), q3_scales(lambda s: _unpacked_q3(s) & 15)),
    FormatMistake("scales had four bits, less 8", ("Q3_K",), q3_scales(lambda s: (_unpacked_q3(s) & 15) + 24)),
    FormatMistake(
        "scales had four bits in plain order, less 8", ("Q3_K",), q3_scales(lambda s: unpack(s[:, :8], 4, 1) + 24)
    ),
    FormatMistake("six-bit scales stood one after the other", ("Q3_K",), q3_scales(in_sequence)),
    FormatMistake(
        "the scales of a super-block were in reverse", ("Q3_K",), q3_scales(lambda s: _unpacked_q3(s)[:, ::-1])
    ),
    FormatMistake(
        "each group had the next group's scale", ("Q3_K",), q3_scales(lambda s: np.roll(_unpacked_q3(s), -1, axis=1))
    ),
    FormatMistake("groups had 32 weights, not 16 (Q3_K)", ("Q3_K",), q3_scales(lambda s: repeated(_unpacked_q3(s)))),
    FormatMistake(
        "nothing were subtracted from the codes (Q3_K)",
        ("Q3_K",),
        lambda blocks, dequantize: _q3_codes_from_0(blocks, dequantize),
    ),
    FormatMistake(
        "the upper bits of scales were those of the next ones",
        ("Q3_K",),
        changed_fields(scales=lambda s: np.concatenate([s[:, :8], unordered(s[:, 8:])], axis=1)),
    ),
)


def unordered(upper: np.ndarray) -> np.ndarray:
    """Take the upper bits for packed in plain order: byte j has those of scales 4 j .. 4 j + 3."""
    return np.asarray(pack(unpack(upper, bits=2, run=1), bits=2, run=4))


def _groups_of_16(blocks: np.ndarray, dequantize: Dequantize) -> np.ndarray:
    """Give the first eight groups of 16 weights a scale each, and then the same ones again."""
    halves = []
    for half in range(2):
        changed = blocks.copy()
        scales, mins = unpack_scales_and_mins(blocks["scales"])
        index = (np.arange(16) % 8)[half::2]  # scale of the first or the second half of each group of 32
        changed["scales"] = pack_scales_and_mins(scales[:, index], mins[:, index])
        halves.append(dequantize(changed).reshape(len(blocks), 8, 2, 16)[:, :, half])
    return np.stack(halves, axis=2).reshape(len(blocks), 256)


def _same_scale(blocks: np.ndarray, dequantize: Dequantize) -> np.ndarray:
    blocks = blocks.copy()
    blocks["dmin"] = blocks["d"]
    return dequantize(blocks)


def _q3_codes_from_0(blocks: np.ndarray, dequantize: Dequantize) -> np.ndarray:
    """Use codes in 0..7, not less 4."""
    scales = blocks["d"].astype(np.float32)[:, None] * (_unpacked_q3(blocks["scales"]).astype(np.float32) - 32)
    return np.asarray(dequantize(blocks) + 4 * np.repeat(scales, 16, axis=1))
