"""JSON schemas, made explicit so that a grammar can enforce them.

   {"properties": {"age": {"type": "integer"}}}
-> {"properties": {"age": {"type": "integer"}}, "type": "object", "additionalProperties": false}
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from ..errors import BadGrammar

Schema = dict[str, Any]

TYPES = frozenset("null boolean object array number string".split())  # an integer is a number
FORMATS = frozenset("date-time date time duration email hostname ipv4 ipv6 uuid uri".split())
IMPLIED = {"properties": "object", "items": "array", "prefixItems": "array", "pattern": "string", "format": "string"}
WITH_NAMES = {"properties", "patternProperties", "$defs", "definitions"}
IN_LISTS = {"anyOf", "oneOf", "allOf", "prefixItems"}
COMBINING = {"$ref", "anyOf", "oneOf", "allOf"}


def narrowed(schema: Schema) -> Schema:
    """Rewrite `schema` as Ollama's engine reads it; every answer that satisfies the new one satisfies the old one.

    type                  inferred from keywords that apply only to an object, an array or a string
    additionalProperties  false by default, so that only the listed properties occur, unless schemas are combined that
                          list properties of their own
    format                removed if unsupported
    oneOf                 becomes anyOf, if no answer can fit two alternatives
    Raises: BadGrammar, naming the keyword.
    """
    schema = json.loads(json.dumps(schema))
    parts = list(_parts(schema))
    alone = not any(_is_combined(part) for part in parts)
    for part in parts:
        _make_explicit(part, alone)
    for part in parts:
        _rewrite_one_of(part, schema)
    return schema


def _parts(schema: Schema) -> Iterator[Schema]:
    """Yield the schema and every schema in it, outer ones first."""
    waiting: list[tuple[str, Any]] = [("", schema)]
    while waiting:
        keyword, part = waiting.pop()
        if isinstance(part, bool):
            continue
        if not isinstance(part, dict):
            raise BadGrammar(f"format: {keyword}: {json.dumps(part)} is not a schema")
        yield part
        for keyword, value in part.items():
            if keyword in WITH_NAMES and isinstance(value, dict):
                waiting += [(keyword, inner) for inner in value.values()]
            elif isinstance(value, list) and (keyword in IN_LISTS or keyword == "items"):
                waiting += [(keyword, inner) for inner in value]
            elif keyword in ("items", "additionalProperties"):
                waiting.append((keyword, value))


def _is_combined(part: Schema) -> bool:
    """Return whether several schemas apply to the same object."""
    several = isinstance(part.get("allOf"), list) and len(part["allOf"]) > 1
    return several or ("properties" in part and bool(part.keys() & COMBINING))


def _make_explicit(part: Schema, alone: bool) -> None:
    if isinstance(part.get("format"), str) and part["format"] not in FORMATS:
        del part["format"]
    implied = {type for keyword, type in IMPLIED.items() if keyword in part}
    if len(implied) == 1 and not part.keys() & {"type", *COMBINING}:
        part["type"] = implied.pop()
    is_explicit = part.keys() & {"additionalProperties", "minProperties"}
    if alone and "properties" in part and not is_explicit and _required(part) <= _map(part, "properties").keys():
        part["additionalProperties"] = False


def _rewrite_one_of(part: Schema, root: Schema) -> None:
    alternatives = part.get("oneOf")
    if not isinstance(alternatives, list) or "anyOf" in part:
        return
    for a, b in combinations([_target(one, root) for one in alternatives if one is not False], 2):
        if not _are_exclusive(a, b, root):
            raise BadGrammar("format: oneOf: an answer may fit two of the alternatives; anyOf allows that")
    part["anyOf"] = part.pop("oneOf")


def _are_exclusive(a: Schema, b: Schema, root: Schema) -> bool:
    """Return whether the schemas obviously exclude each other: by type, by value, or by a property."""
    if _differ(a, b):
        return True
    if not _types(a) == _types(b) == {"object"}:
        return False
    needed = _required(a), _required(b)
    if any(_forbids(a, name) for name in needed[1]) or any(_forbids(b, name) for name in needed[0]):
        return True
    both = ([_target(_map(part, "properties").get(name), root) for part in (a, b)] for name in needed[0] & needed[1])
    return any(_differ(*pair) for pair in both)


def _differ(a: Schema, b: Schema) -> bool:
    if not _types(a) & _types(b):
        return True
    values = _values(a), _values(b)
    return values[0] is not None and values[1] is not None and not values[0] & values[1]


def _forbids(part: Schema, name: str) -> bool:
    is_closed = part.get("additionalProperties") is False and "patternProperties" not in part
    return is_closed and name not in _map(part, "properties")


def _target(part: Any, root: Schema) -> Schema:
    """Return `part`, or the schema in the same document that it refers to; {} if it has no keywords."""
    for _ in range(10):
        if not isinstance(part, dict) or not str(part.get("$ref", "")).startswith("#/"):
            break
        steps = part["$ref"][2:].split("/")
        part = root
        for step in steps:
            part = _map(part, step.replace("~1", "/").replace("~0", "~"))
    return part if isinstance(part, dict) else {}


def _types(part: Schema) -> set[str]:
    """Return the types of valid answers; an integer is a number."""
    said, values = part.get("type"), _values(part)
    if isinstance(said, str):
        said = [said]
    if isinstance(said, list):
        return {"number" if type == "integer" else str(type) for type in said}
    return {type for type, _ in values} if values is not None else set(TYPES)


def _values(part: Schema) -> set[tuple[str, Any]] | None:
    """Return the valid values with their types, if the schema lists them; true differs from 1, but 1.0 does not."""
    listed = [part["const"]] if "const" in part else part.get("enum")
    if not isinstance(listed, list) or any(isinstance(value, (dict, list)) for value in listed):
        return None
    names = {bool: "boolean", int: "number", float: "number", str: "string", type(None): "null"}
    return {(names[type(value)], value) for value in listed}


def _required(part: Schema) -> set[str]:
    required = part.get("required")
    return {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()


def _map(part: Any, keyword: str) -> dict[str, Any]:
    value = part.get(keyword) if isinstance(part, dict) else None
    return value if isinstance(value, dict) else {}
