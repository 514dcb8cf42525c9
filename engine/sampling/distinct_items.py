"""Items of an array that must differ: which items they may be, and whether another one is left.

{"type": "string"}                       there is always another one
{"enum": ["a", "ab"]}                    after "a", only "ab" is left
{"type": "integer", "maximum": 3}        after 3, -3 and 31 are left, but no other integer that begins with 3
"""

from __future__ import annotations

import json
from math import inf
from typing import Any, NamedTuple

from ..errors import BadGrammar
from .places import of_type, places
from .schema_check import Schema
from .schema_part import target, typed_values, value_key

MAX_DIGITS = 20
MAX_VALUES = 1000  # that items may have: each token is compared with all
ABOUT_ITEMS = {"items", "prefixItems", "uniqueItems"}
LISTING = {"type", "const", "enum"}
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

    @property
    def n(self) -> float:
        """How many items there are."""
        if self.texts is not None:
            return len(self.texts)
        return inf if self.low is None else self._n_integers(b"")

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
    listed, said = typed_values(item), item.get("type")
    if "prefixItems" in part:
        raise BadGrammar("format: uniqueItems: it cannot be enforced beside prefixItems or contains")
    if listed is not None and len(listed) <= MAX_VALUES and item.keys() <= LISTING:
        return Items(tuple(spelled(value) for value in listed.values()))
    if said in ("boolean", "null") and item.keys() == {"type"}:
        return Items((b"true", b"false") if said == "boolean" else (b"null",))
    if said == "integer" and item.keys() <= BOUNDED_INTEGER:
        return Items(None, item.get("minimum", -(10**19)), item.get("maximum", 10**19))
    if said in ("string", "number") and item.keys() <= FREE_STRING:
        return Items()
    raise BadGrammar("format: uniqueItems: it can be enforced for strings, numbers and listed values without limits")


def check_sets(schema: Schema) -> None:
    """Check that a veto of repeated items leaves an item wherever the grammar requires another one.

    The veto does not know which of several alternatives the answer follows.  So where one of them wants items to
    differ, all arrays that are possible at the same place must have the same items; and if those are limited, all of
    them must differ in each alternative.
    Raises: BadGrammar
    """
    for alternatives in places(schema):
        parts = [part for parts in alternatives for part in parts]
        if not any(part.get("uniqueItems") for part in parts):
            continue
        arrays = of_type("array", alternatives)
        items = {items_of(part, schema) for parts in arrays for part in parts if part.keys() & ABOUT_ITEMS}
        is_alike = len(items) <= 1 and all(any(part.keys() & ABOUT_ITEMS for part in parts) for parts in arrays)
        if not is_alike or (items != {Items()} and not all(map(_is_set, arrays))):
            raise BadGrammar("format: uniqueItems: it cannot be enforced beside another array at the same place")
        least, most = max(part.get("minItems", 0) for part in parts), min((one.n for one in items), default=inf)
        if least > most:
            raise BadGrammar(f"format: minItems: {least} items cannot differ, as there are {most:.0f} values")


def _is_set(parts: tuple[Schema, ...]) -> bool:
    return any(part.get("uniqueItems") for part in parts)


def spelled(value: Any) -> bytes:
    """Return the only spelling of a scalar that the grammar allows."""
    return json.dumps(value, ensure_ascii=False).encode()


def key_of(text: bytes) -> tuple[str, str]:
    """Return the type of the scalar that `text` spells, and a spelling that equal values share."""
    return value_key(json.loads(text))
