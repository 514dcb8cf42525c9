"""oneOf as anyOf: possible where no answer can fit two of the alternatives.

    {"oneOf": [{"const": "a"}, {"const": "b"}]}                  an enum of "a" and "b"
    {"oneOf": [{"type": "integer"}, {"type": "string"}]}         different types
    {"oneOf": [cat, dog]}, each with a constant `kind`           a property with different values; it becomes required
    {"oneOf": [{}, {"type": "null"}]}                            what fits the first one and not the second

An alternative is enforced in a narrower form, which must exclude the other alternatives as the caller wrote them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import inf
from typing import Any

from ..errors import BadGrammar
from .negation import opposite
from .schema_check import Schema
from .schema_part import LABELS, both, required, target, types, values

Narrow = Callable[[Schema], Schema]

MAX_PAIRED = 100  # alternatives that are compared in pairs
MAX_COMPARED = 50_000  # pairs of schemas


def one_of_as_any_of(part: Schema, root: Schema, narrow: Narrow) -> Schema:
    """Replace `oneOf` in `part` by `anyOf`, or by `enum` if the alternatives are constants.

    root     the document in which a $ref is resolved
    narrow   a schema -> the one that is enforced instead, which allows fewer answers
    Raises: BadGrammar if an answer may fit two alternatives
    """
    alternatives = [one for one in part["oneOf"] if one is not False]
    others = {keyword: value for keyword, value in part.items() if keyword != "oneOf"}
    resolved = [target(one, root) for one in alternatives]
    if all(one.keys() <= {"const", "enum", "type", *LABELS} and values(one) is not None for one in resolved):
        return both(others, {"enum": _listed_once(resolved)})
    narrowed = [narrow(one) for one in resolved]
    if tag := _tag(narrowed, root):
        alternatives = [
            one if tag in required(full) else _requiring(one, tag)
            for one, full in zip(alternatives, resolved, strict=True)
        ]
    elif len(resolved) > MAX_PAIRED:
        raise BadGrammar(f"format: oneOf: {len(resolved)} alternatives that share no property with constant values")
    else:
        compare = Comparison(root)
        for i, ours in enumerate(narrowed):
            others_too = [full for j, full in enumerate(resolved) if i != j and not compare.excludes(ours, full)]
            if others_too:
                alternatives[i] = _alone(alternatives[i], others_too, root)
    return both(others, {"anyOf": alternatives})


def _alone(alternative: Any, others: list[Schema], root: Schema) -> Schema:
    """Return the schema of what fits `alternative` and none of `others`."""
    try:
        return {"allOf": [alternative, *(opposite(other, root, "oneOf") for other in others)]}
    except BadGrammar:
        raise BadGrammar("format: oneOf: an answer may fit two of the alternatives; anyOf allows that") from None


def _listed_once(alternatives: list[Schema]) -> list[Any]:
    """Return the values that exactly one of the alternatives allows."""
    allowed = [
        {key: value for key, value in (values(one) or {}).items() if key[0] in types(one)} for one in alternatives
    ]
    n = Counter(key for one in allowed for key in one)
    return [value for one in allowed for key, value in one.items() if n[key] == 1]


def _tag(alternatives: list[Schema], root: Schema) -> str | None:
    """Return a property that has other constant values in each alternative."""
    if not all(types(one) == {"object"} for one in alternatives):
        return None
    maps = [_map(one, "properties") for one in alternatives]
    for name in maps[0] if maps else ():
        if not all(name in one for one in maps):
            continue
        listed = [values(target(one[name], root)) for one in maps]
        keys = [set(one) for one in listed if one is not None]
        if len(keys) == len(maps) and sum(map(len, keys)) == len(set().union(*keys)):
            return name
    return None


def _requiring(alternative: Schema, name: str) -> Schema:
    return both(alternative, {"required": [name]})


class Comparison:
    """Whether schemas obviously exclude each other: by type, value, range or property.

    After MAX_COMPARED pairs of schemas, properties within properties included, they are no longer obvious.
    """

    def __init__(self, root: Schema):
        self._root, self._n = root, 0

    def excludes(self, a: Any, b: Any) -> bool:
        """Return whether no answer can match both `a` and `b`."""
        self._n += 1
        a, b = target(a, self._root), target(b, self._root)
        shared, listed = types(a) & types(b), (values(a), values(b))
        if not shared or (listed[0] is not None and listed[1] is not None and not listed[0].keys() & listed[1].keys()):
            return True
        if shared == {"number"}:
            return _low(a) > _high(b) or _low(b) > _high(a)
        return shared == {"object"} and self._n < MAX_COMPARED and self._differ_in_a_property(a, b)

    def _differ_in_a_property(self, a: Schema, b: Schema) -> bool:
        if any(_forbids(a, name) for name in required(b)) or any(_forbids(b, name) for name in required(a)):
            return True
        ours, theirs = _map(a, "properties"), _map(b, "properties")
        both = [name for name in ours if name in theirs and name in required(a) | required(b)]
        return any(self.excludes(ours[name], theirs[name]) for name in both)


def _low(part: Schema) -> float:
    return float(max(part.get("minimum", -inf), part.get("exclusiveMinimum", -inf)))


def _high(part: Schema) -> float:
    return float(min(part.get("maximum", inf), part.get("exclusiveMaximum", inf)))


def _forbids(part: Schema, name: str) -> bool:
    properties = _map(part, "properties")
    is_closed = part.get("additionalProperties") is False and not part.get("patternProperties")
    return properties.get(name) is False or (is_closed and name not in properties)


def _map(part: Schema, keyword: str) -> dict[str, Any]:
    value: dict[str, Any] = part.get(keyword, {})
    return value
