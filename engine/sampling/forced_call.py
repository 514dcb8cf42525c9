"""The grammar of a required tool call: the form that the model's template shows, for the tools that are offered.

    <tool_call>\\n{"name": "NAME", "arguments": ARGUMENTS}    and optionally    \\n</tool_call>
                            |                |
                       "get_weather"    the tool's schema

White space beside brackets, commas and colons is free, as models differ there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import BadGrammar
from ..go.text import WHITE_SPACE
from ..template.messages import Tool
from ..template.tags import ARGUMENTS, ID, NAME, CallForm

PUNCTUATION = "{}[],:"
GAP = r"/[ \t\r\n]{0,8}/"
_ALONE = NAME + ARGUMENTS + ID + re.escape(PUNCTUATION)
_TOKEN = re.compile(rf"[{_ALONE}]|[ \t\r\n]+|[^{_ALONE} \t\r\n]+")
_ANY_OBJECT = {"type": "object"}
_COMBINING = {"$ref", "anyOf", "oneOf", "allOf", "enum", "const"}


@dataclass(frozen=True)
class ForcedCall:
    """A call of one of `tools` that an answer has to be, in the model's own form."""

    form: CallForm
    tools: Sequence[Tool]

    @property
    def texts(self) -> tuple[str, ...]:
        """The fixed texts of the form: its tag first; control tokens that occur in them count as text."""
        return (self.form.tag, *re.split(f"[{NAME}{ARGUMENTS}{ID}]", self.form.text), self.form.rest)

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """The schema of each tool's arguments.  Raises: BadGrammar"""
        return [_parameters(tool) for tool in self.tools]

    def rules(self, schema_texts: Sequence[str]) -> str:
        """Write the body of a Lark rule for the call, and the rules it uses; `schema_texts` replace the schemas."""
        rules = [" | ".join(f"call_{i}" for i in range(len(self.tools))), f"gap: {GAP}"]
        tag, rest = _literal(self.form.tag), self.form.rest.strip(WHITE_SPACE)
        closing = f" (gap {_literal(rest)})?" if rest else ""
        for i, schema_text in enumerate(schema_texts):
            terms = " ".join(self._terms(i))
            rules.append(f"call_{i}: {tag} {terms}{closing}")
            rules.append(f"arguments_{i}: %json {schema_text}")
        return "\n".join(rules)

    def head(self, i: int) -> re.Pattern[bytes]:
        """Return a pattern of the text before the arguments of tool `i`."""
        terms = [_literal(self.form.tag), *self._terms(i)]
        terms = [term if term[0] in '"/' else GAP for term in terms[: terms.index(f"arguments_{i}")]]
        return re.compile(
            "".join(term[1:-1] if term[0] == "/" else re.escape(json.loads(term)) for term in terms).encode()
        )

    def _terms(self, i: int) -> list[str]:
        return [*_terms(self.form.text, str(self.tools[i]["function"].get("name") or ""), f"arguments_{i}")]


def _terms(text: str, name: str, arguments: str) -> Iterator[str]:
    """Yield the terms of a call's text in Lark, with a gap where white space is free."""
    tokens = _TOKEN.findall(text)
    last = ""
    for i, token in enumerate(tokens):
        beside = {*tokens[max(i - 1, 0) : i], *tokens[i + 1 : i + 2]}
        if token in PUNCTUATION:
            terms = ["gap", _literal(token), "gap"]
        elif token.isspace():
            terms = ["gap" if i == 0 or beside & {*PUNCTUATION} else r"/[ \t\r\n]{1,8}/"]
        elif token == NAME:
            terms = [
                _literal(json.dumps(name, ensure_ascii=False)[1:-1] if text[text.index(NAME) - 1] == '"' else name)
            ]
        else:
            terms = [{ARGUMENTS: arguments, ID: "/[A-Za-z0-9]{9}/"}.get(token) or _literal(token)]
        for term in terms:
            if not term == last == "gap":
                yield term
            last = term


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _parameters(tool: Tool) -> dict[str, Any]:
    """Return the schema of the tool's arguments, which are an object.  Raises: BadGrammar"""
    schema = tool["function"].get("parameters") or {}
    if not isinstance(schema, dict):
        raise BadGrammar(f"format: parameters: {json.dumps(schema)} is not a schema")
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise BadGrammar(f"format: parameters: type {json.dumps(kind)} is not an object, which arguments are")
    if "type" not in schema and schema.keys() & _COMBINING:
        return schema
    return schema | _ANY_OBJECT
