"""Items about blocks: each format dequantized, and a product of its weights with 8-bit or 16-bit activations."""

from __future__ import annotations

from collections.abc import Iterator
from math import fsum

import numpy as np

from ....kernels.quants import FORMATS_BY_NAME, QuantFormat, dequantize
from ....kernels.rounding import round_activations
from ..injection import SHAKE
from .item import Item, rms
from .numbers import Numbers

PATTERNS = (0x00, 0xFF, 0x0F, 0xF0, 0x55, 0xAA, 0x01, 0x80)
SCALES = (0.0, 2.0**-24, 2.0**-14, 1.0, -1.0, 1000.0)  # zero, the least subnormal and normal, both signs, a large one
N_RANDOM_BYTES = 2048  # of blocks, in each format
WITHOUT_PRODUCT = ("F64", "I8", "I16", "I32", "I64", "Q8_1", "Q8_K")  # ggml multiplies no weights of these types
DOT_BITS = 10.0  # float16 sums; the activations are exact in the type that the format is multiplied with
WEIGHT_BITS = 10.5  # weights in float16


def block_items() -> Iterator[Item]:
    """Yield two items for each format."""
    for format in FORMATS_BY_NAME.values():
        yield dequantized(format)
        if format.name not in WITHOUT_PRODUCT:
            yield product(format)


def finite(format: QuantFormat, blocks: np.ndarray) -> np.ndarray:
    """Return the blocks whose weights are finite."""
    with np.errstate(all="ignore"):
        return np.asarray(blocks[np.isfinite(dequantize(format, blocks[:, None])).all(axis=1)])


def edge_blocks(format: QuantFormat) -> np.ndarray:
    """Return blocks of one byte pattern each, and the same with edge cases of their scales."""
    patterns = np.repeat(np.array(PATTERNS, np.uint8)[:, None], format.block_bytes, axis=1)
    found = [patterns.view(format.layout)[:, 0]]
    halves = [name for name in format.layout.names or () if format.layout[name] == np.dtype("<f2")]
    for scale in SCALES if halves else ():
        blocks = found[0].copy()
        for name in halves:
            blocks[name] = scale
        found.append(blocks)
    return finite(format, np.concatenate(found))


def finite_blocks(format: QuantFormat, n: int, numbers: Numbers, bound: float = np.inf) -> np.ndarray:
    """Return random blocks whose weights are finite and, with a bound, of moderate size.  -> format.layout [n]"""
    if format.layout.names is None and format.layout.kind == "f":
        return np.asarray(numbers.normal(n).astype(format.layout))
    found = np.empty(0, format.layout)
    while len(found) < n:
        blocks = numbers.bytes(8 * n, format.block_bytes).view(format.layout)[:, 0]
        if bound < np.inf:
            for name in format.layout.names or ():
                if format.layout[name] == np.dtype("<f2"):
                    blocks[name] = numbers.uniform(len(blocks)) / 16
        blocks = finite(format, blocks)
        if bound < np.inf:
            size = np.abs(dequantize(format, blocks[:, None])).max(axis=1)
            blocks = blocks[(size < bound) & (size > 1 / bound)]
        found = np.concatenate([found, blocks])
    return found[:n]


def dequantized(format: QuantFormat) -> Item:
    """Return random and edge blocks, and their weights."""
    numbers = Numbers(f"dequantize {format.name}")
    n = max(8, N_RANDOM_BYTES // format.block_bytes)
    blocks = np.concatenate([edge_blocks(format), finite_blocks(format, n, numbers)])
    y = dequantize(format, blocks[:, None])
    return Item(
        f"dequantize/{format.name}",
        f"{len(blocks) - n} edge blocks, then {n} of random bytes; exact in float32",
        {"blocks": np.ascontiguousarray(blocks).view(np.uint8).reshape(len(blocks), format.block_bytes)},
        {"type": format.name, "block_size": format.block_size},
        {"y": y},
        {"y": (SHAKE * rms(y)).astype(np.float32)},
        WEIGHT_BITS,
    )


def product(format: QuantFormat) -> Item:
    """Return weights, activations that their format's partner holds exactly, and the product."""
    numbers = Numbers(f"dot {format.name}")
    n_tok, n_row, n = 3, 5, max(2 * format.block_size, 256)
    blocks = finite_blocks(format, n_row * n // format.block_size, numbers, bound=64.0).reshape(n_row, -1)
    x = numbers.normal(n_tok, n).astype(np.float32)
    for _ in range(4):  # until rounding again changes nothing
        x = round_activations(x, format.dot_with)
    w = dequantize(format, blocks)
    terms = w[None].astype(np.float64) * x[:, None].astype(np.float64)  # exact: 24 bits each
    y = np.array([[fsum(row) for row in token] for token in terms])
    moved = SHAKE * np.sqrt(np.array([fsum((token**2).ravel()) / n_row for token in terms]) + rms(y) ** 2)
    return Item(
        f"dot/{format.name}",
        f"y = w x, w of {format.name} and x exact in {format.dot_with}, its partner in ggml; sums correctly rounded",
        {"w": np.ascontiguousarray(blocks).view(np.uint8).reshape(n_row, -1), "x": x},
        {"type": format.name, "dot_with": format.dot_with, "n": n},
        {"y": y},
        {"y": moved.astype(np.float32)},
        DOT_BITS,
    )
