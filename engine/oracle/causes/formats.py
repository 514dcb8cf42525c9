"""Usual mistakes in reading the blocks of quantized weights: each a changed dequantization.

Here are those of blocks of 32, and those that all formats share; super_blocks.py and codebooks.py have the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ....kernels import Tensor
from ....kernels.half import bf16_to_f32
from ..setting import Setting
from .block_fields import (
    ALL_IN_BLOCKS,
    MINIMA,
    NIBBLES,
    SCALED,
    Dequantize,
    FormatMistake,
    changed_fields,
    order,
    reverse_bits,
    runs_of,
    swap_nibbles,
)
from .cause import INPUT, PRODUCTS, Cause, Change
from .codebooks import CODEBOOK_MISTAKES
from .super_blocks import SUPER_BLOCK_MISTAKES


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


def _halves(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), 2, -1)[:, ::-1]


def _unwoven(x: np.ndarray) -> np.ndarray:
    """Split neighbours into the halves of a group."""
    run = 16 if x.shape[1] == 32 else 32
    return x.reshape(len(x), -1, run, 2).swapaxes(-1, -2)


def _unsigned_bytes(less: int) -> Callable[[np.ndarray, Dequantize], np.ndarray]:
    def wrong(blocks: np.ndarray, dequantize: Dequantize) -> np.ndarray:
        d = blocks["d"].astype(np.float32)[:, None]
        return np.asarray(d * (blocks["qs"].view(np.uint8).astype(np.float32) - less))

    return wrong


def _next_blocks_scale(blocks: np.ndarray, dequantize: Dequantize) -> np.ndarray:
    blocks = blocks.copy()
    blocks["d"] = np.roll(blocks["d"], -1)
    return dequantize(blocks)


def _exchanged(first: str, second: str) -> Callable[[np.ndarray, Dequantize], np.ndarray]:
    def wrong(blocks: np.ndarray, dequantize: Dequantize) -> np.ndarray:
        blocks = blocks.copy()
        blocks[first], blocks[second] = blocks[second].copy(), blocks[first].copy()
        return dequantize(blocks)

    return wrong


def _fifth_bits_in_pairs(qh: np.ndarray) -> np.ndarray:
    """Take bits 2 j and 2 j + 1 for the low and high code of byte j, where the format has bits j and j + 16."""
    bits = np.unpackbits(qh, axis=1, bitorder="little")  # [n, 32]
    return np.packbits(np.concatenate([bits[:, 0::2], bits[:, 1::2]], axis=1), axis=1, bitorder="little")


def _codes_alone(blocks: np.ndarray, dequantize: Dequantize) -> np.ndarray:
    """Dequantize with all scales 1."""
    blocks = blocks.copy()
    blocks["d"] = 1
    return dequantize(blocks)


FORMAT_MISTAKES: tuple[FormatMistake, ...] = (
    FormatMistake(
        "the halves of a block were exchanged (high four bits first)",
        NIBBLES,
        changed_fields(qs=swap_nibbles, ql=swap_nibbles),
    ),
    *runs_of(1),
    *runs_of(16),
    *runs_of(32),
    *runs_of(64, ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "TQ2_0")),
    *runs_of(128, ("Q4_K", "Q5_K", "Q6_K", "IQ4_XS")),
    FormatMistake("neighbours were split into the halves of a block", (*NIBBLES, "Q8_0"), order(_unwoven)),
    FormatMistake("the weights of a block were reversed", ALL_IN_BLOCKS, order(lambda x: x[:, ::-1])),
    FormatMistake("the halves of a block were exchanged", ALL_IN_BLOCKS, order(_halves)),
    FormatMistake("the scale had the other sign", SCALED, changed_fields(d=lambda d: -d)),
    FormatMistake("the scale were without sign", SCALED, changed_fields(d=np.abs)),
    FormatMistake("the scale were read as bfloat16", SCALED, changed_fields(d=scale_read_as_bf16)),
    FormatMistake("the scale were left out", SCALED, _codes_alone),
    FormatMistake(
        "the bytes of the scale were exchanged",
        SCALED,
        changed_fields(d=lambda d: np.clip(np.nan_to_num(d.byteswap()), -60000, 60000)),
    ),
    FormatMistake("each block had the next block's scale", SCALED, _next_blocks_scale),
    FormatMistake("the minimum had the other sign", MINIMA, changed_fields(m=lambda m: -m, dmin=lambda m: -m)),
    FormatMistake("the minimum were ignored", MINIMA, changed_fields(m=lambda m: 0 * m, dmin=lambda m: 0 * m)),
    FormatMistake("scale and minimum were exchanged", ("Q4_1", "Q5_1"), _exchanged("d", "m")),
    FormatMistake(
        "the scales of scales and of minima were exchanged", ("Q2_K", "Q4_K", "Q5_K"), _exchanged("d", "dmin")
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
        changed_fields(qh=lambda q: np.roll(q, 2, axis=-1)),
    ),
    FormatMistake("the high bits were taken in pairs", ("Q5_0", "Q5_1"), changed_fields(qh=_fifth_bits_in_pairs)),
    FormatMistake(
        "the high bits were in reverse order",
        ("Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q3_K"),
        changed_fields(qh=lambda q: reverse_bits(q[:, ::-1]), hmask=reverse_bits),
    ),
    FormatMistake("the codes were without sign", ("Q8_0",), _unsigned_bytes(0)),
    FormatMistake("the codes were unsigned bytes less 128", ("Q8_0",), _unsigned_bytes(128)),
    *SUPER_BLOCK_MISTAKES,
    *CODEBOOK_MISTAKES,
    FormatMistake("weights were twice as large", ALL_IN_BLOCKS, lambda blocks, dequantize: 2 * dequantize(blocks)),
    FormatMistake("weights were half as large", ALL_IN_BLOCKS, lambda blocks, dequantize: dequantize(blocks) / 2),
    FormatMistake("weights had the other sign", ALL_IN_BLOCKS, lambda blocks, dequantize: -dequantize(blocks)),
    FormatMistake(
        "the bytes of a code group were reversed",
        NIBBLES,
        changed_fields(qs=lambda q: q[:, ::-1], ql=lambda q: q[:, ::-1]),
    ),
    FormatMistake(
        "float16 were read as bfloat16",
        ("F16",),
        lambda blocks, dequantize: bf16_to_f32(blocks.view(np.uint16))[:, None],
    ),
    FormatMistake(
        "bfloat16 were read as float16",
        ("BF16",),
        lambda blocks, dequantize: np.nan_to_num(blocks.view(np.float16).astype(np.float32))[:, None],
    ),
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
