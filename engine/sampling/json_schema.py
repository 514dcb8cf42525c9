"""JSON schemas, made explicit so that a grammar can enforce them.

   {"properties": {"age": {"type": "integer"}}}
-> {"properties": {"age": {"type": "integer"}}, "type": "object", "additionalProperties": false}

    check_schema        schema_check.py     bounds, and the types of keywords' values
    hoisted             here                every target of a $ref in $defs
    REWRITES            schema_rewrite.py   keywords that a grammar cannot enforce, by others
    explicit            here                the type and closedness that Ollama's engine assumes
    one_of_as_any_of    one_of.py           if no answer can fit two alternatives
"""

from __future__ import annotations

from typing import Any

from ..errors import BadGrammar
from .one_of import one_of_as_any_of
from .schema_check import LISTS, MAX_NODES, NAMED, SINGLE, Schema, check_schema, resolve_reference, walk
from .schema_part import required
from .schema_rewrite import REWRITES

IMPLIED = {"properties": "object", "items": "array", "prefixItems": "array", "pattern": "string", "format": "string"}
IMPLIED |= {"patternProperties": "object", "uniqueItems": "array"}
COMBINING = {"$ref", "anyOf", "oneOf", "allOf"}
CONDITIONAL = {"if", "dependentSchemas", "contains"}


def narrowed(schema: Schema) -> Schema:
    """Rewrite `schema` as Ollama's engine reads it; every answer that satisfies the new one satisfies the old one.

    type                  inferred from keywords that apply only to an object, an array or a string
    additionalProperties  false by default, so that only the listed properties occur, unless schemas are combined that
                          list properties of their own
    oneOf                 becomes anyOf, if no answer can fit two alternatives
    other keywords        as in schema_rewrite.py
    Raises: BadGrammar, naming the keyword.
    """
    check_schema(schema)
    root = hoisted(schema)
    alone = not any(_is_combined(part) for _, part in walk(root) if isinstance(part, dict))
    made: Schema = _Rewriting(root, alone).rewritten(root)
    return made


def hoisted(schema: Schema) -> Schema:
    """Return the schema with all that its $refs lead to in $defs, so that each is rewritten, wherever it stood."""
    names: dict[str, str] = {}
    for _, part in walk(schema):
        if isinstance(part, dict) and "$ref" in part:
            names.setdefault(part["$ref"], f"{len(names)}")

    def renamed(part: Any) -> Any:
        if isinstance(part, dict) and "$ref" in part:
            part = part | {"$ref": f"#/$defs/{names[part['$ref']]}"}
        return mapped(part, renamed)

    found = {name: renamed(resolve_reference(reference, schema)) for reference, name in names.items()}
    root: Schema = renamed(
        {keyword: value for keyword, value in schema.items() if keyword not in ("$defs", "definitions")}
    )
    return root | {"$defs": found} if found else root


def mapped(part: Any, change: Any) -> Any:
    """Return `part` with `change` applied to the schemas directly in it."""
    if not isinstance(part, dict):
        return part
    made = dict(part)
    for keyword, value in part.items():
        if keyword in NAMED and isinstance(value, dict):
            made[keyword] = {name: change(inner) for name, inner in value.items()}
        elif isinstance(value, list) and (keyword in LISTS or keyword == "items"):
            made[keyword] = [change(inner) for inner in value]
        elif keyword in SINGLE:
            made[keyword] = change(value)
    return made


class _Rewriting:
    """The rewriting of one document, whose parts may multiply: its size is limited, too."""

    def __init__(self, root: Schema, alone: bool):
        self._root, self._alone, self._n = root, alone, 0

    def rewritten(self, part: Any) -> Any:
        """Return `part` and all within it rewritten; alternatives are judged by the document as it was."""
        self._n += 1
        if self._n > MAX_NODES:
            raise BadGrammar(f"format: the schema has more than {MAX_NODES} parts once its conditions are written out")
        if not isinstance(part, dict):
            return part
        for rewrite in REWRITES:
            part = rewrite(part, self._root)
        if "oneOf" in part:
            part = one_of_as_any_of(part, self._root, lambda one: explicit(one, self._alone))
        return mapped(explicit(part, self._alone), self.rewritten)


def _is_combined(part: Schema) -> bool:
    """Return whether several schemas apply to the same object."""
    return (
        len(part.get("allOf", ())) > 1
        or bool(part.keys() & CONDITIONAL)
        or ("properties" in part and bool(part.keys() & COMBINING))
    )


def explicit(part: Schema, alone: bool) -> Schema:
    """Return `part` with the type that its keywords imply, and closed, if it stands alone and lists properties."""
    part = dict(part)
    implied = {type for keyword, type in IMPLIED.items() if keyword in part}
    if len(implied) == 1 and not part.keys() & {"type", *COMBINING}:
        part["type"] = implied.pop()
    is_explicit = part.keys() & {"additionalProperties", "minProperties"}
    if alone and "properties" in part and not is_explicit and required(part) <= part["properties"].keys():
        part["additionalProperties"] = False
    return part
