"""The parts in which a large blob is transferred, several at a time."""

from __future__ import annotations

import json
from dataclasses import dataclass

MIN_PART_BYTES, MAX_PART_BYTES = 100_000_000, 1_000_000_000
READ_BYTES = 1 << 20  # of a file at a time


def part_size(total: int) -> int:
    """Return the size in bytes of each part of a blob: a sixteenth, within Ollama's bounds."""
    return min(max(total // 16, MIN_PART_BYTES), MAX_PART_BYTES)


@dataclass
class Part:
    """The bytes `offset` to `offset + size` of a blob, of which the first `completed` have been received."""

    n: int
    offset: int
    size: int
    completed: int = 0

    def to_bytes(self) -> bytes:
        n, offset, size, completed = self.n, self.offset, self.size, self.completed
        return b'{"N":%d,"Offset":%d,"Size":%d,"Completed":%d}\n' % (n, offset, size, completed)

    @classmethod
    def from_bytes(cls, data: bytes) -> Part:
        """Parse a part's record.  Raises: ValueError, KeyError, TypeError"""
        value = json.loads(data)
        numbers = [value[key] for key in ("N", "Offset", "Size", "Completed")]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError(f"invalid record of a part: {data[:100]!r}")
        return cls(*numbers)
