"""The grammar of a required tool call: the form that the model's template shows, for the tools that are offered.

    <tool_call>\\n{"name": "NAME", "arguments": ARGUMENTS}    and optionally    \\n</tool_call>
                            |                |
                       "get_weather"    the tool's schema

    <function=NAME>\\n( <parameter=KEY>\\n VALUE \\n</parameter>\\n )*</function>
                          |              |
                       "city"     any text for a string, else JSON by the parameter's schema

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
from ..parse.form import ARGUMENTS, ID, INDEX, KEY, NAME, TYPE, CallForm
from ..parse.values import types_of
from ..template.messages import Tool

PUNCTUATION = "{}[],:"
GAP = r"/[ \t\r\n]{0,24}/"
PLACES = NAME + ARGUMENTS + ID + INDEX
_ALONE = PLACES + re.escape(PUNCTUATION)
_TOKEN = re.compile(rf"[{_ALONE}]|[ \t\r\n]+|[^{_ALONE} \t\r\n]+")
_ANY_OBJECT = {"type": "object"}
_COMBINING = {"$ref", "anyOf", "oneOf", "allOf", "enum", "const"}
BRACES_VALUE = """
    braces_value: braces_text | braces_list | braces_object | %json {"type": ["number", "boolean", "null"]}
    braces_list: "[" (braces_value ("," braces_value)*)? "]"
    braces_object: "{" (BRACES_KEY ":" braces_value ("," BRACES_KEY ":" braces_value)*)? "}"
    BRACES_KEY: /[A-Za-z_][A-Za-z0-9_]*/
"""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a tool.

    schema   what a grammar for JSON has to enforce; None for text
    """

    key: str
    schema: dict[str, Any] | None
    is_required: bool
    enum: Sequence[str] = ()


@dataclass(frozen=True)
class ForcedCall:
    """A call of one of `tools` that an answer has to be, in the model's own form."""

    form: CallForm
    tools: Sequence[Tool]

    @property
    def texts(self) -> tuple[str, ...]:
        """The fixed texts of the form, of which control tokens count as text."""
        form = self.form
        texts = [form.open + form.head + form.body, form.tail, form.close, form.pre, form.mid, form.post, *form.quotes]
        return tuple(part for text in texts for part in re.split(f"[{PLACES}{KEY}{TYPE}]", text) if part)

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """The schemas of JSON in the call: of each tool's arguments, or of single parameters.  Raises: BadGrammar"""
        if self.form.is_json:
            return [_parameters(tool) for tool in self.tools]
        return [part.schema for tool in self.tools for part in self._parts(tool) if part.schema is not None]

    def rules(self, schema_texts: Sequence[str]) -> str:
        """Write the body of a Lark rule for the call, and the rules it uses; `schema_texts` replace the schemas."""
        rules = [" | ".join(f"call_{i}" for i in range(len(self.tools))), f"gap: {GAP}"]
        if self.form.kind == "braces":
            quote = _literal(self.form.quotes[0])
            rules += [BRACES_VALUE, f"braces_text: {quote} braces_rest", f"braces_rest[suffix={quote}]: /(?s:.*)/"]
        texts = iter(schema_texts)
        for i, tool in enumerate(self.tools):
            rules += self._call(i, tool, texts)
        return "\n".join(rules)

    def head(self, i: int) -> re.Pattern[bytes] | None:
        """Return a pattern of the text before the arguments of tool `i`; None if they are not one value in JSON."""
        if not self.form.is_json:
            return None
        terms = self._terms(i)
        terms = [term if term[0] in '"/' else GAP for term in terms[: terms.index(f"arguments_{i}")]]
        return re.compile(
            "".join(term[1:-1] if term[0] == "/" else re.escape(json.loads(term)) for term in terms).encode()
        )

    def _terms(self, i: int) -> list[str]:
        form = self.form
        text = (form.open + form.head + (form.body or ARGUMENTS)).strip(WHITE_SPACE) + self._end[0]
        return [
            *_terms(text, str(self.tools[i]["function"].get("name") or ""), f"arguments_{i}", form.kind == "object")
        ]

    @property
    def _end(self) -> tuple[str, str]:
        """The brackets that must follow the arguments of a JSON call, and the text that may."""
        rest = (self.form.tail + self.form.close).strip(WHITE_SPACE)
        brackets = re.match(r"[\]}\s]*", rest)
        return (brackets[0], rest[brackets.end() :]) if brackets else ("", rest)

    def _call(self, i: int, tool: Tool, texts: Iterator[str]) -> list[str]:
        """Write the rules of the call of tool `i`, which take their JSON schemas from `texts`."""
        name, form = str(tool["function"].get("name") or ""), self.form
        if form.is_json:
            return [
                f"call_{i}: {' '.join(self._terms(i))}{_optional(self._end[1])}",
                f"arguments_{i}: %json {next(texts)}",
            ]
        brackets = {"python": '"(" parameters ")"', "braces": '"{" parameters "}"'}.get(form.kind, "parameters")
        head = " ".join(_terms((form.open + form.head).lstrip(WHITE_SPACE), name, ""))
        bracket = (re.match(r"\s*[\]})]*", form.close) or [""])[0]
        tail = " ".join(_terms((form.tail + bracket).rstrip(WHITE_SPACE), name, ""))
        closing = _optional(form.close[len(bracket) :])
        parts, rules, names = self._parts(tool), list[str](), list[str]()
        for j, part in enumerate(parts):
            names.append(f"parameter_{i}_{j}")
            rules += self._parameter(names[-1], part, texts)
        joint = '"," gap' if form.kind in ("python", "braces") else ""
        if any(part.is_required for part in parts) or not joint:
            body = _in_order(names, parts, joint)
        else:
            choices = [_in_order(names[j:], [_required(parts[j]), *parts[j + 1 :]], joint) for j in range(len(parts))]
            body = f"({' | '.join(choices)})?" if choices else ""
        inner = brackets.replace("parameters", f"parameters_{i}" if body else "").strip()
        rules += [f"parameters_{i}: {body}"] if body else []
        return [f"call_{i}: {head} {inner} {tail}{closing}", *rules]

    def _parts(self, tool: Tool) -> list[Parameter]:
        """List the tool's parameters, those that are required first.  Raises: BadGrammar"""
        whole = _parameters(tool)
        required = set(whole.get("required") or ())
        parts = []
        for key, schema in (whole.get("properties") or {}).items():
            schema = schema if isinstance(schema, dict) else {}
            types, enum = types_of(schema), schema.get("enum") or ()
            is_text = self.form.kind in ("parameters", "braces") and (types == ["string"] or (not types and not enum))
            is_deep = self.form.kind == "braces" and not (set(types) <= {"integer", "number", "boolean", "null"})
            inner = None if is_text or is_deep else schema | {key: whole[key] for key in ("$defs",) if key in whole}
            listed = [value for value in enum if isinstance(value, str)] if is_text else []
            parts.append(Parameter(key, inner, key in required, listed))
        return sorted(parts, key=lambda part: not part.is_required)

    def _parameter(self, rule: str, part: Parameter, texts: Iterator[str]) -> list[str]:
        """Write the rule of one parameter and those that it uses."""
        form, key = self.form, part.key
        if form.kind == "python":
            return [f'{rule}: {_literal(key)} gap "=" gap {rule}_value', f"{rule}_value: %json {next(texts)}"]
        if form.kind == "braces":
            value = f"%json {next(texts)}" if part.schema is not None else "braces_value"
            if part.enum:
                quote = form.quotes[0]
                value = " | ".join(_literal(quote + text + quote) for text in part.enum)
            return [f'{rule}: {_literal(key)} gap ":" gap {rule}_value', f"{rule}_value: {value}"]
        written = next((text for text, is_string in form.types.items() if is_string is (part.schema is None)), "")
        before = form.pre.lstrip(WHITE_SPACE) + key + form.mid.replace(TYPE, written)
        post = form.post.replace(KEY, key)
        after = f"{_literal(post.strip(WHITE_SPACE))} gap"
        if part.enum:
            values = " | ".join(_literal(text) for text in part.enum)
            return [f"{rule}: {_literal(before)} ({values}) gap {after}"]
        if part.schema is None:
            text = [f"{rule}: {_literal(before)} {rule}_text gap"]
            return [*text, f"{rule}_text[suffix={_literal(post.strip(WHITE_SPACE))}]: /(?s:.*)/"]
        return [f"{rule}: {_literal(before)} {rule}_value gap {after}", f"{rule}_value: %json {next(texts)}"]


def _optional(text: str) -> str:
    """Write that the tags of `text` may follow, all of them or the first few."""
    tags = re.findall(r"<[^<>\s]*>|[^<\s]+|<", text)
    return "".join(f" (gap {_literal(tag)}" for tag in tags) + ")?" * len(tags)


def _required(part: Parameter) -> Parameter:
    return Parameter(part.key, part.schema, True, part.enum)


def _in_order(names: Sequence[str], parts: Sequence[Parameter], joint: str) -> str:
    """Write a sequence of parameters, of which the first is required where a `joint` stands between them."""
    terms = []
    for j, (name, part) in enumerate(zip(names, parts, strict=True)):
        term = f"{joint} {name}" if joint and j else name
        terms.append(term if part.is_required else f"({term})?")
    return " ".join(terms)


def _terms(text: str, name: str, arguments: str, is_json: bool = False) -> Iterator[str]:
    """Yield the terms of a call's text in Lark, with a gap where white space is free."""
    tokens = _TOKEN.findall(text)
    last = ""
    for i, token in enumerate(tokens):
        beside = {*tokens[max(i - 1, 0) : i], *tokens[i + 1 : i + 2]}
        if token in PUNCTUATION and is_json:
            terms = ["gap", _literal(token), "gap"]
        elif token.isspace():
            terms = ["gap" if i == 0 or not is_json or beside & {*PUNCTUATION, ARGUMENTS} else r"/[ \t\r\n]{1,8}/"]
        elif token == NAME:
            terms = [
                _literal(json.dumps(name, ensure_ascii=False)[1:-1] if text[text.index(NAME) - 1] == '"' else name)
            ]
        else:
            places = {ARGUMENTS: arguments, ID: "/[A-Za-z0-9]{9}/", INDEX: "/[0-9]{1,2}/"}
            terms = [places.get(token) or _literal(token)]
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
