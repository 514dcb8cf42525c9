"""GGUF files of real shapes with random weights, for speed alone: what such a model says means nothing.

    python -m numllama.benchmarks.models SOURCE.gguf Q4_K OUT.gguf

takes key-values and shapes from SOURCE and replaces its quantized matrices by random valid blocks of another format.
"""

from __future__ import annotations

import sys

import numpy as np

from ..engine.gguf import GGUF
from ..engine.gguf_write import write_gguf
from ..kernels.quants import FORMATS_BY_NAME, QuantFormat, quantize


def random_blocks(format: QuantFormat, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Blocks of `format` for an array of `shape`: some quantized rows, drawn again and again."""
    rng = np.random.default_rng(seed)
    rows = quantize(format, rng.standard_normal((64, shape[-1]), np.float32) * np.float32(0.02))
    return rows[rng.integers(0, 64, int(np.prod(shape[:-1])))].reshape(*shape[:-1], -1)


def requantized(source: str, format: QuantFormat, out: str) -> None:
    """`source` with random blocks of `format` in place of every quantized matrix."""
    gguf = GGUF.open(source)
    tensors = (
        (name, format, w.shape, random_blocks(format, w.shape))
        if w.format.block_size > 1
        else (name, w.format, w.shape, w.blocks)
        for name, w in gguf.tensors.items()
    )
    write_gguf(out, gguf.typed, list(tensors))


if __name__ == "__main__":
    source, name, out = sys.argv[1:]
    requantized(source, FORMATS_BY_NAME[name], out)
