"""Writing of GGUF files: the inverse of read.py, which draws the layout.

    write_gguf("tiny.gguf", {"general.architecture": "llama", "split.no": U16(0)}, [("x", F32, (2, 3), blocks)])

Equal arguments give equal bytes, by the conventions of gguf-py and llama-quantize: tensors in the given order without
gaps, each padded with zeros, and no padding without tensors.  A file that they wrote is reproduced byte for byte by
`write_gguf(path, gguf.typed, gguf.tensors.values(), gguf.version, gguf.byteorder)`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ...kernels.quants import QuantFormat
from ...kernels.tensor import Tensor
from .read import CODES, DEFAULT_ALIGNMENT, MAX_DIMS, VERSIONS, ArrayType, TypedValue, ValueType, blocks_shape
from .strings import Strings


@dataclass(frozen=True, eq=False)
class Streamed:
    """A tensor whose blocks are computed while the file is written.

    pieces   consecutive arrays of blocks [n], little endian, which make up the whole tensor
    """

    name: str
    format: QuantFormat
    shape: tuple[int, ...]
    pieces: Iterable[np.ndarray]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) // self.format.block_size * self.format.block_bytes


def write_gguf(
    path: str | os.PathLike[str],
    kv: Mapping[str, Any],
    tensors: Iterable[Tensor | Streamed | tuple[str, QuantFormat, tuple[int, ...], np.ndarray]] = (),
    version: int = 3,
    byteorder: str = "<",
    alignment: int | None = None,
) -> None:
    """Write a GGUF file to `path` with the key-values and tensors in the given order.

    kv          plain values, typed by `value_type`, or TypedValue: `U16(3)`, `ArrayType(STR)([])`
    tensors     Tensors or their fields (name, format, shape, blocks); copied only if the byte order differs
    alignment   sets the key general.alignment; by default the value in `kv`, else 32

    The file is renamed to `path` when complete, so `blocks` may be views into the file that it replaces.
    Raises: ValueError for arguments that the format cannot hold.
    """
    chunks = gguf_chunks(kv, tensors, version, byteorder, alignment)
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(unfinished, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def gguf_chunks(
    kv: Mapping[str, Any],
    tensors: Iterable[Tensor | Streamed | tuple[str, QuantFormat, tuple[int, ...], np.ndarray]] = (),
    version: int = 3,
    byteorder: str = "<",
    alignment: int | None = None,
) -> Iterator[bytes | memoryview]:
    """Return the bytes of the file chunk by chunk, the header first; the arguments are checked before that."""
    if version not in VERSIONS or byteorder not in "<>":
        raise ValueError(f"version {version}, byte order {byteorder!r}: expected 2 or 3, '<' or '>'")
    if alignment is not None:
        kv = {**kv, "general.alignment": ValueType.U32(alignment)}
    alignment = _alignment(kv.get("general.alignment", DEFAULT_ALIGNMENT))
    table = [_check_tensor(tensor if isinstance(tensor, Tensor | Streamed) else Tensor(*tensor)) for tensor in tensors]
    if len({tensor.name for tensor in table}) < len(table):
        raise ValueError("two tensors have the same name")

    head = b"GGUF" + struct.pack(byteorder + "IQQ", version, len(table), len(kv))
    head += b"".join(_key_value(key, value, byteorder) for key, value in kv.items())
    offset = 0
    for tensor in table:
        head += _string(tensor.name, byteorder)
        n_dims = len(tensor.shape)
        head += struct.pack(f"{byteorder}I{n_dims}QIQ", n_dims, *reversed(tensor.shape), tensor.format.type, offset)
        offset += _padded(tensor.nbytes, alignment)
    if table:
        head += bytes(_padded(len(head), alignment) - len(head))

    def chunks() -> Iterator[bytes | memoryview]:
        yield head
        for tensor in table:
            layout = tensor.format.layout if byteorder == "<" else tensor.format.layout.newbyteorder(">")
            n_bytes = 0
            for blocks in [tensor.blocks] if isinstance(tensor, Tensor) else tensor.pieces:
                chunk = np.ascontiguousarray(blocks, layout).reshape(-1).view(np.uint8).data
                n_bytes += len(chunk)
                yield chunk
            if n_bytes != tensor.nbytes:
                raise ValueError(f"tensor {tensor.name!r} has {n_bytes} bytes, expected {tensor.nbytes}")
            yield bytes(_padded(n_bytes, alignment) - n_bytes)

    return chunks()


def _padded(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment


def _alignment(value: Any) -> int:
    if isinstance(value, TypedValue):
        value = value.value if value.type is ValueType.U32 else None
    if type(value) is not int or value.bit_count() != 1 or value >= 2**32:
        raise ValueError(f"general.alignment is {value!r}, expected a power of two as u32")
    return value


def _check_tensor(tensor: Tensor | Streamed) -> Tensor | Streamed:
    """Return the tensor after checking that its fields agree."""
    name, format, shape = tensor.name, tensor.format, tensor.shape
    if not name or len(shape) > MAX_DIMS or (shape[-1] if shape else 1) % format.block_size:
        expected = f"a name, at most {MAX_DIMS} axes and rows of whole {format.name} blocks"
        raise ValueError(f"tensor {name!r} has shape {shape}, expected {expected}")
    if isinstance(tensor, Streamed):
        return tensor
    blocks = tensor.blocks
    if blocks.shape != blocks_shape(format, shape):
        raise ValueError(f"tensor {name!r} of shape {shape} has {format.name} blocks of shape {blocks.shape}")
    if blocks.dtype not in (format.layout, format.layout.newbyteorder()):
        raise ValueError(f"tensor {name!r} has blocks of {blocks.dtype}, expected {format.name}'s layout")
    return tensor


# ---- key-values

_TYPE_OF_DTYPE = {np.dtype(code): type for type, code in CODES.items()} | {np.dtype(np.bool_): ValueType.BOOL}


def value_type(value: Any) -> ValueType | ArrayType:
    """Return the GGUF type that a plain `value` is written as.

    int     u32; i32 if negative; u64, i64 beyond               list of int    i32; u32, i64, u64 beyond
    float   f32                                                 list of float  f32
    NumPy numbers and arrays: their dtype                       list of lists  a type for each item
    """
    if isinstance(value, np.generic):
        return _TYPE_OF_DTYPE[value.dtype]
    if isinstance(value, np.ndarray):
        return ArrayType(_TYPE_OF_DTYPE[value.dtype.newbyteorder("=")])
    if isinstance(value, bool):
        return ValueType.BOOL
    if isinstance(value, int):
        return _integer_type([value], "U32 I32 U64 I64")
    if isinstance(value, float | str):
        return ValueType.F32 if isinstance(value, float) else ValueType.STR
    if isinstance(value, Strings):
        return ArrayType(ValueType.STR)
    if not isinstance(value, list | tuple) or not value:
        raise TypeError(f"{value!r} has no unique type; specify one, as in ArrayType(STR)([])")
    if all(type(item) is int for item in value):
        return ArrayType(_integer_type(value, "I32 U32 I64 U64"))
    types = [value_type(item) for item in value]
    if all(isinstance(type, ArrayType) for type in types):
        return ArrayType(tuple(types))  # type: ignore[arg-type]
    if len(set(types)) > 1 or isinstance(types[0], ArrayType):
        raise TypeError(f"the items are {', '.join(map(str, types))}, expected one type")
    return ArrayType(types[0])


def _integer_type(numbers: Sequence[int], names: str) -> ValueType:
    """Return the first of the named types that can hold all `numbers`."""
    for name in names.split():
        bounds = np.iinfo(CODES[ValueType[name]])
        if bounds.min <= min(numbers) and max(numbers) <= bounds.max:
            return ValueType[name]
    raise OverflowError("an integer of more than 64 bits")


def _key_value(key: str, value: Any, order: str) -> bytes:
    if not key:
        raise ValueError("found an empty key, expected a name")
    try:
        typed = value if isinstance(value, TypedValue) else TypedValue(value_type(value), value)
        id = ValueType.ARR if isinstance(typed.type, ArrayType) else typed.type
        return _string(key, order) + struct.pack(order + "I", id) + _value(typed.type, typed.value, order)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error) as error:
        raise ValueError(f"key {key!r} cannot be written: {error}") from error


def _value(type: ValueType | ArrayType, value: Any, order: str) -> bytes:
    if type is ValueType.STR:
        return _string(value, order)
    if type is ValueType.BOOL:
        return {False: b"\0", True: b"\1"}[value]  # a KeyError for any value that does not equal 0 or 1
    if isinstance(type, ValueType):
        return struct.pack(order + CODES[type], value)
    if isinstance(type.of, tuple):
        items = b"".join(_value(item_type, item, order) for item_type, item in zip(type.of, value, strict=True))
        return struct.pack(order + "IQ", ValueType.ARR, len(value)) + items
    if type.of in CODES:
        items = _numbers(value, CODES[type.of], order)
    else:
        items = b"".join(_value(type.of, item, order) for item in value)
    return struct.pack(order + "IQ", type.of, len(value)) + items


def _string(text: str, order: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack(order + "Q", len(raw)) + raw


def _numbers(value: Any, code: str, order: str) -> bytes:
    """Convert a list or array of numbers to bytes of type `code`, checking that each one fits."""
    found = np.asarray(value)
    exact = code not in "fd"
    if found.ndim != 1 or (found.size and found.dtype.kind not in ("iu" if exact else "iuf")):
        raise TypeError(f"found {found.dtype} of shape {found.shape}, expected a row of numbers")
    with np.errstate(over="raise", invalid="ignore"):  # a signaling NaN is allowed
        numbers = found.astype(order + code)
    if exact and not np.array_equal(numbers, found):
        raise OverflowError(f"a number does not fit {numbers.dtype}")
    return numbers.tobytes()
