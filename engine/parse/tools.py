"""Extraction of tool calls from a model's answer.

Models write calls in the form that their templates show:

    <tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>
    [TOOL_CALLS] [{"name": ...}, {"name": ...}]
    {"name": "get_weather", "parameters": {...}}
    <|tool▁calls▁begin|>...get_weather ```json {"city": "Paris"} ```

After the tag, the first name of an offered tool and the first JSON object make a call, whatever text surrounds them.
"""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import accumulate
from typing import Any

from ..go.text import WHITE_SPACE
from .thinking import overlap

MAX_NESTING = 100  # deeper objects are not taken for arguments; Python's JSON parser gives up at 250
BRACKET_OR_QUOTE = re.compile(r'\\.|\\\Z|["{}\[\]]', re.DOTALL)
STRING = re.compile(r'"(?:\\.|[^"\\])*+"', re.DOTALL)


def _new_id() -> str:
    return "call_" + "".join(random.choices(string.ascii_lowercase + string.digits, k=8))


@dataclass(frozen=True)
class ParsedCall:
    """A call of a tool, with the arguments in the model's order; `index` counts within an answer."""

    name: str
    arguments: dict[str, Any]
    index: int = 0
    id: str = field(default_factory=_new_id)


class ToolState(Enum):
    BEFORE, CALLS, TEXT = range(3)


class ToolParser:
    """A parser that splits an answer into content and, from `tag` on, calls of the tools `names`.

    Text that may be the beginning of the tag is held back.  Text after the tag is not content.  The exception are the
    tags "{" and "[", which may also begin an ordinary answer: they count only at the beginning, possibly after white
    space, and if they are closed before a call is complete, the whole text is content.

    The first name that occurs, also escaped as in JSON, is used; of several at the same position, the longest.  The
    first object that is valid JSON is used; brackets within strings do not count.  After a call, the search for both
    continues behind it.
    """

    def __init__(self, tag: str, names: Sequence[str]):
        self._tag, self._closing = tag, {"{": "}", "[": "]"}.get(tag)
        self._spelled = {json.dumps(name, ensure_ascii=False)[1:-1]: name for name in names} | {n: n for n in names}
        self._names = sorted(self._spelled, key=len, reverse=True)
        self._name = re.compile("|".join(map(re.escape, self._names)) if self._names else "(?!)")
        self._state = ToolState.BEFORE
        self._buffer = ""  # BEFORE: a possible beginning of the tag; CALLS: the text from the tag on
        self._n_calls = 0
        # The search for an object: the position, whether it is in a string, open braces, start of the outermost
        self._at, self._in_string, self._n_open, self._start = 0, False, 0, 0
        self._n_closing = 0  # with "{" or "[" as the tag: number of such brackets still open
        # An object waiting for a name, and its end; where the search for a name begins; where the last call ended
        self._object: dict[str, Any] | None = None
        self._end, self._search_from, self._call_end = 0, 0, 0

    def push(self, text: str) -> tuple[str, list[ParsedCall]]:
        """Add a piece of text; return the new content and the calls that it completes."""
        if self._state is ToolState.TEXT:
            return text, []
        buffer, self._buffer = self._buffer, ""  # the only reference, so that += appends without a copy
        buffer += text
        content = ""
        if self._state is ToolState.BEFORE:
            at = buffer.find(self._tag)
            if at >= 0:
                self._state = ToolState.CALLS
            else:
                at = len(buffer) - overlap(buffer, self._tag)
            content, buffer = buffer[:at], buffer[at:]
            if self._closing and content.strip(WHITE_SPACE):
                self._state = ToolState.TEXT
                return content + buffer, []
            self._at = self._search_from = self._call_end = 0 if self._closing else len(self._tag)
        calls = list(self._read(buffer)) if self._state is ToolState.CALLS else []
        if self._state is ToolState.TEXT:
            return content + buffer, []
        self._buffer = buffer
        return content, calls

    def flush(self) -> tuple[str, list[ParsedCall]]:
        """Return the text held back, at the end of the answer: an unfinished tag, or a call whose name might go on.

        A call that was begun with a tag of its own and not completed is dropped.
        """
        calls = list(self._pair(self._buffer, len(self._buffer)))
        is_content = self._state is ToolState.BEFORE or (self._closing and not self._n_calls)
        content = self._buffer if is_content else ""
        self._state, self._buffer = ToolState.TEXT, ""
        return content, calls

    def _read(self, buffer: str) -> Iterator[ParsedCall]:
        """Yield the calls that are complete in `buffer`; enter state TEXT if a bracket closes before the first call."""
        for token in BRACKET_OR_QUOTE.finditer(buffer, self._at):
            c, self._at = token[0], token.end()
            if c == "\\":  # the escaped character is in the next piece
                self._at = token.start()
                break
            if c == '"':
                self._in_string = not self._in_string
            if self._in_string:
                continue
            self._n_closing += (c == self._tag) - (c == self._closing)
            if c == "{":
                self._start = self._start if self._n_open else token.start()
                self._n_open += 1
            elif c == "}" and self._n_open:
                self._n_open -= 1
                if not self._n_open:
                    yield from self._complete(buffer, token.end())
            if c == self._closing and not self._n_closing:
                yield from self._pair(buffer, token.end())
                if not self._n_calls:
                    self._state = ToolState.TEXT
                    return
        else:
            self._at = len(buffer)
        if not self._name_may_continue(buffer):
            yield from self._pair(buffer, len(buffer))

    def _complete(self, buffer: str, end: int) -> Iterator[ParsedCall]:
        """Yield the calls completed by the bracket that closes at `end`."""
        yield from self._pair(buffer, end)
        if self._object is None and self._start >= self._call_end:
            self._object, self._end = _object(buffer[self._start : end]), end
            yield from self._pair(buffer, end)

    def _pair(self, buffer: str, end: int) -> Iterator[ParsedCall]:
        """Yield the call made of the waiting object and the first name in buffer[:end], if there are both."""
        if self._object is None:
            return
        name = self._name.search(buffer, self._search_from, end)
        if not name:
            self._search_from = max(self._search_from, end + 1 - len(self._names[0])) if self._names else end
            return
        arguments = _arguments(self._object, self._spelled[name[0]])
        self._object, self._call_end = None, max(self._end, name.end())
        self._search_from = self._call_end
        if arguments is not None:
            yield ParsedCall(self._spelled[name[0]], arguments, self._n_calls)
            self._n_calls += 1

    def _name_may_continue(self, buffer: str) -> bool:
        """Return whether `buffer` ends in the beginning of a name; then a shorter complete name has to wait."""
        return self._object is not None and any(overlap(buffer, name) for name in self._names)


def _object(text: str) -> dict[str, Any] | None:
    """Parse `text` as a JSON object; return None if it is something else."""
    depth = {"{": 1, "[": 1, "}": -1, "]": -1}
    if max(accumulate(depth.get(c, 0) for c in STRING.sub("", text)), default=0) > MAX_NESTING:
        return None
    try:
        value = json.loads(text, parse_int=_number, parse_float=_number, parse_constant=_number)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _number(text: str) -> int | float:
    """Return an int, with all digits, or a float.  Raises: ValueError if invalid in JSON or beyond a double"""
    value = float(text)
    if not abs(value) < float("inf"):
        raise ValueError(text)
    return int(text) if text.removeprefix("-").isdigit() else value


def _arguments(call: dict[str, Any], tool: str) -> dict[str, Any] | None:
    """Return the arguments that the object `call` has for `tool`, or None if it has a name but no arguments.

    They are under "arguments" or "parameters" beside a "name", or under the tool's own name, at any depth; else `call`
    itself is the arguments.
    """
    for inner in _objects(call):
        keys = ("arguments", "parameters") if "name" in inner else (tool,)
        given = [inner[key] for key in keys if key in inner]
        objects = [_object(value) if isinstance(value, str) else value for value in given]
        arguments = next((value for value in objects if isinstance(value, dict)), None)
        if arguments is not None or "name" in inner:
            return arguments
    return call


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield `value` and the objects within it, outer ones first."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _objects(item)
