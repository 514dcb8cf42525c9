"""Dumps: the files in which other engines save the values of a forward pass.

    .safetensors      any float type, bfloat16 included; tokens in the metadata ("tokens": "[1, 5, 9]")
    .npz, folder      arrays of NumPy; tokens in an array of that name
    text              the output of llama-eval-callback: corners of each value and its sum

Arrays are read one at a time, so that a dump may be larger than memory.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import TypeGuard

import numpy as np

from ..errors import RequestError
from .names import hugging_face_label, read_map

MAX_HEADER_BYTES = 100_000_000  # as in the safetensors library
MAX_TEXT_BYTES = 1 << 28
TOKEN_NAMES = ("tokens", "token_ids", "input_ids", "inp_tokens")
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "F8_E4M3": "u1",
    "F8_E5M2": "u1",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
    "BOOL": "?",
}


@dataclass(frozen=True)
class StoredArray:
    """An array of a dump: its shape, and how to read it."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


@dataclass
class Dump:
    """The values that another engine saved, by label.

    entries   label -> array
    tokens    the ids that it computed, if the dump has them
    skipped   names that cannot be compared, with the reason
    printed   the arrays are corners, printed to four digits; NaN where the text has "..."
    sums      label -> sum of the value, as printed
    """

    path: Path
    entries: dict[str, StoredArray] = field(default_factory=dict)
    tokens: list[int] | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    printed: bool = False
    sums: dict[str, float] = field(default_factory=dict)

    def renamed(self, rename: Callable[[str], str | None]) -> Dump:
        """Return the dump with names of its own translated to labels; `rename` returns None for an unknown name."""
        entries, skipped = {}, dict(self.skipped)
        for name, entry in self.entries.items():
            new = rename(name)
            if new is None:
                skipped[name] = "the map has no name for it"
            elif new in entries:
                skipped[name] = f"a second array for '{new}'"
            else:
                entries[new] = entry
        return Dump(self.path, entries, self.tokens, skipped, self.printed, self.sums)


def open_dump(path: str | os.PathLike[str], names: str = "", map_file: str | os.PathLike[str] | None = None) -> Dump:
    """Open the dump at `path`, without reading its arrays.

    names      "hf": names of transformers' modules and hidden states
    map_file   JSON: own names to labels; "{il}" in both stands for the layer
    Raises: RequestError
    """
    place = Path(path)
    try:
        dump = _open(place)
    except OSError as error:
        raise RequestError(f"{place}: cannot be read: {error.strerror or error}") from None
    if names == "hf":
        n = sum(name.startswith("hidden_states") for name in dump.entries)
        dump = dump.renamed(partial(hugging_face_label, n_hidden=n, names=dump.entries.keys()))
    elif names:
        raise RequestError(f"unknown names '{names}'; --names accepts hf")
    if map_file is not None:
        dump = dump.renamed(read_map(Path(map_file)))
    if not dump.entries:
        raise RequestError(f"{place}: found no arrays with known names, expected names such as Qcur-0 and l_out-0")
    return dump


def _open(path: Path) -> Dump:
    if path.is_dir():
        return _open_folder(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(4096)
    if head[:2] == b"PK":
        return _open_npz(path)
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return _open_safetensors(path, size)
    if b"\0" not in head and head.strip():
        return _open_text(path, size)
    raise RequestError(f"{path}: expected safetensors, .npz, a folder of .npy or the text of llama-eval-callback")


def _open_safetensors(path: Path, size: int) -> Dump:
    with open(path, "rb") as file:
        n = int.from_bytes(file.read(8), "little")
        if size < 10 or n > min(size - 8, MAX_HEADER_BYTES):
            raise RequestError(
                f"{path}: found a header of {n} bytes in {size}, the file is truncated or not safetensors"
            )
        try:
            header = json.loads(file.read(n))
        except (ValueError, RecursionError):
            header = None
    if not isinstance(header, dict):
        raise RequestError(f"{path}: the header of the safetensors file is not a JSON object")
    about = header.pop("__metadata__", {})
    dump = Dump(path)
    for name, entry in header.items():
        shape, dtype, offsets = _tensor_entry(path, name, entry)
        if 8 + n + offsets[1] > size:
            raise RequestError(f"{path}: truncated: '{name[:80]}' ends at byte {8 + n + offsets[1]} of {size}")
        _add(dump, name, StoredArray(shape, partial(_read_tensor, path, 8 + n + offsets[0], shape, dtype)), dtype)
    for key in TOKEN_NAMES:
        if isinstance(about, dict) and isinstance(about.get(key), str):
            dump.tokens = _token_list(path, about[key])
    return dump


def _tensor_entry(path: Path, name: str, entry: object) -> tuple[tuple[int, ...], str, list[int]]:
    values = entry if isinstance(entry, dict) else {}
    shape, offsets, dtype = values.get("shape"), values.get("data_offsets"), values.get("dtype")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2 or dtype not in DTYPES:
        found = f"dtype {str(dtype)[:20]!r} and shape {str(shape)[:60]}"
        raise RequestError(
            f"{path}: tensor '{name[:80]}' has {found}, expected one of {', '.join(DTYPES)} and its bytes"
        )
    if prod(shape) * np.dtype(DTYPES[dtype]).itemsize != offsets[1] - offsets[0]:
        raise RequestError(f"{path}: tensor '{name[:80]}' of shape {shape} has {offsets[1] - offsets[0]} bytes")
    return tuple(shape), str(dtype), offsets


def _are_sizes(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(i) is int and 0 <= i < 2**48 for i in values)


def _read_tensor(path: Path, start: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    raw = np.fromfile(path, DTYPES[dtype], prod(shape), offset=start)
    if raw.size != prod(shape):
        raise RequestError(f"{path}: truncated: found {raw.size} of {prod(shape)} numbers at byte {start}")
    if dtype == "BF16":
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    elif dtype.startswith("F8"):
        raw = _float8(dtype)[raw]
    return raw.reshape(shape)


def _float8(dtype: str) -> np.ndarray:
    """Return the numbers that the 256 codes of an eight-bit float stand for.  -> f32 [256]"""
    n_exp, bias = (4, 7) if dtype == "F8_E4M3" else (5, 15)
    code = np.arange(256)
    n_man = 7 - n_exp
    exponent, mantissa = (code >> n_man) & (2**n_exp - 1), (code & (2**n_man - 1)) / 2**n_man
    size = np.where(exponent == 0, mantissa * 2.0 ** (1 - bias), (1 + mantissa) * 2.0 ** (exponent - bias))
    top = exponent == 2**n_exp - 1
    size = (
        np.where(code & 127 == 127, np.nan, size)
        if n_exp == 4
        else np.where(top, np.where(mantissa, np.nan, np.inf), size)
    )
    return np.where(code < 128, size, -size).astype(np.float32)


def _open_npz(path: Path) -> Dump:
    dump = Dump(path)
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".npy"):
                    with archive.open(name) as file:
                        shape, dtype = _npy_head(file, f"{path}: {name[:80]}")
                    _add(dump, name[:-4], StoredArray(shape, partial(_read_npz, path, name)), dtype)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise RequestError(f"{path}: truncated, or not .npz: {error}") from None
    return dump


def _open_folder(path: Path) -> Dump:
    dump = Dump(path)
    for file in sorted(path.glob("*.npy")):
        with open(file, "rb") as stream:
            shape, dtype = _npy_head(stream, str(file))
            n_bytes = file.stat().st_size - stream.tell()
        if n_bytes < prod(shape) * np.dtype(dtype).itemsize:
            raise RequestError(f"{file}: truncated: found {n_bytes} bytes of numbers of shape {shape} and type {dtype}")
        _add(dump, file.stem, StoredArray(shape, partial(_read_npy, file)), dtype)
    return dump


def _npy_head(file: object, name: str) -> tuple[tuple[int, ...], str]:
    try:
        version = np.lib.format.read_magic(file)  # type: ignore[arg-type]
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)  # type: ignore[arg-type]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise RequestError(f"{name}: cannot be read as .npy: {str(error).splitlines()[0]}") from None
    return shape, dtype.str


def _read_npz(path: Path, name: str) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as file:
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise RequestError(f"{path}: {name[:80]} cannot be read: {str(error).splitlines()[0]}") from None


def _read_npy(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, EOFError, OSError) as error:
        raise RequestError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None


def _add(dump: Dump, name: str, entry: StoredArray, dtype: str) -> None:
    """Add an array, or take it as the tokens, or list it as skipped."""
    if name in TOKEN_NAMES and prod(entry.shape) < 2**20:
        dump.tokens = _token_list(dump.path, json.dumps(entry.read().reshape(-1).tolist()))
    elif dtype not in DTYPES and np.dtype(dtype).kind not in "fiub":
        dump.skipped[name] = f"its type is {dtype}, expected numbers"
    else:
        dump.entries[name] = entry


def _token_list(path: Path, text: str) -> list[int]:
    try:
        ids = json.loads(text)
        return [int(id) for id in ids]
    except (ValueError, TypeError, RecursionError):
        raise RequestError(f"{path}: the token ids are {text[:60]!r}, expected a list such as [1, 5, 9]") from None


# --- llama-eval-callback ---

HEAD = re.compile(r"(\S+(?: \([\w ]+\))*) = \(\w+\)\s+(\w+)\(.*= \{([\d, ]+)\}")
SUM = re.compile(r"sum = (\S+)")
PRE_ROPE = {"Qcur", "Kcur"}
MOVES = ("VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE", "CPY", "CONT", "GET_ROWS", "SET_ROWS")


def _open_text(path: Path, size: int) -> Dump:
    if size > MAX_TEXT_BYTES:
        raise RequestError(f"{path}: {size} bytes of text, expected at most {MAX_TEXT_BYTES}")
    dump, label, body = Dump(path, printed=True), "", list[str]()
    shape: tuple[int, ...] = ()
    rotated = False
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if head := HEAD.search(line):
                rotated |= "MUL_MAT(attn_inp_v_rot" in line
                label = _printed_label(head[1], head[2])
                shape = tuple(int(n) for n in head[3].replace(" ", "").split(",") if n)[::-1]
                body = []
            elif found := SUM.search(line):
                if label:
                    _add_printed(dump, label, shape, body, found[1])
                label = ""
            elif label and re.search(r"[\d.]|nan|inf|\.\.\.", line):
                body.append(line)
    if not dump.entries:
        raise RequestError(f"{path}: found no values as llama-eval-callback prints them")
    for label in [label for label in dump.entries if rotated and label.startswith("kqv_out-")]:
        del dump.entries[label]
        dump.skipped[label] = "it is rotated, as in llama.cpp's quantized caches, and corners cannot be rotated back"
    return dump


def _printed_label(name: str, operation: str) -> str:
    """Return the label of a printed value: those before RoPE get a name of their own, views none."""
    base, _, il = name.rpartition("-")
    if "(" in name or (operation in MOVES and base != "kqv_out"):
        return "embd" if name in ("embd", "inp_embd") else ""
    return f"{base}_projected-{il}" if base in PRE_ROPE and operation != "ROPE" else name


def _add_printed(dump: Dump, label: str, shape: tuple[int, ...], body: Iterable[str], total: str) -> None:
    """Add the corners in `body`, lines of the innermost axis, of a value with this shape."""
    lines = [re.findall(r"-?(?:\d+\.\d*(?:e[-+]?\d+)?|nan|inf)", line) for line in body if not line.strip() == "..."]
    corners = [[float(number) for number in line] for line in lines if line]
    outer = [list(_printed_places(n)) for n in shape[:-1]]
    inner = list(_printed_places(shape[-1]))
    if prod(len(places) for places in outer) != len(corners) or any(len(row) != len(inner) for row in corners):
        dump.skipped[label] = f"its text does not have the corners of shape {'x'.join(map(str, shape))}"
        return
    values = np.array(corners).reshape(*(len(places) for places in outer), len(inner))

    def read() -> np.ndarray:
        full = np.full(shape, np.nan)
        full[np.ix_(*outer, inner)] = values
        return full

    if prod(shape) < 2**28:
        dump.entries[label] = StoredArray(shape, read)
        try:
            dump.sums[label] = float(total)
        except ValueError:
            pass


def _printed_places(n: int) -> Iterable[int]:
    return range(n) if n <= 6 else (0, 1, 2, n - 3, n - 2, n - 1)
