r"""A model's tool calls, found by rendering one with its template: the tag they begin with, and their whole form.

<tool_call>\n{"name": "probe_the_tag", "arguments": {"probed_key": "v"}}\n</tool_call><|im_end|>
tag           text                                     rest
<tool_call>   \n{"name": "NAME", "arguments": ARGUMENTS}   \n</tool_call>
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import BadTemplate
from ..go.text import WHITE_SPACE
from ..parse import ToolParser

NO_TAG = "{"  # without a tag, a call begins with its JSON object
Render = Callable[[list[dict[str, Any]], list[dict[str, Any]]], str]
"""A function that renders messages and tools; with a last message of the user, up to where the answer begins."""

PROBE_NAME, PROBE_KEY, PROBE_TEXT, PROBE_ID = "probe_the_tag", "probed_key", "probe the start", "abcdef123"
TOOL = {
    "type": "function",
    "function": {
        "name": PROBE_NAME,
        "description": "d",
        "parameters": {
            "type": "object",
            "properties": {PROBE_KEY: {"type": "string", "description": "d"}},
            "required": [PROBE_KEY],
        },
    },
}
USER_MESSAGE = {"role": "user", "content": "u"}
TEXT_MESSAGE = {"role": "assistant", "content": PROBE_TEXT}
CALL_MESSAGE = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": PROBE_ID, "type": "function", "function": {"name": PROBE_NAME, "arguments": {PROBE_KEY: "v"}}}
    ],
}


NAME, ARGUMENTS, ID = "\ue001", "\ue002", "\ue003"  # private characters that stand for what differs between calls


@dataclass(frozen=True)
class CallForm:
    """The form in which a model writes a tool call.

    tag    the text that it begins with, as for ToolParser
    text   the text after the tag up to its last bracket, with NAME, ARGUMENTS and ID for the parts that differ
    rest   the text after that bracket, such as a closing tag
    """

    tag: str
    text: str
    rest: str = ""


def call_form(render: Render, tag: str | None) -> CallForm:
    """Return the form of the calls of a model that begins them with `tag`, which is None if they are not JSON.

    Where the template shows no call that ToolParser can read, the form is an object with a name and arguments.
    """
    shown = _probe(render)
    if not shown or tag is None or not shown.call.startswith(tag):
        return _plain_form(tag or NO_TAG)
    call = shown.call[len(tag) :].removesuffix(shown.after)
    start = call.rfind("{", 0, max(call.find(PROBE_KEY), 0))
    try:
        _, end = json.JSONDecoder().raw_decode(call, max(start, 0))
    except ValueError:
        return _plain_form(tag)
    text = (call[:start] + ARGUMENTS + call[end:]).replace(PROBE_NAME, NAME).replace(PROBE_ID, ID)
    end = _closing(tag, text)
    is_whole = shown.call.endswith(shown.after)  # else the text after the call may belong to another message
    form = CallForm(tag, text[:end], text[end:].rstrip(WHITE_SPACE) if is_whole else "")
    return form if _is_readable(form) else _plain_form(tag)


def _plain_form(tag: str) -> CallForm:
    opened, n_open = ("", 0) if tag == NO_TAG else ("{", _n_open_by(tag))
    return CallForm(tag, f'{opened}"name": "{NAME}", "arguments": {ARGUMENTS}}}' + "]" * n_open)


def _is_readable(form: CallForm) -> bool:
    """Return whether the form has one place for the name and one for the arguments, and ToolParser reads both."""
    if (form.text.count(NAME), form.text.count(ARGUMENTS)) != (1, 1):
        return False
    made = form.text.replace(NAME, PROBE_NAME).replace(ARGUMENTS, json.dumps({PROBE_KEY: "v"}))
    parser = ToolParser(form.tag, [PROBE_NAME])
    calls = parser.push(form.tag + made)[1] + parser.flush()[1]
    return [call.arguments for call in calls] == [{PROBE_KEY: "v"}]


def _closing(tag: str, text: str) -> int:
    """Return where `text` has the name and the arguments and has closed the brackets that it and `tag` opened."""
    at = max(text.find(NAME), text.find(ARGUMENTS)) + 1
    n_open = _n_open_by(tag) + _n_open(text[:at])
    while n_open > 0 and at < len(text):
        n_open += _n_open(text[at])
        at += 1
    return at


def _n_open_by(tag: str) -> int:
    return _n_open(re.sub(r"\[[A-Z_]+\]", "", tag))  # [TOOL_CALLS] is a word, not a list


def _n_open(text: str) -> int:
    return sum((c in "{[") - (c in "}]") for c in text)


@dataclass(frozen=True)
class _Probe:
    """A rendered call, and the text after an answer without one."""

    call: str
    after: str


def _probe(render: Render) -> _Probe | None:
    """Render a call; None if the template fails on it or does not show it."""
    try:
        asked, answered, called = (
            render([USER_MESSAGE, *more], [TOOL]) for more in ([], [TEXT_MESSAGE], [CALL_MESSAGE])
        )
    except BadTemplate:
        return None
    if called.count(PROBE_NAME) == asked.count(PROBE_NAME):
        return None
    before, _, after = answered.partition(PROBE_TEXT)
    call = called[len(before if called.startswith(before) else _common_prefix(asked, called)) :].lstrip(WHITE_SPACE)
    return _Probe(call, after)


def tool_tag(render: Render) -> str | None:
    """Return the text that a call begins with, up to a brace or its name; None if the model's calls are not JSON."""
    shown = _probe(render)
    if not shown:
        return NO_TAG
    call = shown.call
    tag = re.split(rf"\{{|{PROBE_NAME}", call, maxsplit=1)[0].rstrip(WHITE_SPACE) or NO_TAG
    parser = ToolParser(tag, [PROBE_NAME])
    calls = parser.push(call)[1] + parser.flush()[1]
    return tag if [call.arguments for call in calls] == [{PROBE_KEY: "v"}] else None


def _common_prefix(a: str, b: str) -> str:
    """Return the common prefix of both texts, without an unfinished tag at its end."""
    n = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return re.sub(r"[<\[][^<>\[\]]*\Z", "", a[:n])
