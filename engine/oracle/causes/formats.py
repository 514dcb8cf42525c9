"""Usual mistakes in reading the blocks of quantized weights: each a changed dequantization."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ....kernels import Tensor
from ....kernels.quants import FORMATS
from ..setting import Setting
from .cause import INPUT, PRODUCTS, Cause, Change

Dequantize = Callable[[np.ndarray], np.ndarray]
NIBBLES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "Q4_K", "Q5_K", "IQ4_XS", "MXFP4")
SUPER_BLOCKS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
ALL_IN_BLOCKS = tuple(format.name for format in FORMATS.values() if format.block_size > 1)
BLOCKS_OF_32 = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4")


@dataclass(frozen=True, eq=False)
class FormatMistake:
    """A mistake.

    sentence     completes "as if ..."
    formats      names of the formats in which it occurs
    dequantize   blocks and the right function -> the wrong weights
    """

    sentence: str
    formats: tuple[str, ...]
    dequantize: Callable[[np.ndarray, Dequantize], np.ndarray]


def changed_fields(**changes: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray, Dequantize], np.ndarray]:
    """Change fields of the blocks before they are dequantized; fields that a format lacks are left out."""

    def wrong(blocks: np.ndarray, dequantize: Dequantize) -> np.ndarray:
        blocks = blocks.copy()
        for name, change in changes.items():
            if name in (blocks.dtype.names or ()):
                blocks[name] = change(blocks[name])
        return dequantize(blocks)

    return wrong


def order(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray, Dequantize], np.ndarray]:
    """Reorder the weights of each block.  change: f32 [n, block] -> f32 [n, block] or any shape of as many numbers"""
    return lambda blocks, dequantize: _reordered_blocks(dequantize(blocks), change)


def _reordered_blocks(x: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return np.ascontiguousarray(change(x)).reshape(x.shape)


def swap_nibbles(qs: np.ndarray) -> np.ndarray:
    return qs >> 4 | qs << 4


def no_offset(blocks: np.ndarray, dequantize: Dequantize) -> np.ndarray:
    """Dequantize without the subtraction of 8, 16 or 32 from the codes."""
    x, d = dequantize(blocks), blocks["d"].astype(np.float32)[:, None]
    names = blocks.dtype.names or ()
    if "ql" in names:
        return x + 32 * np.repeat(d * blocks["scales"].astype(np.float32), 16, axis=1)
    return x + (16 if "qh" in names else 8) * d


def offset_by_one(blocks: np.ndarray, dequantize: Dequantize) -> np.ndarray:
    """Dequantize with one less subtracted from the codes: 7 for 8, 15 for 16."""
    return dequantize(blocks) + blocks["d"].astype(np.float32)[:, None]


def scale_read_as_bf16(d: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(d).view(np.uint16).astype(np.uint32) << 16
    with np.errstate(all="ignore"):
        return np.clip(bits.view(np.float32), -60000, 60000).astype(d.dtype)


def _plain_six_bits(scales: np.ndarray) -> np.ndarray:
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


def _reverse_bits(x: np.ndarray) -> np.ndarray:
    return np.packbits(np.unpackbits(x[..., None], axis=-1)[..., ::-1], axis=-1)[..., 0]


def _halves(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), 2, -1)[:, ::-1]


def _woven(x: np.ndarray) -> np.ndarray:
    """Take each byte's low and high four bits as neighbours: runs of half a group are interleaved."""
    run = 16 if x.shape[1] == 32 else 32
    return x.reshape(len(x), -1, 2, run).swapaxes(-1, -2)


def _unwoven(x: np.ndarray) -> np.ndarray:
    run = 16 if x.shape[1] == 32 else 32
    return x.reshape(len(x), -1, run, 2).swapaxes(-1, -2)


def _unsigned_bytes(blocks: np.ndarray, dequantize: Dequantize) -> np.ndarray:
    d = blocks["d"].astype(np.float32)[:, None]
    return np.asarray(d * blocks["qs"].view(np.uint8).astype(np.float32))


def _unsigned_scales(blocks: np.ndarray, dequantize: Dequantize) -> np.ndarray:
    x, scales = dequantize(blocks), blocks["scales"].astype(np.float32)
    factor = np.where(scales < 0, (scales + 256) / np.where(scales < 0, scales, 1), 1)
    return np.asarray(x * np.repeat(factor, 16, axis=1))


def _next_blocks_scale(blocks: np.ndarray, dequantize: Dequantize) -> np.ndarray:
    blocks = blocks.copy()
    blocks["d"] = np.roll(blocks["d"], -1)
    return dequantize(blocks)


FORMAT_MISTAKES = (
    FormatMistake(
        "the halves of a block were exchanged (high four bits first)", NIBBLES, changed_fields(qs=swap_nibbles)
    ),
    FormatMistake("the low and high four bits of a byte were neighbours", NIBBLES, order(_woven)),
    FormatMistake("neighbours were split into the halves of a block", (*NIBBLES, "Q8_0"), order(_unwoven)),
    FormatMistake("the weights of a block were reversed", (*BLOCKS_OF_32, *SUPER_BLOCKS), order(lambda x: x[:, ::-1])),
    FormatMistake("the halves of a block were exchanged", (*BLOCKS_OF_32, *SUPER_BLOCKS), order(_halves)),
    FormatMistake("the scale had the other sign", (*BLOCKS_OF_32, *SUPER_BLOCKS), changed_fields(d=lambda d: -d)),
    FormatMistake("the scale were without sign", (*BLOCKS_OF_32, *SUPER_BLOCKS), changed_fields(d=np.abs)),
    FormatMistake(
        "the scale were read as bfloat16", (*BLOCKS_OF_32, *SUPER_BLOCKS), changed_fields(d=scale_read_as_bf16)
    ),
    FormatMistake("each block had the next block's scale", (*BLOCKS_OF_32, *SUPER_BLOCKS), _next_blocks_scale),
    FormatMistake(
        "the minimum had the other sign",
        ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"),
        changed_fields(m=lambda m: -m, dmin=lambda m: -m),
    ),
    FormatMistake(
        "the minimum were ignored",
        ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"),
        changed_fields(m=lambda m: 0 * m, dmin=lambda m: 0 * m),
    ),
    FormatMistake("nothing were subtracted from the codes", ("Q4_0", "Q5_0", "Q6_K"), no_offset),
    FormatMistake("one less were subtracted from the codes", ("Q4_0", "Q5_0"), offset_by_one),
    FormatMistake(
        "one more were subtracted from the codes",
        ("Q4_0", "Q5_0"),
        lambda blocks, dequantize: 2 * dequantize(blocks) - offset_by_one(blocks, dequantize),
    ),
    FormatMistake("the high bits were ignored", ("Q5_0", "Q5_1", "Q5_K", "Q6_K"), changed_fields(qh=lambda q: 0 * q)),
    FormatMistake(
        "the high bits of the two halves were exchanged",
        ("Q5_0", "Q5_1"),
        changed_fields(qh=lambda q: np.roll(q, 2, axis=-1) if q.ndim > 1 else q >> 16 | q << 16),
    ),
    FormatMistake(
        "the high bits were in reverse order",
        ("Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q3_K"),
        changed_fields(qh=lambda q: _reverse_bits(q[:, ::-1]) if q.ndim > 1 else q, hmask=_reverse_bits),
    ),
    FormatMistake("the third bit were ignored", ("Q3_K",), changed_fields(hmask=lambda q: 0 * q)),
    FormatMistake("the third bit were inverted", ("Q3_K",), changed_fields(hmask=lambda q: ~q)),
    FormatMistake("the low four bits were exchanged with the next ones", ("Q6_K",), changed_fields(ql=swap_nibbles)),
    FormatMistake(
        "the upper six-bit scales and mins were exchanged", ("Q4_K", "Q5_K"), changed_fields(scales=_plain_six_bits)
    ),
    FormatMistake(
        "scales and mins were exchanged", ("Q4_K", "Q5_K"), changed_fields(scales=_scales_and_mins_exchanged)
    ),
    FormatMistake(
        "the upper two bits of the six-bit scales were ignored", ("Q4_K", "Q5_K"), changed_fields(scales=_no_upper_bits)
    ),
    FormatMistake("scales and mins were exchanged in their byte", ("Q2_K",), changed_fields(scales=swap_nibbles)),
    FormatMistake(
        "the scales of a super-block were reversed", ("Q6_K", "Q2_K"), changed_fields(scales=lambda s: s[:, ::-1])
    ),
    FormatMistake("the scales were without sign", ("Q6_K",), _unsigned_scales),
    FormatMistake("the codes were without sign", ("Q8_0",), _unsigned_bytes),
    FormatMistake(
        "each group of a super-block had the next group's scale",
        ("Q6_K", "Q2_K"),
        changed_fields(scales=lambda s: np.roll(s, -1, axis=-1)),
    ),
    FormatMistake("weights were twice as large", ALL_IN_BLOCKS, lambda blocks, dequantize: 2 * dequantize(blocks)),
    FormatMistake("weights were half as large", ALL_IN_BLOCKS, lambda blocks, dequantize: dequantize(blocks) / 2),
    FormatMistake("weights had the other sign", ALL_IN_BLOCKS, lambda blocks, dequantize: -dequantize(blocks)),
    FormatMistake("the bytes of a code group were reversed", NIBBLES, changed_fields(qs=lambda q: q[:, ::-1])),
)


def mistaken_format(mistake: FormatMistake) -> Change:
    """Dequantize weights of the mistake's formats as it does."""

    def changed(w: Tensor) -> Tensor:
        if w.format.name not in mistake.formats:
            return w
        dequantize = w.format.dequantize
        format = replace(w.format, dequantize=lambda blocks: mistake.dequantize(blocks, dequantize))
        return Tensor(w.name, format, w.shape, w.blocks)

    def change(s: Setting) -> Setting | None:
        model = s.model
        tensors = [x for blk in model.weights.blk for x in vars(blk).values() if isinstance(x, Tensor)]
        tensors += [x for x in vars(model.weights).values() if isinstance(x, Tensor)]
        if all(w.format.name not in mistake.formats for w in tensors):
            return None
        k = s.kernels
        return Setting(
            replace(
                k,
                matmul=lambda w, x: k.matmul(changed(w), x),
                experts=lambda w, x, chosen: k.experts(changed(w), x, chosen),
                rows=lambda w, ids: k.rows(changed(w), ids),
            ),
            model,
        )

    return change


FORMAT_CAUSES: tuple[Cause, ...] = tuple(
    Cause(mistake.sentence, PRODUCTS | INPUT, mistaken_format(mistake)) for mistake in FORMAT_MISTAKES
)
