"""Quantization of a GGUF to another file type; the result equals llama-quantize's file byte for byte.

While the new file is written, two threads dequantize, check and quantize slices of a few megabytes.  So neither file
is ever held in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from typing import Any

import numpy as np

from ....kernels.quants import QuantFormat, dequantize, quantize
from ....kernels.tensor import Tensor
from ...errors import EngineError, RequestError
from ...gguf.file_type import file_type_name
from ...gguf.read import GGUF, U32
from ...gguf.write import Streamed
from .mixture import IDS, is_kept, tensor_formats

SOURCE_FORMATS = ("F32", "F16", "BF16")
QUANTIZATION_VERSION = 2  # ggml.h GGML_QNT_VERSION
SLICE_WEIGHTS = 1 << 20  # 4 MB as float32
N_THREADS = 2


def quantize_model(gguf: GGUF, file_type: str) -> tuple[dict[str, Any], list[Streamed]]:
    """Quantize `gguf` to `file_type`; return key-values and tensors for the writer, whose blocks are computed lazily.

    Raises: EngineError, with Ollama's text, for a quantized model; while the blocks are computed, RequestError for a
    weight that is not finite, or too large for its new format
    """
    quantizable = [tensor for tensor in gguf.tensors.values() if not is_kept(tensor)]
    if any(tensor.format.name not in SOURCE_FORMATS for tensor in quantizable):
        raise EngineError("quantization is only supported for F16, BF16 and F32 models")
    dropped = ("general.quantization_version", "general.file_type", "split.no", "split.count", "split.tensors.count")
    kv: dict[str, Any] = {key: value for key, value in gguf.typed.items() if key not in dropped}
    kv |= {"general.quantization_version": U32(QUANTIZATION_VERSION), "general.file_type": U32(IDS[file_type])}
    tensors = [
        Streamed(name, format, gguf.tensors[name].shape, quantized_slices(gguf.tensors[name], format))
        for name, format in tensor_formats(gguf, file_type).items()
    ]
    return kv, tensors


def has_file_type(gguf: GGUF, file_type: str) -> bool:
    """Return whether `gguf` already has `file_type`, in its metadata and in the formats of all tensors."""
    formats = tensor_formats(gguf, file_type)
    same = all(gguf.tensors[name].format is format for name, format in formats.items())
    return same and file_type_name(gguf.kv.get("general.file_type")) == file_type


def check_weights(gguf: GGUF) -> None:
    """Check that all weights are finite.  Raises: RequestError"""
    for tensor in gguf.tensors.values():
        for start, blocks in slices(tensor):
            check_blocks(tensor, start, blocks)


def quantized_slices(tensor: Tensor, format: QuantFormat) -> Iterator[np.ndarray]:
    """Yield the blocks of `tensor` in `format`, slice by slice; at most N_THREADS + 1 slices are pending."""

    def quantize_slice(start: int, blocks: np.ndarray) -> np.ndarray:
        check_blocks(tensor, start, blocks)
        if format is tensor.format:
            return blocks
        packed = quantize(format, dequantize(tensor.format, blocks))
        if (bad := _first_bad(format, packed)) is not None:
            weights = dequantize(tensor.format, blocks)[bad * format.block_size :][: format.block_size]
            largest = float(weights[np.argmax(np.abs(weights))])
            where = _index_of(tensor, start + bad * format.block_size)
            raise RequestError(
                f"tensor {tensor.name!r} has weight {largest:g} near {where}, too large for {format.name}"
            )
        return packed

    with ThreadPoolExecutor(N_THREADS) as pool:
        pending: deque[Future[np.ndarray]] = deque()
        for start, blocks in slices(tensor):
            pending.append(pool.submit(quantize_slice, start, blocks))
            if len(pending) > N_THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def slices(tensor: Tensor) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the index of the first weight of each slice, and the slice's blocks [n]."""
    blocks, step = tensor.blocks.reshape(-1), SLICE_WEIGHTS // tensor.format.block_size
    for i in range(0, len(blocks), step):
        yield i * tensor.format.block_size, blocks[i : i + step]


def check_blocks(tensor: Tensor, start: int, blocks: np.ndarray) -> None:
    """Check that all weights of `blocks` are finite; `start` is the index of their first weight.

    Raises: RequestError
    """
    if (bad := _first_bad(tensor.format, blocks)) is not None:
        where = _index_of(tensor, start + bad * tensor.format.block_size)
        raise RequestError(f"tensor {tensor.name!r} has a weight that is not finite at {where}")


def _first_bad(format: QuantFormat, blocks: np.ndarray) -> int | None:
    """Return the index of the first of `blocks` [n] with a weight that is not finite, or None.

    In most formats it suffices to check the scales.
    """
    fields = [blocks] if blocks.dtype.names is None else [blocks[name] for name in blocks.dtype.names]
    floats = [field for field in fields if field.dtype.kind == "f"]
    if not floats and format.type.name not in ("I8", "I16", "I32", "I64"):
        floats = [dequantize(format, blocks[:, None])]
    bad = np.zeros(len(blocks), bool)
    for field in floats:
        bad |= ~np.isfinite(field if field.ndim == 1 else field.reshape(len(blocks), -1)).reshape(len(blocks), -1).all(
            1
        )
    return int(np.argmax(bad)) if bad.any() else None


def _index_of(tensor: Tensor, i: int) -> list[int]:
    """Return the index of weight `i` along each axis."""
    return [int(index) for index in np.unravel_index(min(i, prod(tensor.shape) - 1), tensor.shape)]
