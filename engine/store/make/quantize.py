"""Another file type for a model: its GGUF with every tensor in the format that llama-quantize would choose.

Slices of a few megabytes are unpacked, checked and packed on two threads as the new file is written, so neither file
is ever in memory.  The result is llama-quantize's file, byte for byte.
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

SOURCES = ("F32", "F16", "BF16")
QUANTIZATION_VERSION = 2  # ggml.h GGML_QNT_VERSION
SLICE = 1 << 20  # weights; 4 MB as float32
THREADS = 2


def quantized(gguf: GGUF, file_type: str) -> tuple[dict[str, Any], list[Streamed]]:
    """The key-values and tensors of `gguf` as `file_type`, for the writer; the blocks are made when they are asked for.

    Raises: EngineError in Ollama's words for a model that is quantized already; while the blocks are made, RequestError
    for a weight that is not finite, or is none in its new format
    """
    quantizable = [tensor for tensor in gguf.tensors.values() if not is_kept(tensor)]
    if gguf.unsupported or any(tensor.format.name not in SOURCES for tensor in quantizable):
        raise EngineError("quantization is only supported for F16, BF16 and F32 models")
    dropped = ("general.quantization_version", "general.file_type", "split.no", "split.count", "split.tensors.count")
    kv: dict[str, Any] = {key: value for key, value in gguf.typed.items() if key not in dropped}
    kv |= {"general.quantization_version": U32(QUANTIZATION_VERSION), "general.file_type": U32(IDS[file_type])}
    tensors = [
        Streamed(name, format, gguf.tensors[name].shape, _pieces(gguf.tensors[name], format))
        for name, format in tensor_formats(gguf, file_type).items()
    ]
    return kv, tensors


def is_already(gguf: GGUF, file_type: str) -> bool:
    """Whether quantizing `gguf` to `file_type` would change no weight and no word about them."""
    formats = tensor_formats(gguf, file_type)
    same = all(gguf.tensors[name].format is format for name, format in formats.items())
    return same and file_type_name(gguf.kv.get("general.file_type")) == file_type


def check_weights(gguf: GGUF) -> None:
    """Raises: RequestError for a tensor with a weight that is not finite"""
    for tensor in gguf.tensors.values():
        for start, blocks in slices(tensor):
            check_blocks(tensor, start, blocks)


def _pieces(tensor: Tensor, format: QuantFormat) -> Iterator[np.ndarray]:
    """The blocks of `tensor` in `format`, a slice at a time; at most a few slices are on their way at once."""

    def piece(start: int, blocks: np.ndarray) -> np.ndarray:
        check_blocks(tensor, start, blocks)
        if format is tensor.format:
            return blocks
        packed = quantize(format, dequantize(tensor.format, blocks))
        if (bad := _first_bad(format, packed)) is not None:
            weights = dequantize(tensor.format, blocks)[bad * format.block_size :][: format.block_size]
            largest = float(weights[np.argmax(np.abs(weights))])
            where = _place(tensor, start + bad * format.block_size)
            raise RequestError(
                f"tensor {tensor.name!r} has weight {largest:g} near {where}, too large for {format.name}"
            )
        return packed

    with ThreadPoolExecutor(THREADS) as pool:
        begun: deque[Future[np.ndarray]] = deque()
        for start, blocks in slices(tensor):
            begun.append(pool.submit(piece, start, blocks))
            if len(begun) > THREADS:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


def slices(tensor: Tensor) -> Iterator[tuple[int, np.ndarray]]:
    """The first weight of each slice, and the slice's blocks [n]."""
    blocks, step = tensor.blocks.reshape(-1), SLICE // tensor.format.block_size
    for i in range(0, len(blocks), step):
        yield i * tensor.format.block_size, blocks[i : i + step]


def check_blocks(tensor: Tensor, start: int, blocks: np.ndarray) -> None:
    """Raises: RequestError for a weight of `blocks` that is not finite; their first weight is number `start`."""
    if (bad := _first_bad(tensor.format, blocks)) is not None:
        where = _place(tensor, start + bad * tensor.format.block_size)
        raise RequestError(f"tensor {tensor.name!r} has a weight that is not finite at {where}")


def _first_bad(format: QuantFormat, blocks: np.ndarray) -> int | None:
    """The first of `blocks` [n] with a weight that is not finite; of most formats only a scale can make one so."""
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


def _place(tensor: Tensor, i: int) -> list[int]:
    """The axes' indices of weight number `i`."""
    return [int(index) for index in np.unravel_index(min(i, prod(tensor.shape) - 1), tensor.shape)]
