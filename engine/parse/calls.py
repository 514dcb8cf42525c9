"""Readers of tool calls: functions of the text of a call, the tools and the header before it; None for other text.

    json_call        {"name": "f", "arguments": {"a": 1}}
    named_call       f SEPARATOR {"a": 1}
    function_call    <function=f> <parameter=a> 1 </parameter> </function>
    pairs_call       f <arg_key>a</arg_key> <arg_value>1</arg_value>
    python_calls     [f(a=1), g()]
    braces_call      call:f{a:1}

These are the readers of the parsers that have a name (named.py), with what those forgive; form.py reads what a template
shows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ..go.text import WHITE_SPACE
from .shape import Read
from .values import Call, Tools, json_object, json_value, typed_value, types_of


def type_list(tools: Tools, name: str, key: str) -> list[str]:
    """Return the types of a tool's parameter; none if the tool or the parameter is unknown."""
    properties = (tools.get(name) or {}).get("properties") or {}
    return types_of(properties.get(key))


# --- JSON ---


def json_call(name_key: str = "name", arguments_key: str = "arguments") -> Read:
    """Read an object with a name and arguments; without arguments there are none."""

    def read(text: str, tools: Tools, header: str) -> list[Call] | None:
        call = json_object(text)
        name = call.get(name_key) if call else None
        arguments = (call or {}).get(arguments_key)
        return [(name, arguments if isinstance(arguments, dict) else {})] if isinstance(name, str) and name else None

    return read


def named_call(pattern: str) -> Read:
    """Read a name and its arguments in JSON, the two groups of `pattern`."""
    form = re.compile(pattern, re.DOTALL)

    def read(text: str, tools: Tools, header: str) -> list[Call] | None:
        found = form.fullmatch(text.strip(WHITE_SPACE))
        arguments = json_object(found[2]) if found else None
        return [(found[1].strip(WHITE_SPACE), arguments)] if found and arguments is not None else None

    return read


def called_by_header(text: str, tools: Tools, header: str) -> list[Call] | None:
    """Read the arguments of the tool whose name is the header."""
    arguments = json_object(text)
    return [(header, arguments)] if arguments is not None and header in tools else None


def recipient(header: str) -> str:
    """Return whom a message of harmony is for: the second word of its header, or the first, if it begins with "to="."""
    before, _, after = header.replace("<|constrain|>", " <|constrain|>").partition("<|channel|>")
    words = (before + " ".join(["", *after.split()[1:]])).split() if after else before.split()
    to = next((word for word in words[:2] if word.startswith("to=")), "")
    return to[3:]


# --- tags ---

TAG = re.compile(r"<(/?)(function|parameter)(?:=([^>]+))?>")


def function_call(text: str, tools: Tools, header: str) -> list[Call] | None:
    """Read a function with its parameters, properly nested; what comes after it is ignored."""
    open: list[str] = []
    name, key, value = "", "", ""
    found: list[tuple[str, str]] = []
    at = 0
    for tag in TAG.finditer(text):
        if open == ["function", "parameter"]:
            value += text[at : tag.start()]
        at = tag.end()
        closes, kind, named = tag.groups()
        if not closes:
            if not open and kind == "parameter":
                return None
            if not open:
                name = named or ""
            elif open == ["function"] and kind == "parameter":
                key, value = named or "", ""
            open.append(kind)
            continue
        if not open or open.pop() != kind:
            return None
        if open == ["function"] and kind == "parameter":
            found.append((key, value))
        if not open:
            return [(name, {key: typed_value(value, type_list(tools, name, key)) for key, value in found})]
    return None


PAIR = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)


def pairs_call(text: str, tools: Tools, header: str) -> list[Call] | None:
    """Read a name and pairs of keys and values; a pair that is not complete is left out."""
    name, tag, rest = text.partition("<arg_key>")
    name, rest, arguments = name.strip(WHITE_SPACE), tag + rest, {}
    while found := PAIR.match(rest):
        key = found[1].strip(WHITE_SPACE)
        arguments[key] = typed_value(found[2], type_list(tools, name, key))
        rest = rest[found.end() :].lstrip(WHITE_SPACE)
    return [(name, arguments)] if name else None


ARG_TAG = re.compile(r"<(/?)arg_(key|value)>")


def mended_pairs_call(text: str, tools: Tools, header: str) -> list[Call] | None:
    """Read a name and pairs, of which some tags may be missing or misspelt; None if keys and values do not pair."""
    names, keys, values, _ = _pairs(text)
    return _paired(names, keys, values, tools)


def whole_pairs_call(text: str, tools: Tools, header: str) -> list[Call] | None:
    """Read a call of a known tool without an end, of which no tag may be missing."""
    names, keys, values, is_mended = _pairs(text)
    calls = None if is_mended else _paired(names, keys, values, tools)
    return calls if calls and calls[0][0] in tools else None


def _pairs(text: str) -> tuple[list[str], list[str], list[str], bool]:
    """Return the texts outside of tags, the keys, the values, and whether tags had to be added.

    A missing opening tag is added after the last tag, if there was one, else before its closing tag.  A missing closing
    tag is added before the next opening tag, or at the end.
    """
    found: dict[str, list[str]] = {"": [], "key": [], "value": []}
    inside, at, is_mended, n_tag = "", 0, False, 0
    for tag in ARG_TAG.finditer(text):
        before, (closes, kind) = text[at : tag.start()], tag.groups()
        at = tag.end()
        if not closes:
            if inside == kind:  # it had neither text nor end, and the text is the other of the pair
                found[kind].append("")
            found["value" if inside == kind == "key" else "key" if inside == kind else inside].append(before)
            is_mended |= bool(inside)
            inside = kind
        elif inside == kind:
            found[kind].append(before)
            inside = ""
        else:
            is_mended = True
            if inside or not n_tag:
                found[inside].append(before)
                before = ""
            found[kind].append(before)
            inside = ""
        n_tag += 1
    found[inside].append(text[at:])
    return found[""], found["key"], found["value"], is_mended or bool(inside)


def _paired(names: list[str], keys: list[str], values: list[str], tools: Tools) -> list[Call] | None:
    if len(keys) != len(values):
        return None
    name = "".join(names).strip(WHITE_SPACE)
    pairs = zip([key.strip(WHITE_SPACE) for key in keys], values, strict=True)
    return [(name, {key: typed_value(value, type_list(tools, name, key)) for key, value in pairs})]


INVOKE = re.compile(
    r'\s*<atem:function_calls>\s*((?:<atem:invoke name="[^"]*">.*?</atem:invoke>\s*)+)</atem:function_calls>\s*',
    re.DOTALL,
)
ONE_INVOKE = re.compile(r'<atem:invoke name="([^"]*)">(.*?)</atem:invoke>', re.DOTALL)
PARAMETER = re.compile(r'<atem:parameter name="(.*?)">(.*?)</atem:parameter>', re.DOTALL)


def invoke_call(text: str, tools: Tools, header: str) -> list[Call] | None:
    """Read the calls of Glimmer."""
    found = INVOKE.fullmatch(text)
    if not found or "<atem:function_calls>" in found[1]:
        return None
    calls: list[Call] = []
    for name, body in ONE_INVOKE.findall(found[1]):
        if PARAMETER.sub("", body).strip(WHITE_SPACE):  # not all of it is parameters
            return None
        values = PARAMETER.findall(body)
        calls.append((name, {key: typed_value(value, type_list(tools, name, key)) for key, value in values}))
    return calls


# --- members ---


def split_members(text: str, quotes: Sequence[str], separator: str = ",") -> list[str] | None:
    """Split at the separators outside of brackets and of strings between `quotes`; None if a string has no end."""
    mark = re.compile("|".join([r"\\.", *map(re.escape, quotes), r"[{}()\[\]]", re.escape(separator)]), re.DOTALL)
    parts, begin, depth, quote = [], 0, 0, ""
    at = 0
    while found := mark.search(text, at):
        at = found.end()
        if found[0][0] == "\\":
            at = found.end() if quote else found.start() + 1
        elif quote:
            quote = "" if found[0] == quote else quote
        elif found[0] in quotes:
            quote = found[0]
        elif found[0] in ("{", "[", "("):
            depth += 1
        elif found[0] in ("}", "]", ")"):
            depth -= 1
        elif found[0] == separator and depth <= 0:
            parts.append(text[begin : found.start()])
            begin = found.end()
    last = text[begin:]
    return None if quote else [*parts, last] if parts or last.strip(WHITE_SPACE) else []


PLAIN = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}


def plain_value(text: str) -> Any:
    """Read a constant, a number, a list or an object; other text is a string."""
    if text in PLAIN:
        return PLAIN[text]
    try:
        return json_value(text)
    except ValueError:
        return text


# --- Python ---


def python_calls(text: str, tools: Tools, header: str) -> list[Call] | None:
    """Read LFM2's list, [f(a="x",b=1),g()], whose strings have no escapes; or a list in JSON."""
    text = text.strip(WHITE_SPACE)
    listed = split_members(text.removeprefix("[").removesuffix("]"), "\"'")
    calls: list[Call] = []
    for item in listed or ():
        call = re.fullmatch(r"([\w.-]+)\((.*)\)", item.strip(WHITE_SPACE), re.DOTALL)
        members = split_members(call[2], "\"'") if call else None
        if call is None or members is None:
            return None
        calls.append((call[1], {key.strip(): unquoted(value.strip()) for key, value in map(_pair, members)}))
    return calls or None


def python_lines(text: str, tools: Tools, header: str) -> list[Call] | None:
    """Read OLMo 3's calls, one a line, f(a="x", b=1)."""
    calls: list[Call] = []
    for line in text.strip(WHITE_SPACE).split("\n"):
        call = re.fullmatch(r"([\w.-]+)\((.*)\)", line.strip(WHITE_SPACE), re.DOTALL)
        if not call:
            return None
        members = split_members(call[2], "\"'")
        members = _to_the_end(call[2]) if members is None else members
        calls.append((call[1], {key.strip(): unescaped(value.strip()) for key, value in map(_pair, members)}))
    return calls


def _to_the_end(text: str) -> list[str]:
    """Split where the last string has no end, and takes the rest."""
    members = split_members(text + '"', '"') or [""]
    return [*members[:-1], members[-1][:-1]]


def _pair(member: str) -> tuple[str, str]:
    key, _, value = member.partition("=")
    return key, value


def unquoted(text: str) -> Any:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else plain_value(text)


ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


def unescaped(text: str) -> Any:
    """Read a value of OLMo 3.  In a string with escapes, upstream keeps one byte of each letter beyond ASCII."""
    value = unquoted(text)
    if not isinstance(value, str) or "\\" not in value:
        return value
    ascii_only = "".join(c if c.isascii() else "\ufffd" for c in value)
    return (
        ascii_only
        if value == text
        else re.sub(r"\\(.)", lambda found: ESCAPES.get(found[1], found[1]), ascii_only, flags=re.DOTALL)
    )


# --- braces ---

QUOTE = '<|"|>'


def braces_call(text: str, tools: Tools, header: str) -> list[Call] | None:
    """Read Gemma 4's form, call:f{a:<|"|>text<|"|>,b:[1,2]}; a quote or brace that is missing at the end is added."""
    head, brace, rest = text.strip(WHITE_SPACE).partition("{")
    if not head.startswith("call:") or not brace:
        return None
    for candidate in _mended(brace + rest):
        arguments = json_object(braces_as_json(candidate))
        if arguments is not None:
            return [(head.removeprefix("call:").strip(WHITE_SPACE), arguments)]
    return None


def _mended(text: str) -> Iterator[str]:
    yield text
    if text.count(QUOTE) % 2:
        yield text.removesuffix("}") + QUOTE + "}"
    elif last := re.fullmatch(r"(.*[{,]\s*\w+:)([^{}\[\],]*)", text, re.DOTALL):
        if QUOTE not in last[2]:
            yield last[1] + QUOTE + last[2] + QUOTE + "}"


def braces_as_json(text: str) -> str:
    """Write braces with bare keys and strings between QUOTEs as JSON."""
    parts = text.split(QUOTE)
    for i, part in enumerate(parts):
        quoted = json.dumps(part, ensure_ascii=False)
        parts[i] = quoted if i % 2 else re.sub(r"(?<![\w\"])([A-Za-z_]\w*)\s*:", r'"\1":', part)
    return "".join(parts)


ESCAPED = re.compile(r"call:(\w+)\{(.*)\}")
ESCAPE = "<escape>"


def escapes_call(text: str, tools: Tools, header: str) -> list[Call]:
    """Read FunctionGemma's form, call:f{a:<escape>text<escape>,b:1}, on one line; else a call without a name."""
    found = ESCAPED.search(text)
    return [(found[1], _escaped_object(found[2]))] if found else [("", {})]


def _escaped_object(text: str) -> dict[str, Any]:
    members = split_members(text, (ESCAPE,)) or text.split(",")
    pairs = [member.partition(":") for member in members if member.strip(WHITE_SPACE)]
    return {key.strip(WHITE_SPACE): _escaped_value(value.strip(WHITE_SPACE)) for key, _, value in pairs}


def _escaped_value(text: str) -> Any:
    if text.startswith(ESCAPE) and text.endswith(ESCAPE) and len(text) >= 2 * len(ESCAPE):
        return text[len(ESCAPE) : -len(ESCAPE)]
    if text[:1] == "{" and text[-1:] == "}":
        return _escaped_object(text[1:-1])
    if text[:1] == "[" and text[-1:] == "]":
        return [_escaped_value(item.strip(WHITE_SPACE)) for item in split_members(text[1:-1], (ESCAPE,)) or ()]
    return plain_value(text)
