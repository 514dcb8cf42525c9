"""Values of arguments that are written otherwise than in JSON."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping
from typing import Any

Call = tuple[str, dict[str, Any]]
"""A call that was read: its name and arguments."""
Tools = Mapping[str, Mapping[str, Any]]
"""The tools of a request: name -> schema of the parameters."""

JSON_KINDS = {"array": list, "object": dict}
MAX_NESTING = 100  # deeper values are not read; Python's JSON parser gives up at 250


def json_value(text: str) -> Any:
    """Parse JSON as Go does, without NaN; an integer keeps its digits.  Raises: ValueError"""
    depth = text.count("{") + text.count("[")
    if depth > MAX_NESTING and _nesting(text) > MAX_NESTING:
        raise ValueError("nested too deeply")
    return json.loads(text, parse_int=_number, parse_float=_number, parse_constant=_number)


def json_object(text: str) -> dict[str, Any] | None:
    """Parse a JSON object; None if the text is something else."""
    try:
        value = json_value(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _nesting(text: str) -> int:
    deepest = depth = 0
    in_string = is_escaped = False
    for c in text:
        if is_escaped:
            is_escaped = False
        elif c == "\\":
            is_escaped = True
        elif c == '"':
            in_string = not in_string
        elif not in_string:
            depth += (c in "{[") - (c in "}]")
            deepest = max(deepest, depth)
    return deepest


def _number(text: str) -> int | float:
    """Return an int, with all digits, or a float.  Raises: ValueError if invalid in JSON or beyond a double"""
    value = float(text)
    if not abs(value) < float("inf"):
        raise ValueError(text)
    return int(text) if text.removeprefix("-").isdigit() else value


def types_of(schema: Any) -> list[str]:
    """Return the types that a schema names, also those of its alternatives."""
    if not isinstance(schema, Mapping):
        return []
    named = schema.get("type")
    types = [named] if isinstance(named, str) and named else list(named) if isinstance(named, list) else []
    for key in ("anyOf", "oneOf"):
        types += [type for part in schema.get(key) or () for type in types_of(part)]
    return types


def typed_value(text: str, types: list[str]) -> Any:
    """Read a value written as plain text by the `types` of its parameter; text that fits no other is a string.

    "12" of type string is "12", of type integer 12; "null" is None whatever the type.
    """
    text = text.removeprefix("\n").removesuffix("\n")
    if text.lower() == "null":
        return None
    if "boolean" in types:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        if types == ["boolean"]:
            return False
    if "integer" in types and (number := _whole(text)) is not None:
        return number
    if "number" in types and (real := _real(text)) is not None:
        return int(real) if real == math.trunc(real) and abs(real) < 2**63 else real
    for type, kind in JSON_KINDS.items():
        if type in types:
            try:
                value = json_value(text)
            except ValueError:
                continue
            if isinstance(value, kind):
                return value
    return text


def _whole(text: str) -> int | None:
    digits = text[1:] if text[:1] in ("-", "+") else text
    return int(text) if digits.isascii() and digits.isdigit() and abs(int(text)) < 2**63 else None


def _real(text: str) -> float | None:
    try:
        value = float(text) if text.strip() == text and "_" not in text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def loose_value(text: str, types: list[str]) -> Any:
    """Read a value by its type, or as JSON or a Python literal where its type is unknown or does not fit.

    Templates write None and {'a': 1} where they print a value of Python.
    """
    if types == ["string"]:
        return text
    value = typed_value(text, types) if types else text
    if not isinstance(value, str) or "string" in types:
        return value
    for parse in (json_value, python_value):
        try:
            return parse(text.strip())
        except ValueError:
            continue
    return text


def python_value(text: str) -> Any:
    """Parse a Python literal.  Raises: ValueError"""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError(f"{text[:40]!r} is not a literal") from None
