"""Integers beyond float64, which llguidance would round: their digits are enforced by veto.py.

{"const": 1234567890123456789}       for llguidance any integer, of which veto.py permits one
{"const": {"id": 2**64}}             an object whose property "id" is that constant
"""

from __future__ import annotations

from typing import Any

from ..errors import BadGrammar
from .number_bounds import MAX_INTEGER
from .schema_check import Schema


def is_exact(value: Any) -> bool:
    """Return whether llguidance keeps all digits of `value`, if it is a number."""
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) < 2**53:
        return True
    return abs(value) <= MAX_INTEGER and int(float(value)) == value


def holds_exact(value: Any) -> bool:
    """Return whether llguidance keeps all digits of all numbers in `value`."""
    if isinstance(value, dict | list):
        return all(map(holds_exact, value.values() if isinstance(value, dict) else value))
    return is_exact(value)


def exact_constants(part: Schema, root: Schema) -> Schema:
    """Write constant objects and arrays that hold large integers as schemas, so that each is a constant of its own."""
    listed = [part["const"]] if "const" in part else part.get("enum", [])
    nested = [value for value in listed if isinstance(value, dict | list) and not holds_exact(value)]
    if not nested:
        return part
    if "anyOf" in part:
        raise BadGrammar("format: enum: integers beyond 2^53 cannot be enforced beside anyOf")
    rest = [value for value in listed if value not in nested]
    kept = {keyword: value for keyword, value in part.items() if keyword not in ("const", "enum")}
    return kept | {"anyOf": [*([{"enum": rest}] if rest else []), *map(_schema_of, nested)]}


def _schema_of(value: Any) -> Schema:
    if isinstance(value, dict):
        properties = {name: _schema_of(one) for name, one in value.items()}
        return {"type": "object", "properties": properties, "required": [*value], "additionalProperties": False}
    if isinstance(value, list):
        ends = {"items": False, "minItems": len(value)}
        return {"type": "array", **ends} | ({"prefixItems": [*map(_schema_of, value)]} if value else {"maxItems": 0})
    return {"const": value}


def rounded(part: Schema) -> Schema:
    """Return `part` for llguidance: any integer instead of those that it would round."""
    listed = [part["const"]] if "const" in part else part.get("enum", [])
    exact = [value for value in listed if is_exact(value)]
    if len(exact) == len(listed):
        return part
    kept = {keyword: value for keyword, value in part.items() if keyword not in ("const", "enum")}
    return kept | {"anyOf": [*([{"enum": exact}] if exact else []), {"type": "integer"}]}
