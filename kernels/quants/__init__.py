"""Quantization formats: how a GGUF stores weights.

    block   block_size weights that share a scale; block_bytes long
    FORMATS     by GGMLType id;  FORMATS_BY_NAME  by ggml's name ("Q4_0")

To add a format: one section in a file of this folder, one row in the table below.  Tests loop over FORMATS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import block32, floats, fp4, iq, k, ternary
from .types import GGMLType


class CannotQuantize(ValueError):
    """The format can be dequantized but not quantized."""


@dataclass(frozen=True)
class QuantFormat:
    """A storage format for weights.

    layout      a block's fields, drawn as bytes in the format's section; itemsize == block_bytes
    dequantize  blocks [n] of layout -> f32 [n, block_size]
    quantize    f32 [n, block_size], finite -> blocks [n] of layout, byte for byte as llama-quantize writes them;
                raises CannotQuantize if can_quantize is False
    dot_with    ggml's activation format for dot products with this one ("Q8_0", "Q8_1", "Q8_K", "F16", "F32", ...)
    """

    type: GGMLType
    block_size: int
    layout: np.dtype
    dequantize: Callable[[np.ndarray], np.ndarray]
    quantize: Callable[[np.ndarray], np.ndarray]
    dot_with: str
    can_quantize: bool = True

    @property
    def name(self) -> str:
        return self.type.name

    @property
    def block_bytes(self) -> int:
        return self.layout.itemsize


def _format(name, block_size, block_bytes, layout, dequantize, quantize, dot_with) -> QuantFormat:
    """Return a row of the table.  Infinite scales and weights outside F16's range are computed without a warning."""
    assert layout.itemsize == block_bytes, name
    quiet = np.errstate(all="ignore")

    def refuse(x):
        raise CannotQuantize(f"cannot quantize to {name}: its encoder, a codebook search, is not implemented")

    encode = quiet(quantize) if quantize else refuse
    return QuantFormat(GGMLType[name], block_size, layout, quiet(dequantize), encode, dot_with, quantize is not None)


# fmt: off
_ROWS = (
    #        name    weights bytes  layout  dequantize  quantize  dot_with
    _format("F32",       1,   4, floats.F32,    floats.dequantize_number,  floats.quantize_number(floats.F32),  "F32"),
    _format("F64",       1,   8, floats.F64,    floats.dequantize_number,  floats.quantize_number(floats.F64),  "F32"),
    _format("F16",       1,   2, floats.F16,    floats.dequantize_number,  floats.quantize_number(floats.F16),  "F16"),
    _format("BF16",      1,   2, floats.BF16,   floats.dequantize_bf16,    floats.quantize_bf16,                "BF16"),
    _format("I8",        1,   1, floats.I8,     floats.dequantize_number,  floats.quantize_number(floats.I8),   "F32"),
    _format("I16",       1,   2, floats.I16,    floats.dequantize_number,  floats.quantize_number(floats.I16),  "F32"),
    _format("I32",       1,   4, floats.I32,    floats.dequantize_number,  floats.quantize_number(floats.I32),  "F32"),
    _format("I64",       1,   8, floats.I64,    floats.dequantize_number,  floats.quantize_number(floats.I64),  "F32"),
    _format("Q4_0",     32,  18, block32.Q4_0,  block32.dequantize_q4_0,   block32.quantize_q4_0,               "Q8_0"),
    _format("Q4_1",     32,  20, block32.Q4_1,  block32.dequantize_q4_1,   block32.quantize_q4_1,               "Q8_1"),
    _format("Q5_0",     32,  22, block32.Q5_0,  block32.dequantize_q5_0,   block32.quantize_q5_0,               "Q8_0"),
    _format("Q5_1",     32,  24, block32.Q5_1,  block32.dequantize_q5_1,   block32.quantize_q5_1,               "Q8_1"),
    _format("Q8_0",     32,  34, block32.Q8_0,  block32.dequantize_q8_0,   block32.quantize_q8_0,               "Q8_0"),
    _format("Q8_1",     32,  36, block32.Q8_1,  block32.dequantize_q8_1,   block32.quantize_q8_1,               "Q8_1"),
    _format("Q2_K",    256,  84, k.Q2_K,        k.dequantize_q2_k,         k.quantize_q2_k,                     "Q8_K"),
    _format("Q3_K",    256, 110, k.Q3_K,        k.dequantize_q3_k,         k.quantize_q3_k,                     "Q8_K"),
    _format("Q4_K",    256, 144, k.Q4_K,        k.dequantize_q4_k,         k.quantize_q4_k,                     "Q8_K"),
    _format("Q5_K",    256, 176, k.Q5_K,        k.dequantize_q5_k,         k.quantize_q5_k,                     "Q8_K"),
    _format("Q6_K",    256, 210, k.Q6_K,        k.dequantize_q6_k,         k.quantize_q6_k,                     "Q8_K"),
    _format("Q8_K",    256, 292, k.Q8_K,        k.dequantize_q8_k,         k.quantize_q8_k,                     "Q8_K"),
    _format("IQ1_S",   256,  50, iq.IQ1_S,      iq.dequantize_iq1_s,       None,                                "Q8_K"),
    _format("IQ1_M",   256,  56, iq.IQ1_M,      iq.dequantize_iq1_m,       None,                                "Q8_K"),
    _format("IQ2_XXS", 256,  66, iq.IQ2_XXS,    iq.dequantize_iq2_xxs,     None,                                "Q8_K"),
    _format("IQ2_XS",  256,  74, iq.IQ2_XS,     iq.dequantize_iq2_xs,      None,                                "Q8_K"),
    _format("IQ2_S",   256,  82, iq.IQ2_S,      iq.dequantize_iq2_s,       None,                                "Q8_K"),
    _format("IQ3_XXS", 256,  98, iq.IQ3_XXS,    iq.dequantize_iq3_xxs,     None,                                "Q8_K"),
    _format("IQ3_S",   256, 110, iq.IQ3_S,      iq.dequantize_iq3_s,       None,                                "Q8_K"),
    _format("IQ4_NL",   32,  18, iq.IQ4_NL,     iq.dequantize_iq4_nl,      iq.quantize_iq4_nl,                  "Q8_0"),
    _format("IQ4_XS",  256, 136, iq.IQ4_XS,     iq.dequantize_iq4_xs,      iq.quantize_iq4_xs,                  "Q8_K"),
    _format("TQ1_0",   256,  54, ternary.TQ1_0, ternary.dequantize_tq1_0,  ternary.quantize_tq1_0,              "Q8_K"),
    _format("TQ2_0",   256,  66, ternary.TQ2_0, ternary.dequantize_tq2_0,  ternary.quantize_tq2_0,              "Q8_K"),
    _format("Q1_0",    128,  18, ternary.Q1_0,  ternary.dequantize_q1_0,   ternary.quantize_q1_0,               "Q8_0"),
    _format("Q2_0",     64,  18, ternary.Q2_0,  ternary.dequantize_q2_0,   ternary.quantize_q2_0,               "Q8_0"),
    _format("MXFP4",    32,  17, fp4.MXFP4,     fp4.dequantize_mxfp4,      fp4.quantize_mxfp4,                  "Q8_0"),
    _format("NVFP4",    64,  36, fp4.NVFP4,     fp4.dequantize_nvfp4,      fp4.quantize_nvfp4,                  "Q8_0"),
)
# fmt: on

FORMATS: dict[GGMLType, QuantFormat] = {format.type: format for format in _ROWS}
FORMATS_BY_NAME: dict[str, QuantFormat] = {format.name: format for format in _ROWS}


def quantize(format: QuantFormat, x: np.ndarray) -> np.ndarray:
    """Quantize `x` to blocks of `format`.  f32 [..., n] -> blocks [..., n / block_size]

    Raises: ValueError if n is not a multiple of the block size; CannotQuantize.
    """
    x = np.asarray(x, np.float32)
    if x.shape[-1] % format.block_size:
        raise ValueError(f"{format.name} has {format.block_size} weights per block; {x.shape[-1]} is not a multiple")
    rows = x.reshape(-1, format.block_size)
    step = 65536 // format.block_size  # small enough that the searches' temporaries stay in the cache
    blocks = np.empty(len(rows), format.layout)
    for i in range(0, len(rows), step):
        blocks[i : i + step] = format.quantize(rows[i : i + step])
    return blocks.reshape(*x.shape[:-1], x.shape[-1] // format.block_size)


def dequantize(format: QuantFormat, blocks: np.ndarray) -> np.ndarray:
    """Dequantize blocks of `format`.  blocks [..., n / block_size] -> f32 [..., n]"""
    return format.dequantize(blocks.reshape(-1)).reshape(*blocks.shape[:-1], blocks.shape[-1] * format.block_size)
