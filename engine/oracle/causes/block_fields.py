"""A mistake in reading blocks: changed fields, codes in other places, or changed weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ....kernels.quants import FORMATS, FORMATS_BY_NAME
from ....kernels.quants.bits import pack, unpack

Dequantize = Callable[[np.ndarray], np.ndarray]
Wrong = Callable[[np.ndarray, Dequantize], np.ndarray]
SUPER_BLOCKS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
MINIMA = ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K")
ALL_IN_BLOCKS = tuple(format.name for format in FORMATS.values() if format.block_size > 1)
SCALED = tuple(
    name
    for name in ALL_IN_BLOCKS
    if "d" in (FORMATS_BY_NAME[name].layout.names or ()) and FORMATS_BY_NAME[name].layout["d"] == "<f2"
)
PLACES = {  # format -> field of the codes, bits of a code, bytes in a run (kernels/quants/bits.py)
    **dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS", "MXFP4"), ("qs", 4, 16)),
    "Q4_K": ("qs", 4, 32),
    "Q5_K": ("qs", 4, 32),
    "NVFP4": ("qs", 4, 8),
    "Q6_K": ("ql", 4, 64),
    "Q2_K": ("qs", 2, 32),
    "Q3_K": ("qs", 2, 32),
    "TQ2_0": ("qs", 2, 32),
    "Q2_0": ("qs", 2, 1),
    "Q1_0": ("qs", 1, 1),
}
HIGH_PLACES = {"Q5_K": ("qh", 1, 32), "Q3_K": ("hmask", 1, 32), "Q6_K": ("qh", 2, 32), "IQ2_S": ("qh", 2, 1)}
NIBBLES = tuple(name for name, (_, bits, _) in PLACES.items() if bits == 4)


@dataclass(frozen=True, eq=False)
class FormatMistake:
    """A mistake.

    sentence     completes "as if ..."
    formats      names of the formats in which it occurs
    dequantize   blocks and the right function -> the wrong weights
    """

    sentence: str
    formats: tuple[str, ...]
    dequantize: Wrong


def changed_fields(**changes: Callable[[np.ndarray], np.ndarray]) -> Wrong:
    """Change fields of the blocks before they are dequantized; fields that a format lacks are left out."""

    def wrong(blocks: np.ndarray, dequantize: Dequantize) -> np.ndarray:
        blocks = blocks.copy()
        for name, change in changes.items():
            if name in (blocks.dtype.names or ()):
                blocks[name] = change(blocks[name])
        return dequantize(blocks)

    return wrong


def runs_of(run: int, formats: tuple[str, ...] = (), high: bool = False) -> list[FormatMistake]:
    """Take codes for packed in runs of `run` bytes: 1 is plain order, byte by byte.  -> a mistake for each layout

    high   the field of high bits
    """
    places: dict[tuple[str, int, int], list[str]] = {}
    for name, place in (HIGH_PLACES if high else PLACES).items():
        n_bytes = FORMATS_BY_NAME[name].layout[place[0]].itemsize
        if place[2] != run and n_bytes % run == 0 and (not formats or name in formats):
            places.setdefault(place, []).append(name)

    def repacked(field: str, bits: int, right: int) -> Wrong:
        return changed_fields(**{field: lambda x: pack(unpack(x, bits, run), bits, right)})

    def sentence(field: str, bits: int, right: int) -> str:
        run_of = {n: f"in runs of {n} bytes" if n > 1 else "in plain order" for n in (run, right)}
        neighbours = ", neighbours in one byte" if run == 1 else ""
        return f"the {bits}-bit codes of {field} were packed {run_of[run]}{neighbours}, not {run_of[right]}"

    return [FormatMistake(sentence(*place), tuple(names), repacked(*place)) for place, names in places.items()]


def order(change: Callable[[np.ndarray], np.ndarray]) -> Wrong:
    """Reorder the weights of each block.  change: f32 [n, block] -> f32 [n, block] or any shape of as many numbers"""

    def wrong(blocks: np.ndarray, dequantize: Dequantize) -> np.ndarray:
        x = dequantize(blocks)
        return np.ascontiguousarray(change(x)).reshape(x.shape)

    return wrong


def swap_nibbles(x: np.ndarray) -> np.ndarray:
    return x >> 4 | x << 4


def reverse_bits(x: np.ndarray) -> np.ndarray:
    return np.packbits(np.unpackbits(x[..., None], axis=-1)[..., ::-1], axis=-1)[..., 0]
