"""The form of a tool call: fixed texts with places for a name and its arguments.

    object       {"name": NAME, "arguments": {"a": 1}}               one object holds both
    named        NAME SEPARATOR {"a": 1}                             the arguments are an object
    python       NAME(a=1, b="x")
    braces       NAME{a:1,b:QUOTExQUOTE}                             keys are bare, strings in quotes of their own
    parameters   NAME PRE a MID 1 POST PRE b MID x POST              every argument in tags

A form is found from what a template renders (template/probe.py).  Here it reads calls; sampling/forced_call.py has it
enforced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from ..go.text import WHITE_SPACE
from .values import Call, Tools, json_value, loose_value, types_of

NAME, ID, INDEX, TYPE, KEY, ARGUMENTS = "\ue001", "\ue002", "\ue003", "\ue004", "\ue005", "\ue006"
"""Private characters that stand for what differs between calls."""

WILD = {ID: r"[^\s\"'<>{}\[\]()]*?", INDEX: r"\d+"}


@dataclass(frozen=True)
class CallForm:
    """The form of a call, and of several.

    open, close   text before the first call and after the last
    lead          text that may stand before all of it, which ends the answer's text
    head, tail    text of a call before and after its arguments, with NAME, ID, INDEX where they stand
    between       text between two calls
    body          for "object": the object, with NAME and ARGUMENTS where they stand
    name_path, arguments_path   for "object": the keys that lead to them; NAME for a name that is itself the key
    as_text       the arguments are a string that holds an object
    pre, mid, post   for "parameters": text before the key, between key and value, and after the value
    quotes        text around a string: ('"', '"'), or "" where strings are bare
    types         for "parameters" with TYPE in `mid`: what stands there -> whether the value is a string
    nested        for "parameters": a list or object is written in tags too; of its items, this is the key
    """

    kind: Literal["object", "named", "python", "braces", "parameters"]
    head: str = ""
    tail: str = ""
    open: str = ""
    lead: str = ""
    close: str = ""
    between: str = ""
    body: str = ""
    name_path: tuple[str, ...] = ()
    arguments_path: tuple[str, ...] = ()
    as_text: bool = False
    pre: str = ""
    mid: str = ""
    post: str = ""
    quotes: tuple[str, str] = ("", "")
    types: Mapping[str, bool] = field(default_factory=dict)
    nested: str = ""

    def __hash__(self) -> int:
        return hash((self.kind, self.head, self.tail, self.open, self.pre, self.mid, self.post))

    @property
    def is_json(self) -> bool:
        return self.kind in ("object", "named")

    def read(self, text: str, tools: Tools, header: str = "") -> list[Call] | None:
        """Read one call of a known tool, or for "python" several; None if the text is something else."""
        calls = READERS[self.kind](self, text, tools)
        return calls if calls and all(name in tools for name, _ in calls) else None


# --- objects ---


def read_object(form: CallForm, text: str, tools: Tools) -> list[Call] | None:
    """Read the object of a call, or a list of them."""
    try:
        value = json_value(text.strip(WHITE_SPACE))
    except ValueError:
        return None
    items = value if isinstance(value, list) else [value]
    calls = [_call_in(form, item, tools) for item in items]
    return None if None in calls else [call for call in calls if call]


def _call_in(form: CallForm, value: Any, tools: Tools) -> Call | None:
    """Find a tool's name and its arguments in an object, under the form's keys or others that models use."""
    if not isinstance(value, dict):
        return None
    if form.name_path[-1:] == (NAME,):
        return next(((key, item) for key, item in value.items() if key in tools and isinstance(item, dict)), None)
    for holder in (value, value.get("function")):
        if not isinstance(holder, dict):
            continue
        name = next((holder[key] for key in (*form.name_path[-1:], "name") if isinstance(holder.get(key), str)), None)
        if name is None:
            continue
        for key in (*form.arguments_path[-1:], "arguments", "parameters"):
            arguments = _object(holder.get(key))
            if arguments is not None:
                return name, arguments
    return None


def _object(value: Any) -> dict[str, Any] | None:
    """Return `value` if it is an object, or the object in a string; None for any other value."""
    if isinstance(value, str):
        try:
            value = json_value(value)
        except ValueError:
            return None
    return value if isinstance(value, dict) else None


# --- a name, then an object ---


def read_named(form: CallForm, text: str, tools: Tools) -> list[Call] | None:
    """Read a name and the object, or the string with an object, that follows it."""
    for name, end in _heads(form, text, tools):
        try:
            _, at = DECODER.raw_decode(text, _skip(text, end))
            arguments = _object(json_value(text[_skip(text, end) : at]))
        except ValueError:
            continue
        if arguments is not None:
            return [(name, arguments)]
    return None


DECODER = json.JSONDecoder()


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in WHITE_SPACE:
        at += 1
    return at


def _heads(form: CallForm, text: str, tools: Tools) -> Iterator[tuple[str, int]]:
    """Yield the names whose head is the beginning of `text`, and where that ends; the longest name first."""
    for name in sorted(tools, key=len, reverse=True):
        if found := literal(form.head, name).match(text):
            yield name, found.end()


@lru_cache(maxsize=1024)
def literal(text: str, name: str = "", key: str = "") -> re.Pattern[str]:
    """Compile a pattern of a fixed text after any white space; its own white space may be missing or be more.

    name, key   what stands in the places NAME and KEY
    """
    places = {NAME: re.escape(name), KEY: re.escape(key) if key else r"[^<>\"'=\s]+"} | WILD
    parts = [
        r"\s*" if part.isspace() else places.get(part) or re.escape(part)
        for part in re.findall(rf"\s+|[{NAME}{ID}{INDEX}{KEY}]|[^\s{NAME}{ID}{INDEX}{KEY}]+", text)
    ]
    return re.compile(r"\s*" + "".join(parts))


# --- Python ---


def read_python(form: CallForm, text: str, tools: Tools) -> list[Call] | None:
    """Read Python calls after the text before the first."""
    before = (form.open + form.head).partition(NAME)[0].strip(WHITE_SPACE).removesuffix("[").rstrip(WHITE_SPACE)
    return calls_in_python(text.strip(WHITE_SPACE).removeprefix(before))


def calls_in_python(text: str) -> list[Call] | None:
    """Read Python calls with keywords, in a list, one a line, or alone; true, false and null are known too."""
    import ast

    text = text.strip(WHITE_SPACE)
    for source in (text, "\n".join(f"[{line}]" for line in text.splitlines())):
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            continue
        nodes = [node.value for node in tree.body if isinstance(node, ast.Expr)]
        nodes = [item for node in nodes for item in (node.elts if isinstance(node, ast.List | ast.Tuple) else [node])]
        try:
            return [_python_call(node) for node in nodes]
        except ValueError:
            return None
    return None


def _python_call(node: Any) -> Call:
    """Convert a call in Python's syntax tree.  Raises: ValueError"""
    import ast

    if not isinstance(node, ast.Call) or node.args or any(keyword.arg is None for keyword in node.keywords):
        raise ValueError("not a call with keywords")
    name = ast.unparse(node.func)
    return name, {str(keyword.arg): _python_literal(keyword.value) for keyword in node.keywords}


def _python_literal(node: Any) -> Any:
    import ast

    match node:
        case ast.Name(id="true" | "false" | "null"):
            return {"true": True, "false": False, "null": None}[node.id]
        case ast.List() | ast.Tuple():
            return [_python_literal(item) for item in node.elts]
        case ast.Dict():
            keys = [_python_literal(key) for key in node.keys]
            return dict(zip(map(str, keys), map(_python_literal, node.values), strict=True))
    return ast.literal_eval(node)


# --- braces ---


def read_braces(form: CallForm, text: str, tools: Tools) -> list[Call] | None:
    """Read a name and braces with bare keys."""
    for name, end in _heads(form, text, tools):
        rest = text[_skip(text, end) :]
        tail = literal(form.tail).search(rest) if form.tail.strip(WHITE_SPACE) else None
        try:
            arguments = json_value(braces_to_json(rest[: tail.start()] if tail else rest, form.quotes[0]))
        except ValueError:
            continue
        if isinstance(arguments, dict):
            return [(name, arguments)]
    return None


def braces_to_json(text: str, quote: str) -> str:
    """Write braces with bare keys and strings between `quote`s as JSON."""
    parts = text.split(quote)
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = json.dumps(part, ensure_ascii=False)
        else:
            bare = re.sub(r"(?<![\w\"])([A-Za-z_][\w-]*)\s*:", r'"\1":', part)
            parts[i] = re.sub(r":\s*(None|True|False)\b", lambda found: ":" + CONSTANTS[found[1]], bare)
    return "".join(parts)


CONSTANTS = {"None": "null", "True": "true", "False": "false"}


# --- parameters ---


def read_parameters(form: CallForm, text: str, tools: Tools) -> list[Call] | None:
    """Read a name and its arguments in tags."""
    for name, end in _heads(form, text, tools):
        arguments = _parameters(form, text, end, name, (tools[name] or {}).get("properties") or {})
        if arguments is not None:
            return [(name, arguments)]
    return None


def _parameters(form: CallForm, text: str, at: int, name: str, properties: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the parameters from `at` up to the tail; None if they are not whole."""
    arguments: dict[str, Any] = {}
    pre, tail = literal(form.pre), literal(form.tail, name)
    while True:
        if form.tail.strip(WHITE_SPACE) and tail.match(text, at):
            return arguments
        before = pre.match(text, at)
        if not before:
            return arguments if _is_tail(form, text[at:], name) else None
        found = _mid(form).search(text, before.end())
        if not found:
            return None
        key = text[before.end() : found.start()]
        end = _end_of_value(form, text, found.end(), key, name)
        if end is None:
            return None
        value, at = text[found.end() : end.start()], end.end()
        is_string = form.types.get(found["type"]) if form.types else None
        arguments[key] = value_of(form, value, types_of(properties.get(key)), is_string)


def _mid(form: CallForm) -> re.Pattern[str]:
    before, _, after = form.mid.partition(TYPE)
    if not form.types:
        return re.compile(r"[ \t]*" + re.escape(form.mid.strip(WHITE_SPACE)) + r"\n?")
    return re.compile(re.escape(before) + r"(?P<type>[^\"<>]*)" + re.escape(after))


def _end_of_value(form: CallForm, text: str, at: int, key: str, name: str) -> re.Match[str] | None:
    """Find the end of a value: text that closes it, after which comes another parameter or the tail."""
    post = re.compile(r"\n?" + re.escape(form.post.strip(WHITE_SPACE).replace(KEY, key)))
    pre, tail = literal(form.pre), literal(form.tail, name)
    last = None
    for found in post.finditer(text, at):
        if pre.match(text, found.end()) or tail.match(text, found.end()):
            return found
        last = found
    return last if last and _is_tail(form, text[last.end() :], name) else None


def _is_tail(form: CallForm, text: str, name: str) -> bool:
    """Return whether `text` is the tail or its beginning, of which the end may be missing at the end of the answer."""
    return "".join(form.tail.replace(NAME, name).split()).startswith("".join(text.split()))


def value_of(form: CallForm, text: str, types: Sequence[str], is_string: bool | None = None) -> Any:
    """Read the text of a value.

    is_string   whether it is known to be a string, or None
    """
    if form.nested and form.pre.strip(WHITE_SPACE) in text:
        return _nested(form, text)
    if is_string:
        return text
    if is_string is False:
        return loose_value(text, [])
    if form.quotes[0]:
        return loose_value(text.strip(WHITE_SPACE), [])
    return loose_value(text, list(types))


def _nested(form: CallForm, text: str) -> Any:
    """Read a list or object whose items are in tags."""
    keys: list[str] = []
    values: list[Any] = []
    at = 0
    pre = literal(form.pre)
    while before := pre.match(text, at):
        found = _mid(form).search(text, before.end())
        key = text[before.end() : found.start()] if found else ""
        close = form.post.strip(WHITE_SPACE).replace(KEY, key)
        end = _closing(text, found.end(), before[0].strip(WHITE_SPACE) + key, close) if found else -1
        if not found or end < 0:
            break
        keys.append(key)
        values.append(value_of(form, text[found.end() : end], []))
        at = end + len(close)
    if keys and set(keys) == {form.nested}:
        return values
    return dict(zip(keys, values, strict=True))


def _closing(text: str, at: int, opening: str, closing: str) -> int:
    """Return where the closing tag stands that belongs to an opening tag before `at`; or -1."""
    depth = 1
    for found in re.finditer(re.escape(opening) + r"(?![\w-])|" + re.escape(closing), text[at:]):
        depth += 1 if found[0] == opening else -1
        if not depth:
            return at + found.start()
    return -1


READERS = {
    "object": read_object,
    "named": read_named,
    "python": read_python,
    "braces": read_braces,
    "parameters": read_parameters,
}

PLAIN_FORM = CallForm(
    "object",
    body=f'{{"name": "{NAME}", "arguments": {ARGUMENTS}}}',
    name_path=("name",),
    arguments_path=("arguments",),
)
"""The form of a call where none is shown."""

__all__ = ["ARGUMENTS", "ID", "INDEX", "KEY", "NAME", "PLAIN_FORM", "TYPE", "CallForm", "literal"]
