"""The opposite of a schema, as far as it is a schema again that a grammar can enforce.

{"type": "null"}                  {"type": ["boolean", "object", "array", "number", "string"]}
{"const": "a"}                    any other type, or a string that matches "others"(["a"])
{"minimum": 3}                    any other type, or a number below 3
{"required": ["a"]}               any other type, or an object whose "a" is forbidden
{"properties": {"a": S}}          an object whose "a" is there and matches the opposite of S
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any

from ..errors import BadGrammar
from .schema_check import Schema
from .schema_part import JSON_TYPES, LABELS, target

MAX_PARTS = 100
MAX_CHARACTERS = 300  # of strings that are excluded; their pattern nests as deep
ALL_TYPES = sorted(JSON_TYPES)
OPPOSITE_BOUNDS = {
    "minimum": "exclusiveMaximum",
    "exclusiveMinimum": "maximum",
    "maximum": "exclusiveMinimum",
    "exclusiveMaximum": "minimum",
}


def opposite(part: Any, root: Schema, keyword: str, parts: Iterator[int] | None = None) -> Any:
    """Return a schema for what does not match `part`.

    parts   numbers the schemas that are inverted on the way
    Raises: BadGrammar, naming `keyword`, if a grammar cannot enforce it
    """
    parts = parts or count(1)
    if next(parts) > MAX_PARTS:
        raise BadGrammar(f"format: {keyword}: more than {MAX_PARTS} schemas cannot be inverted, nor one within itself")
    if isinstance(part, bool):
        return not part
    part = target(part, root)
    said = {key: value for key, value in part.items() if key not in LABELS}
    if said.keys() & {"const", "enum"}:
        said.pop("type", None)  # generators repeat the type of the values
    either = []
    for key, value in said.items():
        one = _opposite_of_keyword(key, value, partial(opposite, root=root, keyword=keyword, parts=parts))
        if one is None:
            raise BadGrammar(f"format: {keyword}: the opposite of {key!r} cannot be enforced")
        either += one
    return {"anyOf": either} if either else False


def _opposite_of_keyword(key: str, value: Any, invert: Callable[[Any], Any]) -> list[Any] | None:
    """Return schemas, one of which matches what the keyword `key` forbids; None if they cannot be enforced."""
    if key == "type":
        listed = [value] if isinstance(value, str) else value
        rest = [one for one in ALL_TYPES if one not in listed]
        return None if "integer" in listed and "number" in rest else [{"type": rest}] if rest else []
    if key in ("const", "enum"):
        return _other_values([value] if key == "const" else value)
    if key in OPPOSITE_BOUNDS:
        return [{"type": "number", OPPOSITE_BOUNDS[key]: value}]
    if key == "minLength":
        return [{"type": "string", "maxLength": value - 1}] if value else []
    if key == "maxLength":
        return [{"type": "string", "minLength": value + 1}]
    if key == "minItems":
        return [{"type": "array", "maxItems": value - 1}] if value else []
    if key == "maxItems":
        return [{"type": "array", "minItems": value + 1}]
    if key == "required":
        return [without_property(name) for name in value]
    if key == "properties":
        return [_with_property(name, invert(one)) for name, one in value.items()]
    if key == "not":
        return [value]
    if key == "anyOf":
        return [{"allOf": [invert(one) for one in value]}]
    if key == "allOf":
        return [invert(one) for one in value]
    return None


def without_property(name: str) -> Schema:
    """Return the schema of objects without a property."""
    return {"type": "object", "properties": {name: False}, "additionalProperties": True}


def _with_property(name: str, schema: Any) -> Schema:
    return {"type": "object", "properties": {name: schema}, "required": [name], "additionalProperties": True}


def _other_values(listed: list[Any]) -> list[Schema] | None:
    """Return schemas for all values but those listed; None if there are objects or arrays among these."""
    strings = [one for one in listed if isinstance(one, str)]
    switches = [one for one in listed if isinstance(one, bool)]
    numbers = sorted({one for one in listed if isinstance(one, int | float) and not isinstance(one, bool)})
    if any(isinstance(one, dict | list) for one in listed) or sum(map(len, strings)) > MAX_CHARACTERS:
        return None
    others: list[Schema] = [{"type": ["object", "array"]}]
    others += [] if None in listed else [{"type": "null"}]
    others += [{"enum": [one]} for one in (True, False) if one not in switches]
    others.append({"type": "string", "pattern": others_pattern(strings)} if strings else {"type": "string"})
    for low, high in zip([None, *numbers], [*numbers, None], strict=True):
        between = {"exclusiveMinimum": low, "exclusiveMaximum": high}
        others.append({"type": "number"} | {key: bound for key, bound in between.items() if bound is not None})
    return others


def others_pattern(words: list[str]) -> str:
    """Return a regular expression for every text but `words`."""
    return f"^{_others(frozenset(words))}$"


def _others(words: frozenset[str]) -> str:
    if not words:
        return "(?s:.*)"
    starts = sorted({word[0] for word in words if word})
    others = "".join(rf"\x{{{ord(start):x}}}" for start in starts)
    ways = [f"[^{others}](?s:.*)" if others else "(?s:.+)"]
    for start in starts:
        ways.append(rf"\x{{{ord(start):x}}}{_others(frozenset(word[1:] for word in words if word[:1] == start))}")
    return f"(?:{'|'.join(ways)}){'' if '' in words else '?'}"
