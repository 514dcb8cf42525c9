"""A GGUF's key-values and tensors during the translation, and the steps that rules are made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ....kernels.quants import FORMATS_BY_NAME
from ....kernels.tensor import Tensor
from ..read import F32, GGUF, STR, U32, ArrayType, TypedValue
from ..strings import Strings

SPACES = ("general.", "tokenizer.", "clip.")  # keys that do not begin with the architecture's name
VOCABULARY = ("tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type")


class View:
    """A copy of a GGUF's tables that rules change.

    Keys of the architecture are named without it: "rope.freq_base".  Tensors stay views of the mapped file.
    """

    def __init__(self, gguf: GGUF):
        self.source = gguf
        self.arch = gguf.text("general.architecture")
        self.kv, self.types, self.kv_offsets = dict(gguf.kv), dict(gguf.kv_types), dict(gguf.kv_offsets)
        self.tensors: dict[str, Tensor] = dict(gguf.tensors)
        self.tensor_offsets = dict(gguf.tensor_offsets)

    def gguf(self) -> GGUF:
        """Return the translated GGUF.  Error messages still name the bytes of the file."""
        return replace(
            self.source,
            kv=self.kv,
            kv_types=self.types,
            kv_offsets=self.kv_offsets,
            tensors={name: replace(tensor, name=name) for name, tensor in self.tensors.items()},
            tensor_offsets={name: self.tensor_offsets.get(name, 0) for name in self.tensors},
        )

    # ---- key-values

    def full(self, key: str) -> str:
        """Return `key` with the architecture's name."""
        return key if key.startswith(SPACES) else f"{self.arch}.{key}"

    def has(self, *keys: str) -> bool:
        """Return whether any of `keys` is there."""
        return any(self.full(key) in self.kv for key in keys)

    def get(self, key: str) -> Any:
        return self.kv.get(self.full(key))

    def integer(self, key: str) -> int | None:
        """Return a whole number, or None if the key is missing or of another type."""
        value = self.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def items(self, key: str) -> Sequence[Any] | None:
        """Return the items of an array, or None if the key is missing or a single value."""
        value = self.get(key)
        return value.tolist() if isinstance(value, np.ndarray) else value if isinstance(value, list | Strings) else None

    def integers(self, key: str) -> list[int]:
        """Return the items of an array of int32 numbers; an empty list for a missing key or any other value."""
        items = self.items(key) or []
        return list(items) if all(type(n) is int and -(2**31) <= n < 2**31 for n in items) else []

    def texts(self, key: str) -> Sequence[str]:
        """Return the items of an array of strings; an empty list for a missing key or any other value."""
        items = self.items(key) or []
        return items if isinstance(items, Strings) or all(isinstance(text, str) for text in items) else []

    def set(self, key: str, value: TypedValue) -> None:
        """Set `key`, whether it is there or not.  A number of type F32 is rounded as a file would."""
        key = self.full(key)
        self.kv[key] = float(np.float32(value.value)) if value.type is F32 else value.value
        self.types[key] = value.type

    def set_integer(self, key: str, value: int | None) -> None:
        """Set `key` as U32, unless `value` is unknown."""
        if value is not None:
            self.set(key, U32(value))

    def default(self, key: str, value: TypedValue | None) -> None:
        """Set `key` if it is missing and `value` is known."""
        if value is not None and not self.has(key):
            self.set(key, value)

    def copy(self, *pairs: tuple[str, str]) -> None:
        """For each pair copy the first key to the second, if the first is there and the second is missing."""
        for old, new in ((self.full(old), self.full(new)) for old, new in pairs):
            if old in self.kv and new not in self.kv:
                self.kv[new], self.types[new] = self.kv[old], self.types[old]
                self.kv_offsets[new] = self.kv_offsets.get(old, 0)

    def remove(self, *keys: str) -> None:
        for key in map(self.full, keys):
            self.kv.pop(key, None)
            self.types.pop(key, None)

    def rename_architecture(self, new: str) -> None:
        """Set the architecture and copy its keys to the new name; the old ones stay."""
        old, self.arch = self.arch, new
        self.set("general.architecture", STR(new))
        self.copy_keys(f"{old}.", f"{new}.")

    def copy_keys(self, old: str, new: str) -> None:
        """Copy every key that begins with `old` to one that begins with `new`."""
        for key in [key for key in self.kv if key.startswith(old)]:
            target = new + key.removeprefix(old)
            if target not in self.kv:
                self.kv[target], self.types[target] = self.kv[key], self.types[key]
                self.kv_offsets[target] = self.kv_offsets.get(key, 0)

    def cut_vocabulary(self, n: int | None) -> None:
        """Drop tokens from number `n` on, for which the embedding has no row."""
        for key in VOCABULARY:
            value = self.kv.get(key)
            if n is not None and isinstance(value, list | np.ndarray | Strings) and len(value) > n:
                self.kv[key] = value[:n]

    # ---- tensors

    def has_tensor(self, *prefixes: str) -> bool:
        """Return whether the name of any tensor begins with one of `prefixes`."""
        return any(name.startswith(prefixes) for name in self.tensors)

    def ne(self, name: str, axis: int) -> int | None:
        """Return a tensor's size along `axis`, counted as ggml does, the fastest first; None if it has no such axis."""
        tensor = self.tensors.get(name)
        return tensor.shape[-1 - axis] if tensor is not None and len(tensor.shape) > axis else None

    def hide(self, *prefixes: str) -> None:
        """Remove the tensors whose names begin with one of `prefixes`."""
        self.tensors = {name: tensor for name, tensor in self.tensors.items() if not name.startswith(prefixes)}

    def keep(self, *prefixes: str) -> None:
        """Remove the tensors whose names begin with none of `prefixes`."""
        self.tensors = {name: tensor for name, tensor in self.tensors.items() if name.startswith(prefixes)}

    def rename(self, *pairs: tuple[str, str]) -> None:
        """For each pair rename the tensor with the first name, unless the second is taken."""
        for old, new in pairs:
            if old in self.tensors and new not in self.tensors:
                self.tensors[new] = self.tensors.pop(old)
                self.tensor_offsets[new] = self.tensor_offsets.get(old, 0)

    def replace(self, *pairs: tuple[str, str]) -> None:
        """For each pair replace the first text by the second in all names, once a name, where a part of it ends."""
        for old, new in pairs:
            end_of_part = re.compile(re.escape(old) + r"(?![^.])")
            self.rename(*[(name, end_of_part.sub(new, name, count=1)) for name in self.tensors])

    def rename_beginning(self, old: str, new: str) -> None:
        self.rename(*[(name, new + name.removeprefix(old)) for name in self.tensors if name.startswith(old)])

    def append(self, end: str, suffix: str) -> None:
        """Append `suffix` to the names that end in `end`."""
        self.rename(*[(name, name + suffix) for name in self.tensors if name.endswith(end)])

    def put(self, name: str, x: np.ndarray) -> None:
        """Add or replace a tensor of type F32.  x f32 [*shape]"""
        format = FORMATS_BY_NAME["F32"]
        self.tensors[name] = Tensor(name, format, x.shape, np.ascontiguousarray(x, format.layout))

    def put_blocks(self, name: str, like: Tensor, shape: tuple[int, ...], blocks: np.ndarray) -> None:
        """Add or replace a tensor in the format of `like`."""
        self.tensors[name] = Tensor(name, like.format, shape, blocks)

    def promote(self, *names: str) -> None:
        """Convert tensors of type F16 to F32; leave other types alone."""
        for name in names:
            tensor = self.f16(name)
            if tensor is not None:
                self.put(name, tensor.dequantize())

    def f16(self, name: str) -> Tensor | None:
        """Return the tensor `name` if it is of type F16."""
        tensor = self.tensors.get(name)
        return tensor if isinstance(tensor, Tensor) and tensor.format.name == "F16" else None

    def computable(self, names: Iterable[str]) -> list[Tensor] | None:
        """Return the tensors `names`, or None if one of them is missing."""
        found = [self.tensors.get(name) for name in names]
        known = [tensor for tensor in found if isinstance(tensor, Tensor)]
        return known if len(known) == len(found) else None


Rule = Callable[[View], None]


def array_of(type: Any, items: Iterable[Any]) -> TypedValue:
    """Return an array as a typed value, in the form in which a file's arrays are read."""
    dtype = {"f32": np.float32, "i32": np.int32, "u8": np.uint8}.get(str(type))
    return TypedValue(ArrayType(type), np.array(list(items), dtype) if dtype else list(items))
