"""Quantization formats: how a GGUF stores weights, and what the bytes mean.

    block   block_size weights that share a scale; block_bytes long
    FORMATS     by GGMLType id;  FORMATS_BY_NAME  by ggml's name ("Q4_0")

Adding a format: one section in a file of this folder, one row in the table below.  Tests loop over FORMATS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import block32, floats, k
from .types import GGMLType


@dataclass(frozen=True)
class QuantFormat:
    """One way to store weights.

    layout      a block's fields, drawn as bytes in the format's own section; itemsize == block_bytes
    dequantize  blocks [n] of layout -> f32 [n, block_size]
    quantize    f32 [n, block_size] -> blocks [n] of layout, byte for byte as llama-quantize does
    dot_with    ggml's activation format for this one's dot products ("Q8_0", "Q8_1", "Q8_K", "F16", "F32", ...)
    """

    type: GGMLType
    block_size: int
    layout: np.dtype
    dequantize: Callable[[np.ndarray], np.ndarray]
    quantize: Callable[[np.ndarray], np.ndarray]
    dot_with: str

    @property
    def name(self) -> str:
        return self.type.name

    @property
    def block_bytes(self) -> int:
        return self.layout.itemsize


def _format(name, block_size, block_bytes, layout, dequantize, quantize, dot_with) -> QuantFormat:
    """A row of the table.  Infinite scales and weights beyond F16 are values like others here, never a warning."""
    assert layout.itemsize == block_bytes, name
    quiet = np.errstate(all="ignore")
    return QuantFormat(GGMLType[name], block_size, layout, quiet(dequantize), quiet(quantize), dot_with)


# fmt: off
_ROWS = (
    # name      weights bytes  layout        dequantize                quantize                     dot_with
    _format("F32",   1,   4, floats.F32,   floats.dequantize_number, floats.quantize_number(floats.F32), "F32"),
    _format("F64",   1,   8, floats.F64,   floats.dequantize_number, floats.quantize_number(floats.F64), "F32"),
    _format("F16",   1,   2, floats.F16,   floats.dequantize_number, floats.quantize_number(floats.F16), "F16"),
    _format("BF16",  1,   2, floats.BF16,  floats.dequantize_bf16,   floats.quantize_bf16,               "BF16"),
    _format("I8",    1,   1, floats.I8,    floats.dequantize_number, floats.quantize_number(floats.I8),  "F32"),
    _format("I16",   1,   2, floats.I16,   floats.dequantize_number, floats.quantize_number(floats.I16), "F32"),
    _format("I32",   1,   4, floats.I32,   floats.dequantize_number, floats.quantize_number(floats.I32), "F32"),
    _format("I64",   1,   8, floats.I64,   floats.dequantize_number, floats.quantize_number(floats.I64), "F32"),
    _format("Q4_0", 32,  18, block32.Q4_0, block32.dequantize_q4_0,  block32.quantize_q4_0,              "Q8_0"),
    _format("Q4_1", 32,  20, block32.Q4_1, block32.dequantize_q4_1,  block32.quantize_q4_1,              "Q8_1"),
    _format("Q5_0", 32,  22, block32.Q5_0, block32.dequantize_q5_0,  block32.quantize_q5_0,              "Q8_0"),
    _format("Q5_1", 32,  24, block32.Q5_1, block32.dequantize_q5_1,  block32.quantize_q5_1,              "Q8_1"),
    _format("Q8_0", 32,  34, block32.Q8_0, block32.dequantize_q8_0,  block32.quantize_q8_0,              "Q8_0"),
    _format("Q8_1", 32,  36, block32.Q8_1, block32.dequantize_q8_1,  block32.quantize_q8_1,              "Q8_1"),
    _format("Q2_K", 256,  84, k.Q2_K,      k.dequantize_q2_k,        k.quantize_q2_k,                    "Q8_K"),
    _format("Q3_K", 256, 110, k.Q3_K,      k.dequantize_q3_k,        k.quantize_q3_k,                    "Q8_K"),
    _format("Q4_K", 256, 144, k.Q4_K,      k.dequantize_q4_k,        k.quantize_q4_k,                    "Q8_K"),
    _format("Q5_K", 256, 176, k.Q5_K,      k.dequantize_q5_k,        k.quantize_q5_k,                    "Q8_K"),
    _format("Q6_K", 256, 210, k.Q6_K,      k.dequantize_q6_k,        k.quantize_q6_k,                    "Q8_K"),
    _format("Q8_K", 256, 292, k.Q8_K,      k.dequantize_q8_k,        k.quantize_q8_k,                    "Q8_K"),
)
# fmt: on

FORMATS = {format.type: format for format in _ROWS}
FORMATS_BY_NAME = {format.name: format for format in _ROWS}


def quantize(format: QuantFormat, x: np.ndarray) -> np.ndarray:
    """`x` as blocks of `format`.  f32 [..., n] -> blocks [..., n / block_size]

    Raises: ValueError where n is no multiple of the block size.
    """
    x = np.asarray(x, np.float32)
    if x.shape[-1] % format.block_size:
        raise ValueError(f"{format.name} stores {format.block_size} weights a block; {x.shape[-1]} do not divide")
    rows = x.reshape(-1, format.block_size)
    step = 65536 // format.block_size  # the searches' temporaries stay in the cache, whatever the size of x
    blocks = [format.quantize(rows[i : i + step]) for i in range(0, len(rows), step)]
    return np.concatenate([np.empty(0, format.layout), *blocks]).reshape(*x.shape[:-1], -1)


def dequantize(format: QuantFormat, blocks: np.ndarray) -> np.ndarray:
    """What `blocks` mean.  blocks [..., n / block_size] -> f32 [..., n]"""
    return format.dequantize(blocks.reshape(-1)).reshape(*blocks.shape[:-1], -1)
