"""Bounds of a JSON schema, and the type of each keyword's value, checked before native code reads the schema.

    {"minLength": "3"}             format: minLength: "3" is not a count
    {"multipleOf": 2147483648}     format: multipleOf: 2147483648 is above the limit of 10000
    a chain of 1,000 $refs         format: $ref: the schema is nested too deeply: more than 100 levels

llguidance walks a schema recursively in native code, where a deep one overflows the stack and ends the process; and a
number with a large `multipleOf` needs a state for each remainder.  trial.py compiles the rest in a child process first.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from ..errors import BadGrammar

Schema = dict[str, Any]

MAX_DEPTH = 100  # levels, those behind a $ref included; llguidance overflows its stack between 700 and 1,000
MAX_NODES = 20_000  # schemas and listed values
MAX_MULTIPLE = 10_000  # a number's automaton has a state for each remainder: 9,973 takes 0.1 s, 999,983 takes 24 s
MAX_DIGITS = 4  # of multipleOf, without the zeros around them; 12,345 of 0.12345 are as many states
MAX_COUNT = 10_000  # items, characters or properties that an answer must have at least
MAX_PATTERN_CHARS = 20_000  # of all patterns together
MAX_SHOWN_CHARS = 60  # of a value in an error

NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
SINGLE = (
    *("items", "additionalItems", "unevaluatedItems", "contains", "propertyNames", "additionalProperties"),
    *("unevaluatedProperties", "not", "if", "then", "else"),
)
TYPES = frozenset("null boolean object array number integer string".split())


def check_schema(schema: Schema) -> None:
    """Check the size of `schema` and the values of its keywords.  Raises: BadGrammar, naming the keyword"""
    n_pattern = 0
    for keyword, part in walk(schema):
        if not isinstance(part, dict):
            if not isinstance(part, bool):
                raise BadGrammar(f"format: {keyword}: {shown(part)} is not a schema")
            continue
        for keyword, value in part.items():
            expected, is_right = KEYWORDS.get(keyword, ANYTHING)
            if not is_right(value):
                raise BadGrammar(f"format: {keyword}: {shown(value)} is not {expected}")
            if keyword in LIMITS and value > LIMITS[keyword]:
                raise BadGrammar(f"format: {keyword}: {shown(value)} is above the limit of {LIMITS[keyword]}")
        for name in (name for keyword in NAMED for name in part.get(keyword, ())):
            if CONTROL.search(name):  # its key would be spelled with \\u, which veto.py forbids
                raise BadGrammar(f"format: properties: the name {shown(name)} has a control character")
        if "multipleOf" in part and Decimal(str(part["multipleOf"])).normalize().as_tuple()[1][MAX_DIGITS:]:
            raise BadGrammar(f"format: multipleOf: {part['multipleOf']} has more than {MAX_DIGITS} digits")
        n_pattern += len(part.get("pattern", "")) + sum(map(len, part.get("patternProperties", ())))
        if n_pattern > MAX_PATTERN_CHARS:
            raise BadGrammar(f"format: pattern: all patterns together exceed {MAX_PATTERN_CHARS} characters")


def walk(schema: Schema) -> Iterator[tuple[str, Any]]:
    """Yield every schema in `schema`, and those that a $ref leads to, outer ones first, each with its keyword.

    Raises: BadGrammar if there are too many, or they are nested too deeply, or a $ref leads to nothing
    """
    seen: set[int] = set()
    waiting: list[tuple[str, Any, int]] = [("", schema, 0)]
    n = 0
    while waiting:
        keyword, part, depth = waiting.pop()
        if id(part) in seen and isinstance(part, dict | list):
            continue
        seen.add(id(part))
        n += 1
        if depth > MAX_DEPTH:
            raise BadGrammar(f"format: {keyword}: the schema is nested too deeply: more than {MAX_DEPTH} levels")
        yield keyword, part
        if isinstance(part, dict):
            n += sum(_size(name, part[name]) for name in ("const", "enum", "default", "examples") if name in part)
            waiting += reversed([(name, inner, depth + 1) for name, inner in inside(part)])
            if isinstance(part.get("$ref"), str):
                waiting.append(("$ref", resolve_reference(part["$ref"], schema), depth + 1))
        if n + len(waiting) > MAX_NODES:
            raise BadGrammar(f"format: {keyword}: the schema has more than {MAX_NODES} parts and values")


def inside(part: Schema) -> Iterator[tuple[str, Any]]:
    """Yield the schemas directly in `part`, each with its keyword."""
    for keyword, value in part.items():
        if keyword == "dependencies":
            yield from ((keyword, inner) for inner in value.values() if not isinstance(inner, list))
        elif keyword in NAMED and isinstance(value, dict):
            yield from ((keyword, inner) for inner in value.values())
        elif isinstance(value, list) and (keyword in LISTS or keyword == "items"):
            yield from ((keyword, inner) for inner in value)
        elif keyword in SINGLE:
            yield keyword, value


def resolve_reference(reference: str, root: Schema) -> Any:
    """Return what a reference such as "#/$defs/Name" leads to in `root`.  Raises: BadGrammar"""
    if "$id" in root and reference.removesuffix("#") == root["$id"]:
        return root
    if reference != "#" and not reference.startswith("#/"):
        raise BadGrammar(f"format: $ref: {shown(reference)} is not a path in the schema, such as #/$defs/Name")
    found: Any = root
    for step in reference.split("/")[1:]:
        step = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and step in found:
            found = found[step]
        elif isinstance(found, list) and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        else:
            raise BadGrammar(f"format: $ref: {shown(reference)} leads to nothing in the schema")
    return found


def shown(value: Any) -> str:
    """Return `value` as JSON for an error, shortened; an array or object by its type alone."""
    if isinstance(value, dict | list) and value:
        return "an object" if isinstance(value, dict) else "an array"
    text = json.dumps(value, default=repr)
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 3] + "..."


def _size(keyword: str, value: Any) -> int:
    """Count the values in `value`."""
    n, level = 0, [value]
    for _ in range(MAX_DEPTH):
        n += len(level)
        nested = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [one for values in nested for one in values]
        if not level:
            return n
        if n > MAX_NODES:
            break
    raise BadGrammar(f"format: {keyword}: a value is too large, or nested in more than {MAX_DEPTH} levels")


# --- the value of each keyword ---


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_type(value: Any) -> bool:
    listed = value if isinstance(value, list) else [value]
    return bool(listed) and all(isinstance(name, str) and name in TYPES for name in listed)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


Rule = tuple[str, Callable[[Any], bool]]
ANYTHING: Rule = "", lambda value: True
COUNT: Rule = "a count", _is_count
NUMBER: Rule = "a finite number", _is_number
STRICT: Rule = "a finite number", lambda value: isinstance(value, bool) or _is_number(value)  # true in draft 4
SCHEMAS: Rule = "a list of schemas", lambda value: isinstance(value, list) and bool(value)
MAP: Rule = "an object of schemas", _is_object
CONTROL = re.compile(r"[\x00-\x07\x0b\x0e-\x1f]")
KEYWORDS: dict[str, Rule] = {
    "type": ("a type, or a list of types", _is_type),
    "enum": ("a list of values", lambda value: isinstance(value, list) and bool(value)),
    "$ref": ("a reference", _is_text),
    "pattern": ("a regular expression", _is_text),
    "format": ("the name of a format", _is_text),
    "required": ("a list of names", _is_names),
    "uniqueItems": ("true or false", lambda value: isinstance(value, bool)),
    "multipleOf": ("a number above 0", lambda value: _is_number(value) and value > 0),
    "dependentRequired": ("lists of names", lambda value: _is_object(value) and all(map(_is_names, value.values()))),
    **dict.fromkeys(("minimum", "maximum"), NUMBER),
    **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum"), STRICT),
    **{f"{least}{what}": COUNT for least in ("min", "max") for what in ("Length", "Items", "Properties", "Contains")},
    **dict.fromkeys(LISTS, SCHEMAS),
    **dict.fromkeys(NAMED, MAP),
    "dependencies": ("an object", _is_object),
}
LIMITS = {"multipleOf": MAX_MULTIPLE, **dict.fromkeys(("minLength", "minItems", "minProperties"), MAX_COUNT)}
