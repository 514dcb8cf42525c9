"""Items of an array that must differ: which items they may be, and whether another one is left.

{"type": "string"}                       there is always another one
{"enum": ["a", "ab"]}                    after "a", only "ab" is left
{"type": "integer", "maximum": 3}        after 3, -3 and 31 are left, but no other integer that begins with 3
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from ..errors import BadGrammar
from .schema_check import Schema
from .schema_part import target, value_key, values

MAX_DIGITS = 20
MAX_VALUES = 1000  # that items may have: each token is compared with all
FREE_STRING = {"type", "minLength"}
BOUNDED_INTEGER = {"type", "minimum", "maximum"}


class Items(NamedTuple):
    """The items of an array that must differ: listed values, integers in a range, or texts and numbers without limits.

    texts   spellings of the listed values
    low     bounds of integers; None for other items
    """

    texts: tuple[bytes, ...] | None = None
    low: float | None = None
    high: float = 0

    def can_differ(self, partial: bytes, seen: frozenset[tuple[str, str]]) -> bool:
        """Return whether an item that begins with `partial` can differ from those `seen`."""
        if self.texts is not None:
            return any(text.startswith(partial) and key_of(text) not in seen for text in self.texts)
        if self.low is None:
            return True
        if partial in (b"0", b"-0"):
            return ("number", "0") not in seen
        return self._n_integers(partial) > sum(text.startswith(partial.decode()) for _, text in seen)

    def _n_integers(self, partial: bytes) -> float:
        """Count the integers in range that begin with `partial`."""
        assert self.low is not None
        low, high = self.low, self.high
        if partial.startswith(b"-"):
            low, high, partial = max(-high, 1), -low, partial[1:]
        if not partial:
            return max(high - low + 1, 0)
        starts = [(int(partial) * 10**power, 10**power) for power in range(MAX_DIGITS)]
        return float(sum(max(min(start + n - 1, high) - max(start, low) + 1, 0) for start, n in starts))


def items_of(part: Schema, root: Schema) -> Items:
    """Return the items of an array that must differ.  Raises: BadGrammar if that cannot be enforced for such items"""
    item = target(part.get("items", True), root)
    listed = values(item)
    if listed is not None and len(listed) <= MAX_VALUES:
        return Items(tuple(spelled(value) for value in listed.values()))
    if item.get("type") in ("boolean", "null"):
        return Items(tuple([b"true", b"false"] if item["type"] == "boolean" else [b"null"]))
    if item.get("type") == "integer" and item.keys() <= BOUNDED_INTEGER:
        return Items(None, item.get("minimum", -(10**19)), item.get("maximum", 10**19))
    if "prefixItems" in part or not (item.get("type") in ("string", "number") and item.keys() <= FREE_STRING):
        raise BadGrammar(
            "format: uniqueItems: it can be enforced for strings, numbers and listed values without limits"
        )
    return Items()


def spelled(value: Any) -> bytes:
    """Return the only spelling of a scalar that the grammar allows."""
    return json.dumps(value, ensure_ascii=False).encode()


def key_of(text: bytes) -> tuple[str, str]:
    """Return the type of the scalar that `text` spells, and a spelling that equal values share."""
    return value_key(json.loads(text))
