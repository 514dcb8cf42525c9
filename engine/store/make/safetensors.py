"""A reader of safetensors files, which are mapped into memory.

    byte 0   n u64, little endian
         8   n bytes of JSON: {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}
     8 + n   the tensors' data, rows of little-endian numbers; offsets count from here

Every length is checked against the size of the file.
Source: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np

from ....kernels.quants import FORMATS_BY_NAME
from ....kernels.tensor import Tensor
from ...errors import RequestError

FORMATS = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
MAX_HEADER_BYTES = 100_000_000  # as in the safetensors library


def read_safetensors(path: Path, name: str, is_unused: Callable[[str], bool]) -> dict[str, Tensor]:
    """Read the tensors of the file at `path`, by name, without the unused ones, whose dtype does not matter.

    Raises: RequestError, which calls the file `name`
    """
    size = path.stat().st_size
    if size < 8:
        raise RequestError(f"{name}: {size} bytes, expected a safetensors file")
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    n = int.from_bytes(data[:8], "little")
    if n > min(MAX_HEADER_BYTES, size - 8):
        raise RequestError(f"{name}: found a header of {n} bytes, expected at most {min(MAX_HEADER_BYTES, size - 8)}")
    try:
        header = json.loads(data[8 : 8 + n])
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise RequestError(f"{name}: the header is not a JSON object")
    used = {key: entry for key, entry in header.items() if key != "__metadata__" and not is_unused(key)}
    return {key: _tensor(key, entry, data, 8 + n, name) for key, entry in used.items()}


def _tensor(key: str, entry: object, data: mmap.mmap, start: int, file: str) -> Tensor:
    wrong = RequestError(f"{file}: tensor {key[:100]!r} is {str(entry)[:200]}, expected a dtype, a shape and its bytes")
    if not isinstance(entry, dict):
        raise wrong
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(i) is int and 0 <= i < 2**48 for i in numbers):
            raise wrong
    assert isinstance(shape, list) and isinstance(offsets, list)
    if entry.get("dtype") not in FORMATS:
        expected = ", ".join(FORMATS)
        raise RequestError(
            f"{file}: tensor {key[:100]!r} has dtype {str(entry.get('dtype'))[:20]!r}, expected {expected}"
        )
    format = FORMATS_BY_NAME[FORMATS[entry["dtype"]]]
    n_bytes = prod(shape) * format.block_bytes
    if len(offsets) != 2 or not 1 <= len(shape) <= 4 or offsets[1] - offsets[0] != n_bytes or not n_bytes:
        raise wrong
    if start + offsets[1] > len(data):
        raise RequestError(
            f"{file}: tensor {key[:100]!r} ends {start + offsets[1] - len(data)} bytes past the end of the file"
        )
    blocks = np.frombuffer(data, format.layout, prod(shape), start + offsets[0])
    return Tensor(key, format, tuple(shape), blocks.reshape(shape))
