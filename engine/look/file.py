"""A model file to look at: its tensors by bytes, and one block of a tensor in bytes, fields and numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...kernels.quants import FORMATS_BY_NAME, CannotQuantize, QuantFormat
from ...kernels.tensor import Tensor
from ..errors import RequestError
from ..gguf.read import GGUF
from ..gguf.strings import Strings

OTHER_FORMATS = ("F16", "Q8_0", "Q5_0", "Q4_0")  # a block's numbers are rounded to each of these, to compare the errors
MAX_KEYS = 200  # key-values that are listed
MAX_TEXT = 200  # characters of a value


def tensor_map(gguf: GGUF) -> dict[str, Any]:
    """Return the file's key-values, in short, and its tensors with name, format, shape and bytes."""
    tensors, arch = gguf.tensors.values(), gguf.text("general.architecture")
    heads = gguf.kv.get(f"{arch}.attention.head_count", 0)
    formats: dict[str, dict[str, Any]] = {}
    for tensor in tensors:
        about = formats.setdefault(tensor.format.name, format_facts(tensor.format) | {"n": 0, "bytes": 0})
        about["n"] += 1
        about["bytes"] += tensor.nbytes
    return {
        "architecture": arch,
        "n_layer": gguf.kv.get(f"{arch}.block_count", 0),
        "n_head": int(np.max(heads)),
        "n_vocab": len(gguf.kv.get("tokenizer.ggml.tokens", ())),
        "n_weight": sum(tensor.n_elements for tensor in tensors),
        "bytes": sum(tensor.nbytes for tensor in tensors),
        "file_bytes": sum(file.nbytes for file in gguf.mapped),
        "keys": {key: _short(value) for key, value in list(gguf.kv.items())[:MAX_KEYS]},
        "formats": formats,
        "tensors": [
            {
                "name": t.name,
                "format": t.format.name,
                "shape": list(t.shape),
                "bytes": t.nbytes,
                "blocks": t.blocks.size,
            }
            for t in tensors
        ],
    }


def format_facts(format: QuantFormat) -> dict[str, Any]:
    """Return a format's block in numbers: weights and bytes of it, bits of a weight, its fields."""
    return {
        "block_size": format.block_size,
        "block_bytes": format.block_bytes,
        "bits_per_weight": 8 * format.block_bytes / format.block_size,
        "fields": _fields(format.layout),
    }


def block_facts(gguf: GGUF, name: str, index: int) -> dict[str, Any]:
    """Return block `index` of tensor `name`: its bytes, its fields, its numbers, and the numbers in other formats.

    Raises: RequestError for an unknown tensor or block
    """
    tensor = gguf.tensors.get(name)
    if tensor is None:
        raise RequestError(f"the model has no tensor '{name}'")
    blocks = tensor.blocks.reshape(-1)
    if not 0 <= index < len(blocks):
        raise RequestError(f"tensor '{name}' has no block {index}, expected 0 to {len(blocks) - 1}")
    block = np.ascontiguousarray(blocks[index : index + 1])
    numbers = tensor.format.dequantize(block).reshape(-1)
    return {
        "tensor": name,
        "index": index,
        "place": _place(tensor, index),
        "format": tensor.format.name,
        **format_facts(tensor.format),
        "bytes": list(block.tobytes()),
        "numbers": [float(x) for x in numbers],
        "values": {key: _value(block[key][0]) for key in block.dtype.names or ()},
        "rounded": {other: found for other in OTHER_FORMATS if (found := rounded_to(numbers, other))},
    }


def rounded_to(numbers: np.ndarray, name: str) -> dict[str, Any] | None:
    """Round `numbers` f32 [n] to a format and back; None if they are not whole blocks of it.

    -> its bits per weight, the numbers, and the root mean square of the errors
    """
    format = FORMATS_BY_NAME[name]
    if len(numbers) % format.block_size or not np.isfinite(numbers).all():
        return None
    try:
        blocks = format.quantize(numbers.reshape(-1, format.block_size).astype(np.float32))
    except CannotQuantize:
        return None
    back = format.dequantize(blocks).reshape(-1)
    error = float(np.sqrt(np.mean((back.astype(np.float64) - numbers) ** 2)))
    bits = 8 * format.block_bytes / format.block_size
    return {"bits_per_weight": bits, "numbers": [float(x) for x in back], "rms_error": error}


def _place(tensor: Tensor, index: int) -> list[int]:
    """Return the indices of the block's first weight."""
    where = np.unravel_index(index, tensor.blocks.shape)
    return [*(int(i) for i in where[:-1]), int(where[-1]) * tensor.format.block_size]


def _fields(layout: np.dtype) -> list[dict[str, Any]]:
    if layout.fields is None:
        return [{"name": "w", "offset": 0, "bytes": layout.itemsize, "type": str(layout)}]
    return [
        {"name": name, "offset": int(offset), "bytes": int(dtype.itemsize), "type": str(dtype.base)}
        for name, (dtype, offset, *_) in layout.fields.items()
    ]


def _value(field: Any) -> Any:
    return field.tolist() if hasattr(field, "tolist") else field


def _short(value: Any) -> Any:
    if isinstance(value, list | np.ndarray | Strings):
        return f"{len(value)} items"
    if isinstance(value, str):
        text = value.encode("utf-8", "replace").decode()
        return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}... ({len(text)} characters)"
    return value
