"""Which parts of a schema apply to a value, by its place in the answer.

{"properties": {"a": {"anyOf": [A, {"allOf": [B, C]}]}}}      at "a": A, or both B and C
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..errors import BadGrammar
from .schema_check import Schema, resolve_reference
from .schema_part import types

MAX_PLACES = 2000
MAX_ALTERNATIVES = 500  # at one place

Parts = tuple[Schema, ...]  # they apply together


def places(root: Schema) -> Iterator[list[Parts]]:
    """Yield the alternatives at each place of an answer, each once.  Raises: BadGrammar if there are too many"""
    waiting: list[list[Parts]] = [alternatives([root], root)]
    seen = set()
    while waiting:
        here = waiting.pop()
        key = frozenset(frozenset(map(id, parts)) for parts in here)
        if key in seen:
            continue
        seen.add(key)
        if len(seen) > MAX_PLACES:
            raise BadGrammar(f"format: uniqueItems: the schema has more than {MAX_PLACES} places for values")
        yield here
        objects, arrays = (of_type(name, here) for name in ("object", "array"))
        names = {name for parts in objects for part in parts for name in part.get("properties", ())}
        for name in (*sorted(names), None):
            waiting.append(_joined([alternatives(member_schemas(parts, name), root) for parts in objects]))
        for n in range(1 + max((len(part.get("prefixItems", ())) for parts in arrays for part in parts), default=0)):
            waiting.append(_joined([alternatives(item_schemas(parts, n), root) for parts in arrays]))


def of_type(name: str, alternatives: Iterable[Parts]) -> list[Parts]:
    """Return the alternatives that a value of the type `name` may match."""
    return [parts for parts in alternatives if all(name in types(part) for part in parts)]


def member_schemas(parts: Iterable[Schema], key: str | None) -> Iterator[Any]:
    """Yield the schemas for the value of an object's `key`; None: for a key that is not listed."""
    for part in parts:
        if key in part.get("properties", {}):
            yield part["properties"][key]
        else:
            yield from part.get("patternProperties", {}).values()
            yield part.get("additionalProperties", True)


def item_schemas(parts: Iterable[Schema], n: int) -> Iterator[Any]:
    """Yield the schemas for item `n` of an array."""
    for part in parts:
        first = part.get("prefixItems", [])
        yield first[n] if n < len(first) else part.get("items", True)


def flat(schemas: Iterable[Any], root: Schema) -> Iterator[Schema]:
    """Yield the schemas, those that they combine, and those that a $ref leads to."""
    waiting, seen = list(schemas), set()
    while waiting:
        part = waiting.pop()
        if not isinstance(part, dict) or id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        waiting += [one for keyword in ("anyOf", "allOf") for one in part.get(keyword, ())]
        if "$ref" in part:
            waiting.append(resolve_reference(part["$ref"], root))


def alternatives(schemas: Iterable[Any], root: Schema) -> list[Parts]:
    """Return the alternatives of what fits all `schemas`; none if one of them fits nothing.  Raises: BadGrammar"""
    done: list[Parts] = []
    waiting: list[tuple[list[Any], Parts]] = [([*schemas], ())]
    while waiting:
        left, parts = waiting.pop()
        while left:
            part = left.pop()
            if part is False:
                break
            if not isinstance(part, dict) or any(part is one for one in parts):
                continue
            parts = (*parts, part)
            left += [*part.get("allOf", ()), *([resolve_reference(part["$ref"], root)] if "$ref" in part else [])]
            if "anyOf" in part:
                waiting += [([*left, one], parts) for one in part["anyOf"]]
                break
        else:
            done.append(parts)
        if len(done) + len(waiting) > MAX_ALTERNATIVES:
            raise BadGrammar(f"format: uniqueItems: the schema has more than {MAX_ALTERNATIVES} alternatives")
    return done


def _joined(lists: Sequence[list[Parts]]) -> list[Parts]:
    """Return all alternatives, each once."""
    return [*{frozenset(map(id, parts)): parts for one in lists for parts in one}.values()]
