"""An array of strings as a file has it, without Python's 50 bytes and more for each."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np


class Strings(Sequence[str]):
    """An immutable list of strings: their bytes one after the other, and where each ends.

    Each access decodes one; a byte that is not UTF-8 becomes a lone surrogate (errors="surrogateescape").
    """

    __slots__ = ("_data", "_ends")

    def __init__(self, strings: Iterable[bytes]):
        data, ends = bytearray(), array("Q", [0])
        for one in strings:
            data += one
            ends.append(len(data))
        self._data, self._ends = bytes(data), array("I", ends) if len(data) < 2**32 else ends

    @classmethod
    def of(cls, strings: Iterable[str]) -> Strings:
        return cls(text.encode("utf-8", "surrogateescape") for text in strings)

    def encoded(self) -> Iterator[bytes]:
        """Yield the bytes of each string."""
        data, start = self._data, 0
        for end in self._ends[1:]:
            yield data[start:end]
            start = end

    def sizes(self) -> np.ndarray:
        """Return the number of bytes of each string.  -> u32 or u64 [n]"""
        return np.diff(np.frombuffer(self._ends, self._ends.typecode))

    def __iter__(self) -> Iterator[str]:
        for one in self.encoded():
            yield one.decode("utf-8", "surrogateescape")

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> Strings: ...
    def __getitem__(self, i: int | slice) -> str | Strings:
        if isinstance(i, slice):
            return Strings.of([self[k] for k in range(*i.indices(len(self)))])
        if i < 0:
            i = range(len(self))[i]
        return self._data[self._ends[i] : self._ends[i + 1]].decode("utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Strings | list | tuple):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))
