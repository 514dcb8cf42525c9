"""Quantization formats: how a GGUF stores weights, and what the bytes mean.

    block   block_size weights that share a scale; block_bytes long
    FORMATS     by GGMLType id;  FORMATS_BY_NAME  by ggml's name ("Q4_0")

Adding a format: one section in a file of this folder, one row in the table below.  Tests loop over FORMATS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

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
