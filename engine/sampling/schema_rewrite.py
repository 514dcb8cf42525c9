"""Keywords that a grammar cannot enforce directly, written with others that it can.

Each function takes the keywords of one schema and returns them without its own.  The result allows no answer that the
original forbids; docs/structured.md lists what it forbids in addition.
"""

from __future__ import annotations

from itertools import combinations
from math import ceil, comb, floor
from typing import Any

from ..errors import BadGrammar
from .date_pattern import PATTERNS
from .exact_number import exact_constants
from .negation import opposite, without_property
from .number_bounds import bounded_numbers
from .schema_check import Schema, shown
from .schema_part import LABELS, both, required, target, typed_values, values

MAX_VARIANTS = 100  # of one object, by the properties that it has
MAX_PROPERTIES = 1 << 31
COMBINING = {"$ref", "anyOf", "oneOf", "allOf", "if", "not", "dependentSchemas"}
OPEN = {"type": "object", "additionalProperties": True}


def _without(part: Schema, *keywords: str) -> Schema:
    return {keyword: value for keyword, value in part.items() if keyword not in keywords}


def older_drafts(part: Schema, root: Schema) -> Schema:
    """Write what draft 4 to 7 wrote otherwise: `dependencies`, a list in `items`, true in `exclusiveMinimum`."""
    for strict, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(part.get(strict), bool):
            bounds = {strict: part[bound]} if part[strict] and bound in part else {}
            part = _without(part, strict, *([bound] if bounds else [])) | bounds
    if isinstance(part.get("items"), list):
        items = {"prefixItems": part["items"]} if part["items"] else {}
        rest = {"items": part["additionalItems"]} if "additionalItems" in part else {}
        part = _without(part, "items") | items | rest
    for name, needed in part.get("dependencies", {}).items():
        keyword = "dependentRequired" if isinstance(needed, list) else "dependentSchemas"
        part = part | {keyword: part.get(keyword, {}) | {name: needed}}
    return _without(part, "dependencies", "additionalItems")


def unevaluated(part: Schema, root: Schema) -> Schema:
    """Write unevaluatedProperties and unevaluatedItems as additionalProperties and items."""
    for keyword, plain in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
        if part.get(keyword, True) in (True, {}) or plain in part:  # nothing is left unevaluated
            part = _without(part, keyword)
        elif not part.keys() & COMBINING and "contains" not in part:
            part = _without(part, keyword) | {plain: part[keyword]}
        elif keyword == "unevaluatedProperties":
            part = _without(_merged(part, root), keyword) | {plain: part[keyword]}
        else:
            raise BadGrammar(f"format: {keyword}: it cannot be enforced beside {_first(part, COMBINING)}")
    return part


def _merged(part: Schema, root: Schema) -> Schema:
    """Merge objects that `allOf` combines into one that lists all properties."""
    parts = [target(one, root) for one in part.get("allOf", ())]
    is_plain = all(one.keys() <= {"type", "properties", "required", *LABELS} for one in parts)
    if part.keys() & (COMBINING - {"allOf"}) or not is_plain:
        raise BadGrammar("format: unevaluatedProperties: it cannot be enforced beside schemas that are combined")
    merged = _without(part, "allOf")
    for one in parts:
        properties = dict(merged.get("properties", {}))
        for name, schema in one.get("properties", {}).items():
            properties[name] = {"allOf": [properties[name], schema]} if name in properties else schema
        needed = [*merged.get("required", ()), *one.get("required", ())]
        merged |= {"type": "object", "properties": properties, "required": [*dict.fromkeys(needed)]}
    return merged


def conditions(part: Schema, root: Schema) -> Schema:
    """Write if, then and else as two alternatives; dependentRequired and dependentSchemas as two for each property."""
    if "if" in part and part.keys() & {"then", "else"}:
        test = part["if"]
        met = {"allOf": [test, part.get("then", True)]}
        unmet = {"allOf": [opposite(test, root, "if"), part.get("else", True)]}
        part = both(part, {"anyOf": [met, unmet]})
    for keyword in ("dependentRequired", "dependentSchemas"):
        for name, needed in part.get(keyword, {}).items():
            names, schema = ([name, *needed], True) if isinstance(needed, list) else ([name], needed)
            present = {"allOf": [OPEN | {"required": names}, schema]}
            part = both(part, {"anyOf": [without_property(name), present]})
    return _without(part, "if", "then", "else", "dependentRequired", "dependentSchemas")


def negations(part: Schema, root: Schema) -> Schema:
    """Write `not` as the opposite; the values that it excludes leave an enum."""
    if "not" not in part:
        return part
    denied, part = part["not"], _without(part, "not")
    listed, excluded = values(part), values(target(denied, root))
    only_values = target(denied, root).keys() <= {"const", "enum", *LABELS}
    if listed is not None and excluded is not None and only_values:
        return _without(part, "const") | {"enum": [one for key, one in listed.items() if key not in excluded]}
    return both(part, opposite(denied, root, "not"))


def contained(part: Schema, root: Schema) -> Schema:
    """Write `contains` as the schema of the first items; that others match too is not needed."""
    if "contains" not in part:
        return _without(part, "minContains", "maxContains")
    n, schema = int(part.get("minContains", 1)), part["contains"]
    if "maxContains" in part:
        raise BadGrammar("format: maxContains: it cannot be enforced")
    kept = _without(part, "contains", "minContains")
    if n == 0:
        return kept
    if n > MAX_VARIANTS:
        raise BadGrammar(f"format: minContains: {n} is above the limit of {MAX_VARIANTS}")
    kept["minItems"] = max(n, kept.get("minItems", 0))
    if schema in (True, {}):
        return kept
    if "prefixItems" in kept:
        raise BadGrammar("format: contains: it cannot be enforced beside prefixItems")
    item = {"allOf": [kept["items"], schema]} if "items" in kept else schema
    return kept | {"prefixItems": [item] * n}


def property_names(part: Schema, root: Schema) -> Schema:
    """Write `propertyNames` as properties, if it lists the names, or as patternProperties."""
    if "propertyNames" not in part:
        return part
    names, part = target(part["propertyNames"], root), _without(part, "propertyNames")
    if "string" not in names.get("type", "string"):
        names = {"enum": []}  # only an object without properties
    said = {key: value for key, value in names.items() if key not in {"type", *LABELS}}
    if not said:
        return part
    value, known = part.get("additionalProperties", True), part.get("properties", {})
    if "patternProperties" in part:
        raise BadGrammar("format: propertyNames: it cannot be enforced beside patternProperties")
    if (listed := values(names)) is not None:
        allowed = {name: value for name in listed.values() if isinstance(name, str)}
        properties = {name: schema if name in allowed else False for name, schema in known.items()}
        return part | {"properties": allowed | properties, "additionalProperties": False}
    if known or not said.keys() <= {"pattern", "minLength", "maxLength", "format"}:
        raise BadGrammar(f"format: propertyNames: {_first(said, said.keys())} cannot be enforced for names")
    pattern = names.get("pattern") or _pattern_of_names(names)
    if "pattern" in names and said.keys() & {"minLength", "maxLength"}:
        raise BadGrammar("format: propertyNames: a pattern cannot be enforced beside a length")
    return part | {"patternProperties": {pattern: value}, "additionalProperties": False}


def _pattern_of_names(names: Schema) -> str:
    if "format" in names and names["format"] in NAME_FORMATS:
        return NAME_FORMATS[names["format"]]
    least, most = int(names.get("minLength", 0)), names.get("maxLength", "")
    return rf"^(?s:.){{{least},{most}}}$"


NAME_FORMATS = {
    "uuid": "^[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
}


def counted_properties(part: Schema, root: Schema) -> Schema:
    """Write minProperties and maxProperties as variants of the object, if it lists optional properties."""
    known = [name for name, schema in part.get("properties", {}).items() if schema is not False]
    free = [name for name in known if name not in required(part)]
    least = max(int(part.get("minProperties", 0)) - len(required(part)), 0)
    most = int(part.get("maxProperties", MAX_PROPERTIES)) - len(required(part))
    if least > len(free) and least > 1:
        raise BadGrammar("format: minProperties: only one property that is not listed can be enforced")
    if not part.keys() & {"minProperties", "maxProperties"} or not free:
        return part  # llguidance counts, but takes a name that occurs twice for two
    if "patternProperties" in part or least > len(free):
        raise BadGrammar("format: minProperties: it cannot be enforced beside patternProperties or optional properties")
    is_limited = "maxProperties" in part
    part = _without(part, "minProperties", "maxProperties") | ({"additionalProperties": False} if is_limited else {})
    most = min(most, len(free))
    if most < least:
        raise BadGrammar("format: maxProperties: it is below what the object must have")
    if comb(len(free), most) * comb(most, least) > MAX_VARIANTS:
        raise BadGrammar(f"format: minProperties: it allows more than {MAX_VARIANTS} sets of properties")
    variants = [
        OPEN | {"properties": {name: False for name in free if name not in allowed}, "required": [*needed]}
        for allowed in combinations(free, most)
        for needed in combinations(allowed, least)
    ]
    return both(part, {"anyOf": variants})


def _first(part: Any, keywords: Any) -> str:
    return next((repr(keyword) for keyword in part if keyword in keywords), shown(None))


def unique_items(part: Schema, root: Schema) -> Schema:
    """Limit the number of items to that of the values that they may have; veto.py enforces uniqueItems itself."""
    if not part.get("uniqueItems") or part.get("maxItems", 2) <= 1:
        return _without(part, "uniqueItems")
    most = _n_values(target(part.get("items", True), root))
    return part if most is None else part | {"maxItems": min(most, part.get("maxItems", most))}


def _n_values(part: Schema) -> int | None:
    """Count the values that match `part`; None if they are unbounded."""
    if (listed := typed_values(part)) is not None:
        return len(listed)
    if part.get("type") == "integer" and part.keys() >= {"minimum", "maximum"}:
        return int(max(floor(part["maximum"]) - ceil(part["minimum"]) + 1, 0))
    return {"boolean": 2, "null": 1}.get(str(part.get("type")))


def formats(part: Schema, root: Schema) -> Schema:
    """Write the format of a date or time as a pattern, and remove a format that is unknown."""
    if "format" not in part:
        return part
    format, part = part["format"], _without(part, "format")
    if format in PATTERNS:
        return both(part | {"type": part.get("type", "string")}, {"pattern": PATTERNS[format]})
    return part | {"format": format} if format in FORMATS else part


FORMATS = frozenset("duration email hostname ipv4 ipv6 uuid uri".split())  # those that llguidance enforces


def known(part: Schema, root: Schema) -> Schema:
    """Remove all that asks nothing, and refuse what asks for more than a grammar can enforce."""
    for keyword in REFUSED & part.keys():
        raise BadGrammar(f"format: {keyword}: it cannot be enforced")
    return {keyword: value for keyword, value in part.items() if keyword in ENFORCED}


ENFORCED = frozenset(
    "$ref $defs type const enum anyOf oneOf allOf properties required additionalProperties patternProperties "
    "minProperties maxProperties items prefixItems minItems maxItems uniqueItems minLength maxLength pattern format "
    "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf".split()
)
REFUSED = frozenset("$dynamicRef $recursiveRef extends disallow divisibleBy".split())

REWRITES = (
    older_drafts,
    unevaluated,
    conditions,
    negations,
    unique_items,
    contained,
    property_names,
    counted_properties,
    formats,
    bounded_numbers,
    exact_constants,
    known,
)
