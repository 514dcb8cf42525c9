"""Mistakes in reading codes of a table: IQ formats, four-bit floats, ternary weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ....kernels.quants.bits import pack, unpack
from ....kernels.quants.fp4 import half_of_e4m3, half_of_e8m0
from ....kernels.quants.iq import STEPS
from .block_fields import Dequantize, FormatMistake, Wrong, changed_fields, order, reverse_bits, swap_nibbles

SIGNED_POINTS = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
EVEN_SIGNED = ("IQ2_XXS", "IQ2_XS", "IQ3_XXS")


def signs_and_sizes(change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Wrong:
    """Change the signs or sizes of weights.  change: signs and sizes, f32 [n, 32, 8] each -> weights"""

    def wrong(blocks: np.ndarray, dequantize: Dequantize) -> np.ndarray:
        x = dequantize(blocks)
        d = np.where(blocks["d"] < 0, -1, 1).astype(np.float32)[:, None]
        sign = np.where(x * d < 0, -1, 1).astype(np.float32)
        y = change(sign.reshape(len(x), -1, 8), (x * sign).reshape(len(x), -1, 8))
        return np.ascontiguousarray(y).reshape(x.shape)

    return wrong


def _plus_last(sign: np.ndarray, size: np.ndarray) -> np.ndarray:
    sign = sign.copy()
    sign[..., 7] = 1
    return np.asarray(sign * size)


def _reversed_points(sign: np.ndarray, size: np.ndarray) -> np.ndarray:
    return np.asarray(sign * size[..., ::-1])


def _scale_codes(blocks: np.ndarray) -> np.ndarray:
    """Return the four-bit scales of IQ2 and IQ3_XXS.  -> f32 [n, groups]"""
    names = blocks.dtype.names or ()
    if "scales" in names:
        return np.asarray(unpack(blocks["scales"], bits=4, run=1).astype(np.float32))
    words = blocks["signs"] if "signs" in names else blocks["qs"]["signs"]
    return np.asarray((words >> 28).astype(np.float32))


def _no_half(blocks: np.ndarray, dequantize: Dequantize) -> np.ndarray:
    """Scale by the code, not by the code and a half."""
    x, code = dequantize(blocks), _scale_codes(blocks)
    return np.asarray(x * np.repeat(code / (code + 0.5), 256 // code.shape[1], axis=1))


def _linear_steps(blocks: np.ndarray, dequantize: Dequantize) -> np.ndarray:
    """Take q - 8 for the step of code q."""
    q = unpack(blocks["qs"], bits=4, run=16)
    return np.asarray(dequantize(blocks) / STEPS[q] * (q.astype(np.float32) - 8))


def _linear_fp4(blocks: np.ndarray, dequantize: Dequantize) -> np.ndarray:
    """Take q - 8 for the float of code q."""
    if "e" in (blocks.dtype.names or ()):
        q, half = unpack(blocks["qs"], bits=4, run=16), half_of_e8m0(blocks["e"])[:, None]
    else:
        q, half = unpack(blocks["qs"], bits=4, run=8), np.repeat(half_of_e4m3(blocks["d"]), 16, axis=1)
    return np.asarray((q.astype(np.float32) - 8) * 2 * half)


def _xs_scales(change: Callable[[np.ndarray], np.ndarray]) -> Wrong:
    """Change the scales of IQ4_XS, in -32..31.  change: i16 [n, 8] -> numbers"""

    def wrong(blocks: np.ndarray, dequantize: Dequantize) -> np.ndarray:
        upper = blocks["scales_h"].astype(np.uint16)[:, None] >> np.arange(0, 16, 2, dtype=np.uint16) & 3
        scales = (unpack(blocks["scales_l"], bits=4, run=1) | upper << 4).astype(np.int16) - 32
        factor = change(scales).astype(np.float32) / np.where(scales == 0, 1, scales)
        return np.asarray(dequantize(blocks) * np.repeat(factor, 32, axis=1))

    return wrong


def _other_delta(blocks: np.ndarray) -> np.ndarray:
    """Invert the bits that give the deltas of IQ1 their sign."""
    other = blocks.copy()
    other["qh"] ^= 0x8000 if other["qh"].dtype.itemsize == 2 else 0x88
    return other


def _no_delta(blocks: np.ndarray, dequantize: Dequantize) -> np.ndarray:
    return np.asarray((dequantize(blocks) + dequantize(_other_delta(blocks))) / 2)


def _no_upper_bits(qh: np.ndarray) -> np.ndarray:
    return qh & (0xF000 if qh.dtype.itemsize == 2 else 0x88)


def _from_0(blocks: np.ndarray, dequantize: Dequantize) -> np.ndarray:
    return np.asarray(dequantize(blocks) + blocks["d"].astype(np.float32)[:, None])


def _digits_reversed(x: np.ndarray) -> np.ndarray:
    """Take the last digit of a byte for the first weight."""
    parts = (x[:, :160].reshape(len(x), 5, -1), x[:, 160:240].reshape(len(x), 5, -1), x[:, 240:].reshape(len(x), 4, -1))
    return np.concatenate([part[:, ::-1].reshape(len(x), -1) for part in parts], axis=1)


def _digits_byte_by_byte(x: np.ndarray) -> np.ndarray:
    """Take the weights of a byte for neighbours."""
    parts = (x[:, :160].reshape(len(x), 5, -1), x[:, 160:240].reshape(len(x), 5, -1), x[:, 240:].reshape(len(x), 4, -1))
    return np.concatenate([part.swapaxes(1, 2).reshape(len(x), -1) for part in parts], axis=1)


def _crumbs_reversed(qs: np.ndarray) -> np.ndarray:
    q = unpack(qs, bits=2, run=1)
    return np.asarray(pack(q.reshape(len(q), -1, 4)[..., ::-1].reshape(q.shape), bits=2, run=1))


CODEBOOK_MISTAKES: tuple[FormatMistake, ...] = (
    FormatMistake("signs were ignored", SIGNED_POINTS, signs_and_sizes(lambda sign, size: size)),
    FormatMistake("the eighth sign of a point were always plus", EVEN_SIGNED, signs_and_sizes(_plus_last)),
    FormatMistake(
        "the signs of a point were in reverse order",
        SIGNED_POINTS,
        signs_and_sizes(lambda sign, size: sign[..., ::-1] * size),
    ),
    FormatMistake("the weights of a point were in reverse order", SIGNED_POINTS, signs_and_sizes(_reversed_points)),
    FormatMistake(
        "each point had the next point's signs",
        SIGNED_POINTS,
        signs_and_sizes(lambda sign, size: np.roll(sign, -1, axis=1) * size),
    ),
    FormatMistake("half were not added to the scale", ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"), _no_half),
    FormatMistake(
        "the scales of even and odd groups were exchanged in their byte",
        ("IQ2_XS", "IQ2_S", "IQ3_S", "IQ4_XS"),
        changed_fields(scales=swap_nibbles, scales_l=swap_nibbles),
    ),
    FormatMistake("the upper bits of codes were ignored", ("IQ2_S", "IQ3_S"), changed_fields(qh=lambda q: 0 * q)),
    FormatMistake("the upper bits of codes were in reverse order", ("IQ2_S", "IQ3_S"), changed_fields(qh=reverse_bits)),
    FormatMistake("the upper bits of points were ignored", ("IQ1_S", "IQ1_M"), changed_fields(qh=_no_upper_bits)),
    FormatMistake("delta were ignored", ("IQ1_S", "IQ1_M"), _no_delta),
    FormatMistake(
        "delta were always plus",
        ("IQ1_S", "IQ1_M"),
        changed_fields(qh=lambda qh: qh & (0x7FFF if qh.dtype.itemsize == 2 else 0x77)),
    ),
    FormatMistake(
        "delta had the other sign", ("IQ1_S", "IQ1_M"), lambda blocks, dequantize: dequantize(_other_delta(blocks))
    ),
    FormatMistake("codes were steps of 1, not of the table", ("IQ4_NL", "IQ4_XS"), _linear_steps),
    FormatMistake("the upper two bits of scales were ignored", ("IQ4_XS",), changed_fields(scales_h=lambda s: 0 * s)),
    FormatMistake("32 were not subtracted from the scales", ("IQ4_XS",), _xs_scales(lambda s: s + 32)),
    FormatMistake(
        "scales had six bits with a sign", ("IQ4_XS",), _xs_scales(lambda s: np.where(s + 32 >= 32, s - 32, s + 32))
    ),
    FormatMistake(
        "the bits of upper scales were in reverse order",
        ("IQ4_XS",),
        changed_fields(
            scales_h=lambda s: np.bitwise_or.reduce(
                [(s >> 2 * i & 3) << 2 * (7 - i) for i in range(8)],
            )
        ),
    ),
    FormatMistake("codes were integers, not floats of four bits", ("MXFP4", "NVFP4"), _linear_fp4),
    FormatMistake(
        "the sign of codes were ignored", ("MXFP4", "NVFP4"), lambda blocks, dequantize: np.abs(dequantize(blocks))
    ),
    FormatMistake(
        "each group had the next group's scale (NVFP4)", ("NVFP4",), changed_fields(d=lambda d: np.roll(d, -1, axis=1))
    ),
    FormatMistake(
        "the scale were read as an exponent alone (E8M0)",
        ("NVFP4",),
        lambda blocks, dequantize: _as_e8m0(blocks, dequantize),
    ),
    FormatMistake("1 were not subtracted from codes", ("TQ1_0", "TQ2_0", "Q2_0"), _from_0),
    FormatMistake("the digits of a byte were in reverse order", ("TQ1_0",), order(_digits_reversed)),
    FormatMistake("the digits of a byte were neighbours", ("TQ1_0",), order(_digits_byte_by_byte)),
    FormatMistake("the codes of a byte were in reverse order", ("TQ2_0", "Q2_0"), changed_fields(qs=_crumbs_reversed)),
    FormatMistake("the bits of a byte were in reverse order", ("Q1_0",), changed_fields(qs=reverse_bits)),
)


def _as_e8m0(blocks: np.ndarray, dequantize: Dequantize) -> np.ndarray:
    right = np.repeat(half_of_e4m3(blocks["d"]), 16, axis=1)
    other = np.repeat(np.minimum(half_of_e8m0(blocks["d"]), 1e9), 16, axis=1)
    return np.asarray(np.nan_to_num(dequantize(blocks) / np.where(right == 0, 1, right) * other))
