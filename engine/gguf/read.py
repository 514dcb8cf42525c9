"""GGUF files, memory-mapped for reading.

    byte 0   "GGUF"   version u32   n_tensors u64   n_kv u64
        24   key-values, n_kv of them:   key str   type u32   value
             tensor table, n_tensors:    name str   n_dims u32   dims u64[n_dims]   ggml type u32   offset u64
                                         (a tensor without dims is one number)
             zeros up to a multiple of general.alignment, or of 32 without that key
      data   the tensors' blocks, each at data + offset, a multiple of the alignment again

    str      length u64, then that many bytes of UTF-8; no terminator
    array    item type u32, n u64, then n items without padding; an item may be a string or an array
    dims     fastest axis first: a NumPy shape [n_out, n_in] is stored as n_in, n_out

All numbers have the same byte order, the one in which the version is small: 03 00 00 00 is little endian, 00 00 00 03
big endian.  Version 2 is version 3 without big endian.  Version 1 had 32-bit counts; llama.cpp no longer reads it.

The file is mapped into memory.  The `blocks` of a tensor are a view, and the system loads a page when a kernel first
reads it.  The map is closed when no array refers to it any more.  Truncating a mapped file ends the process (SIGBUS),
as in llama.cpp, so replace a model by renaming another file over it and never write into it.

Every length is compared with the number of remaining bytes before memory is allocated for it.  An invalid file raises
BadGGUF at little cost.  Opening a valid file costs memory for its metadata.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; as strict as llama.cpp's gguf.cpp, 0c1e57098.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import re
import stat
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...kernels.packed.arena import release_pages
from ...kernels.quants import FORMATS, QuantFormat
from ...kernels.quants.types import GGMLType
from ...kernels.tensor import Tensor
from ..errors import BadGGUF, ModelError, ModelNotFound
from .strings import Strings

VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4  # ggml.h GGML_MAX_DIMS
MAX_WEIGHTS = 2**59  # as F64 they take 2**62 bytes: far above any file, and sizes still fit an int64
MAX_NESTING = 8  # of arrays in arrays; no known file nests at all


class ValueType(IntEnum):
    """The type of a value, under llama.cpp's short name.  `ValueType.U16(3)` is a typed value for the writer."""

    U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)

    def __call__(self, value: Any) -> TypedValue:
        return TypedValue(self, value)

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class ArrayType:
    """The type of an array: one type for all items, or a type for each item if they are arrays themselves.

    `ArrayType(STR)([])` is a typed value for the writer.
    """

    of: ValueType | tuple[ArrayType, ...]

    def __call__(self, value: Any) -> TypedValue:
        return TypedValue(self, value)

    def __str__(self) -> str:
        return f"arr[{self.of if isinstance(self.of, ValueType) else 'arr'}]"


@dataclass(frozen=True, slots=True)
class TypedValue:
    """A value with its GGUF type, for cases in which Python's type is ambiguous."""

    type: ValueType | ArrayType
    value: Any


U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = ValueType
# The number types as both struct and NumPy spell them, after "<" or ">"
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", U64: "Q", I64: "q", F64: "d"}
# The size in bytes of the shortest item: a number, the length of a string, the type and n of an array
_MIN_ITEM_BYTES = {type: struct.calcsize("=" + code) for type, code in CODES.items()} | {BOOL: 1, STR: 8, ARR: 12}


@dataclass(frozen=True, eq=False)
class MappedFile:
    """A file in memory.  Its descriptor stays open, so it is this file even after another took its path."""

    path: Path
    map: mmap.mmap

    @property
    def nbytes(self) -> int:
        """Its size in bytes when it was mapped."""
        return len(self.map)

    def check(self) -> None:
        """Check that the file still has its size: reading pages beyond its end would end the process (SIGBUS).

        Takes 1 us.  Raises: ModelError if it was truncated
        """
        if (size := self.map.size()) < self.nbytes:
            raise ModelError(f"{self.path} was truncated from {self.nbytes} to {size} bytes")


@dataclass(frozen=True, eq=False)
class GGUF:
    """An open model file, or the parts of a split model joined into one.

    kv           plain values: int float bool str; arrays of numbers as ndarray in native byte order, of strings as
                 Strings, others as list.
                 A byte that is not UTF-8 becomes a lone surrogate (errors="surrogateescape").
    kv_types     the GGUF type of each value; `typed` has both
    tensors      by name, in file order.  The blocks of a big-endian file are big-endian
    mapped       the files: one, or those of a split model, then its adapters; `path` and all keys are of the first
    kv_offsets, tensor_offsets   the byte offset of each value and of each entry of the tensor table, for error messages
    """

    path: Path
    version: int
    byteorder: str
    alignment: int
    kv: dict[str, Any]
    kv_types: dict[str, ValueType | ArrayType]
    tensors: dict[str, Tensor] = field(repr=False)
    mapped: tuple[MappedFile, ...]
    kv_offsets: dict[str, int] = field(repr=False)
    tensor_offsets: dict[str, int] = field(repr=False)

    def __repr__(self) -> str:
        return f"<GGUF {self.path.name}: version {self.version}, {len(self.kv)} keys, {len(self.tensors)} tensors>"

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> GGUF:
        return read_gguf(path)

    @property
    def parts(self) -> tuple[Path, ...]:
        """The paths of `mapped`."""
        return tuple(file.path for file in self.mapped)

    @property
    def typed(self) -> dict[str, TypedValue]:
        """The key-values with their types; `write_gguf` writes them back to the same bytes."""
        return {key: TypedValue(self.kv_types[key], value) for key, value in self.kv.items()}

    def text(self, key: str) -> str:
        """Return the text under `key`; "" if it is missing or of another type (an array is not comparable)."""
        value = self.kv.get(key)
        return value if isinstance(value, str) else ""

    def bad(self, key: str, message: str) -> BadGGUF:
        """Return an error about the value of `key`, or about the whole file if the key is missing."""
        return BadGGUF(self.path, self.kv_offsets.get(key, 0), message)


def read_gguf(path: str | os.PathLike[str]) -> GGUF:
    """Open the model in file `path`; any part of a split model (name-00001-of-00003.gguf) opens the whole model.

    Raises: BadGGUF; ModelNotFound; ModelError if `path` is not a regular file or is not readable.
    """
    given = read_part(Path(path))
    count = _integer(given, "split.count") if "split.count" in given.kv else 1
    return _join(given, count) if count > 1 else given


def _join(given: GGUF, count: int) -> GGUF:
    """Open the `count` parts of the model that `given` belongs to, named as by llama.cpp's gguf-split."""
    name = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", given.path.name, re.DOTALL)
    if not name or int(name[2]) != count:
        expected = f"a file name like model-00001-of-{count:05}.gguf, from which the other names follow"
        raise given.bad("split.count", f"split.count is {count}, expected {expected}")
    paths = tuple(given.path.with_name(f"{name[1]}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1))
    parts = []
    for path in paths:
        try:
            parts.append(given if path == given.path else read_part(path))
        except ModelNotFound:
            raise given.bad("split.count", f"split.count is {count}, and part {_quote(path.name)} is missing") from None
    return join(parts, "as in the file's name")


def join(parts: Sequence[GGUF], why: str = "of these parts") -> GGUF:
    """Join `parts`, which were read one by one and are in order, into one model.  Raises: BadGGUF

    why   the end of the error message about a part with an unexpected number
    """
    count = len(parts)
    for i, part in enumerate(parts):
        for key, value in (("split.no", i), ("split.count", count)):
            if _integer(part, key) != value:
                raise part.bad(key, f"{key} is {part.kv[key]}, expected {value} {why}")
    whole = replace(
        parts[0],
        tensors=dict(parts[0].tensors),
        mapped=tuple(file for part in parts for file in part.mapped),
        tensor_offsets=dict(parts[0].tensor_offsets),
    )
    for part in parts[1:]:
        if twice := whole.tensor_offsets.keys() & part.tensor_offsets.keys():
            raise part.bad("split.no", f"tensor {_quote(min(twice))} is in an earlier part too")
        whole.tensors.update(part.tensors)
        whole.tensor_offsets.update(part.tensor_offsets)
    n_tensors = len(whole.tensor_offsets)
    if (n := _integer(whole, "split.tensors.count")) != n_tensors:
        raise whole.bad("split.tensors.count", f"found {n_tensors} tensors in {count} parts, expected {n}")
    return whole


def _integer(gguf: GGUF, key: str) -> int:
    value = gguf.kv.get(key)
    if type(value) is not int:
        raise gguf.bad(key, f"{key} is {gguf.kv_types.get(key, 'missing')}, expected an integer")
    return value


def read_part(path: Path) -> GGUF:
    """Open one file and ignore the other parts of its model.  Raises: as `read_gguf`"""
    try:
        mode = os.stat(path).st_mode  # checked first, because opening a named pipe waits for a writer
        if not stat.S_ISREG(mode):
            found = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
            raise ModelError(f"{str(path)!r} is {found}, expected a GGUF file")
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:  # which mmap refuses
                raise BadGGUF(path, 0, "found an empty file, expected b'GGUF'")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelNotFound(str(path), f"{str(path)!r}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise ModelError(f"{str(path)!r}: {getattr(error, 'strerror', None) or error}") from None
    return _Reader(path, data).gguf()


class _Reader:
    """A position in a mapped file.  Every step forward is checked against the end."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.at, self.end = path, data, 0, len(data)
        self.order = "<"

    def bad(self, at: int, message: str) -> BadGGUF:
        return BadGGUF(self.path, at, message)

    def gguf(self) -> GGUF:
        version, n_tensors, n_kv = self.header()
        kv, types, offsets = self.key_values(n_kv)
        alignment = kv.get("general.alignment", DEFAULT_ALIGNMENT)
        if (type := types.get("general.alignment", U32)) is not U32 or alignment.bit_count() != 1:
            found = f"general.alignment is {alignment if type is U32 else type}"
            raise self.bad(offsets["general.alignment"], f"{found}, expected a power of two as u32")
        tensors, entries = self.tensors(n_tensors, alignment)
        release_pages(np.frombuffer(self.data, np.uint8, self.at))  # which nothing reads again
        mapped = (MappedFile(self.path, self.data),)
        return GGUF(self.path, version, self.order, alignment, kv, types, tensors, mapped, offsets, entries)

    def header(self) -> tuple[int, int, int]:
        """Read version, n_tensors and n_kv, and determine the byte order."""
        if (magic := self.data[:4]) != b"GGUF":
            raise self.bad(0, f"found {magic!r}{_guess_file_type(self.data[:512])}, expected b'GGUF'")
        self.skip(8, "magic and version")
        raw = self.data[4:8]
        version, self.order = min((int.from_bytes(raw, "little"), "<"), (int.from_bytes(raw, "big"), ">"))
        if version not in VERSIONS:
            raise self.bad(4, f"found GGUF version {version}, expected 2 or 3")
        n_tensors, n_kv = self.number(U64, "n_tensors"), self.number(U64, "n_kv")
        # the shortest key-value has a key of one letter and a value of one byte; the shortest tensor has no axes
        if n_kv * (8 + 1 + 4 + 1) + n_tensors * (8 + 1 + 4 + 4 + 8) > self.end - self.at:
            found = f"found {n_tensors} tensors and {n_kv} key-values"
            raise self.bad(8, f"{found}, expected no more than fit into the {self.end - self.at} bytes that follow")
        return version, n_tensors, n_kv

    # ---- values

    def skip(self, size: int, what: str) -> int:
        """Advance by `size` bytes and return the offset of the first; `what` names them in the error message."""
        at, remain = self.at, self.end - self.at
        if size > remain:
            raise self.bad(at, f"{what}: found the end of the file after {remain} bytes, expected {size}")
        self.at = at + size
        return at

    def number(self, type: ValueType, what: str) -> Any:
        return struct.unpack_from(self.order + CODES[type], self.data, self.skip(_MIN_ITEM_BYTES[type], what))[0]

    def string(self, what: str) -> str:
        size = self.number(U64, f"length of {what}")
        at = self.skip(size, what)
        return self.data[at : self.at].decode("utf-8", "surrogateescape")

    def strings(self, n: int, what: str) -> Iterator[bytes]:
        """Yield `n` strings: `string` as one loop, because a vocabulary of 128k tokens has 400k with its merges."""
        length, data, at, end = struct.Struct(self.order + "Q").unpack_from, self.data, self.at, self.end
        for i in range(n):
            size = length(data, at)[0] if end - at >= 8 else 0
            at += 8
            if size > end - at:  # the string or its length is cut off: `string` raises the error
                self.at = at - 8
                self.string(f"{what}[{i}]")
            yield data[at : at + size]
            at += size
        self.at = at

    def bools(self, n: int, what: str) -> list[bool]:
        at = self.skip(n, what)
        raw = np.frombuffer(self.data, np.uint8, n, at)
        if (wrong := np.flatnonzero(raw > 1)).size:
            raise self.bad(at + int(wrong[0]), f"{what}: found a bool of {raw[wrong[0]]}, expected 0 or 1")
        flags: list[bool] = raw.view(np.bool_).tolist()
        return flags

    def scalar(self, type: ValueType, what: str) -> Any:
        if type is STR:
            return self.string(what)
        return self.bools(1, what)[0] if type is BOOL else self.number(type, what)

    def array(self, what: str, depth: int = 1) -> tuple[Any, ArrayType]:
        """An array's items and its whole type."""
        if depth > MAX_NESTING:
            raise self.bad(self.at, f"{what}: found arrays nested deeper than {MAX_NESTING}")
        of, n = self.type(f"an item of {what}"), self.number(U64, f"n of {what}")
        if n * _MIN_ITEM_BYTES[of] > self.end - self.at:
            expected = f"no more than fit into the {self.end - self.at} bytes that follow"
            raise self.bad(self.at - 8, f"{what}: found an array of {n} {of}, expected {expected}")
        if of is STR:
            return Strings(self.strings(n, what)), ArrayType(of)
        if of is BOOL:
            return self.bools(n, what), ArrayType(of)
        if of is ARR:
            items = [self.array(what, depth + 1) for _ in range(n)]
            return [value for value, _ in items], ArrayType(tuple(type for _, type in items))
        at = self.skip(n * _MIN_ITEM_BYTES[of], what)
        return np.frombuffer(self.data, self.order + CODES[of], n, at).astype(CODES[of]), ArrayType(of)

    def type(self, what: str) -> ValueType:
        id = self.number(U32, f"type of {what}")
        if id >= len(ValueType):
            raise self.bad(self.at - 4, f"{what} has value type {id}, expected 0 (u8) to 12 (f64)")
        return ValueType(id)

    # ---- the two tables

    def key_values(self, n: int) -> tuple[dict[str, Any], dict[str, ValueType | ArrayType], dict[str, int]]:
        """Read the key-values; return values, types and offsets by key."""
        kv: dict[str, Any] = {}
        types: dict[str, ValueType | ArrayType] = {}
        offsets: dict[str, int] = {}
        for i in range(n):
            key = self.name(f"key {i} of {n}", kv)
            what = f"key {_quote(key)}"
            type = self.type(what)
            offsets[key] = self.at
            if type is ARR:
                kv[key], types[key] = self.array(what)
            else:
                types[key] = type
                kv[key] = self.scalar(type, what)
        return kv, types, offsets

    def name(self, what: str, taken: dict[str, Any]) -> str:
        at = self.at
        name = self.string(what)
        if not name or name in taken:
            raise self.bad(at, f"{what} is {_quote(name)}{' again' if name else ''}, expected a unique name")
        return name

    def tensors(self, n: int, alignment: int) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Read the tensor table; return the tensors with views of their data, and the offsets of the entries."""
        table: dict[str, _Entry] = {}
        for i in range(n):
            at = self.at
            name = self.name(f"tensor {i} of {n}", table)
            table[name] = self.entry(name, at, alignment)
        data = -(-self.at // alignment) * alignment

        by_offset = sorted(table.values(), key=lambda entry: (entry.offset, entry.nbytes))
        for entry, after in itertools.zip_longest(by_offset, by_offset[1:]):
            start, limit = data + entry.offset, data + after.offset if after else self.end
            if entry.nbytes > limit - start:
                found = f"tensor {_quote(entry.name)} takes at least {entry.nbytes} bytes from byte {start}"
                next = f"tensor {_quote(after.name)}" if after else "the end of the file"
                raise self.bad(entry.at, f"{found}, expected to end by byte {limit}, where {next} is")

        tensors: dict[str, Tensor] = {}
        for name, entry in table.items():
            format = FORMATS[entry.type]
            layout = format.layout if self.order == "<" else format.layout.newbyteorder(">")
            blocks = np.frombuffer(self.data, layout, entry.nbytes // format.block_bytes, data + entry.offset)
            tensors[name] = Tensor(name, format, entry.shape, blocks.reshape(blocks_shape(format, entry.shape)))
        return tensors, {name: entry.at for name, entry in table.items()}

    def entry(self, name: str, at: int, alignment: int) -> _Entry:
        """Read the rest of the tensor table's entry for `name`, which begins at byte `at`."""
        what = f"tensor {_quote(name)}"
        n_dims = self.number(U32, f"n_dims of {what}")
        if n_dims > MAX_DIMS:
            raise self.bad(self.at - 4, f"{what} has {n_dims} dimensions, expected at most {MAX_DIMS}")
        shape = tuple(self.number(U64, f"dims of {what}") for _ in range(n_dims))[::-1]
        if math.prod(max(n, 1) for n in shape) > MAX_WEIGHTS:
            raise self.bad(self.at - 8 * n_dims, f"{what} has shape {shape}, expected at most 2**59 weights")
        id = self.number(U32, f"ggml type of {what}")
        if id not in tuple(GGMLType):
            expected = "which this build does not know; docs/formats.md lists those it does"
            raise self.bad(self.at - 4, f"{what} has ggml type id {id}, {expected}")
        type = GGMLType(id)
        if type not in FORMATS:
            found = f"{what} has ggml type id {id}, {type.name}, which was removed from ggml"
            raise self.bad(self.at - 4, f"{found}; convert the model again, to a type in docs/formats.md")
        format, n_row = FORMATS[type], shape[-1] if shape else 1
        if n_row % format.block_size:
            expected = f"a multiple of {format.name}'s block of {format.block_size}"
            raise self.bad(self.at - 4, f"{what} has rows of {n_row} weights, expected {expected}")
        nbytes = math.prod(shape) // format.block_size * format.block_bytes
        offset = self.number(U64, f"offset of {what}")
        if offset % alignment:
            raise self.bad(
                self.at - 8, f"{what} has offset {offset}, expected a multiple of the alignment, {alignment}"
            )
        return _Entry(name, at, type, shape, nbytes, offset)


class _Entry(NamedTuple):
    """An entry of the tensor table.

    at      byte offset of the entry
    nbytes  size of the data
    """

    name: str
    at: int
    type: GGMLType
    shape: tuple[int, ...]
    nbytes: int
    offset: int


def blocks_shape(format: QuantFormat, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the blocks of a tensor of `shape` weights."""
    return (*shape[:-1], shape[-1] // format.block_size) if shape else ()


def with_axes(tensor: Tensor, n: int) -> Tensor:
    """Return `tensor` with `n` axes if it differs only by leading axes of 1, which ggml adds and drops freely."""
    shape = tensor.shape
    while len(shape) > n and shape[0] == 1:
        shape = shape[1:]
    shape = (1,) * (n - len(shape)) + shape
    if shape == tensor.shape:
        return tensor
    blocks = tensor.blocks.reshape(blocks_shape(tensor.format, shape))
    return Tensor(tensor.name, tensor.format, shape, blocks, tensor.low_rank)


def described(value: Any) -> str:
    """Return a key's value for an error message, in one short line."""
    if isinstance(value, list | tuple | np.ndarray | Strings):
        return f"an array of {len(value)}"
    text = repr(value)
    return text if len(text) <= 70 else text[:67] + "..."


def _quote(text: str) -> str:
    """Return the repr of `text`, shortened to one line."""
    return repr(text if len(text) <= 70 else text[:67] + "...")


_FILE_SIGNATURES = {
    b"lmgg": "a GGML file, from before GGUF",
    b"fmgg": "a GGMF file, from before GGUF",
    b"tjgg": "a GGJT file, from before GGUF",
    b"algg": "a GGLA adapter, from before GGUF",
    b"PK\x03\x04": "a zip archive, as PyTorch checkpoints are",
    b"\x80\x02": "a Python pickle, as old PyTorch checkpoints are",
    b"\x1f\x8b": "gzip",
    b"version https://git-lfs": "a Git LFS pointer; `git lfs pull` fetches the file itself",
    b"<": "HTML; perhaps a web page was downloaded instead of the file",
    b"{": "JSON",
    b"[": "JSON",
    b"\0\0\0\0": "zeros; perhaps an unfinished download",
}


def _guess_file_type(head: bytes) -> str:
    """Guess the real type of a file from its first bytes, for the error message: " (gzip)", or "" if unknown."""
    if head[8:10] == b'{"':  # after the length of the JSON header, u64
        return " (safetensors)"
    return next((f" ({what})" for magic, what in _FILE_SIGNATURES.items() if head.lstrip().startswith(magic)), "")
