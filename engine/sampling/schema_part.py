"""The types, values and required properties that one schema gives, without the schemas within it."""

from __future__ import annotations

import json
from typing import Any

from .schema_check import TYPES, Schema, resolve_reference

MAX_STEPS = 10  # $refs from one to the next
LABELS = {"title", "description", "default", "examples", "deprecated", "$comment"}
BESIDE_REFERENCE = {"$ref", "$defs", "definitions", "$schema", "$id", *LABELS}  # ask nothing beside a $ref
JSON_TYPES = TYPES - {"integer"}  # an integer is a number


def both(part: Schema, more: Any) -> Schema:
    """Return the schema of what fits both."""
    if isinstance(more, dict) and not part.keys() & more.keys():
        return part | more
    return part | {"allOf": [*part.get("allOf", ()), more]}


def target(part: Any, root: Schema) -> Schema:
    """Return `part`, or the schema that its $ref leads to, with what the keywords beside the $ref ask; {} for True."""
    beside: list[Schema] = []
    for _ in range(MAX_STEPS):
        if not isinstance(part, dict) or "$ref" not in part:
            break
        beside.append({keyword: value for keyword, value in part.items() if keyword not in BESIDE_REFERENCE})
        part = resolve_reference(part["$ref"], root)
    part = part if isinstance(part, dict) else {"enum": []} if part is False else {}
    return {"allOf": [part, *filter(None, beside)]} if any(beside) else part


def types(part: Schema) -> set[str]:
    """Return the types of valid answers; an integer is a number."""
    said, listed = part.get("type"), values(part)
    if said is not None:
        return {"number" if type == "integer" else type for type in ([said] if isinstance(said, str) else said)}
    return {type for type, _ in listed} if listed is not None else set(JSON_TYPES)


def values(part: Schema) -> dict[tuple[str, str], Any] | None:
    """Return the valid values by (type, spelling), if the schema lists them; true differs from 1, but 1.0 does not."""
    listed = [part["const"]] if "const" in part else part.get("enum")
    return None if listed is None else {value_key(value): value for value in listed}


def typed_values(part: Schema) -> dict[tuple[str, str], Any] | None:
    """Return the values that the schema lists and its `type` allows."""
    listed, said = values(part), part.get("type", [*TYPES])
    if listed is None:
        return None
    names = {said} if isinstance(said, str) else set(said)
    if "integer" in names and "number" not in names:  # 1.0 is spelled 1
        listed = {key: value for key, value in listed.items() if key[0] != "number" or key[1].lstrip("-").isdecimal()}
        names.add("number")
    return {key: value for key, value in listed.items() if key[0] in names}


def value_key(value: Any) -> tuple[str, str]:
    """Return the type and a spelling of `value` that equal values share."""
    names = {bool: "boolean", str: "string", type(None): "null", dict: "object", list: "array"}
    return names.get(type(value), "number"), json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    """Replace floats that are whole by integers, so that 1.0 is spelled as 1."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def required(part: Schema) -> set[str]:
    return set(part.get("required", ()))
