"""The tag that a model's tool calls begin with, found by rendering a call with its Jinja template."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ..errors import BadTemplate
from ..go.text import WHITE_SPACE
from ..parse import ToolParser

NO_TAG = "{"  # without a tag, a call begins with its JSON object
Render = Callable[[list[dict[str, Any]], list[dict[str, Any]]], str]
"""A function that renders messages and tools; with a last message of the user, up to where the answer begins."""

PROBE_NAME, PROBE_KEY, PROBE_TEXT = "probe_the_tag", "probed_key", "probe the start"
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
        {"id": "abcdef123", "type": "function", "function": {"name": PROBE_NAME, "arguments": {PROBE_KEY: "v"}}}
    ],
}


def tool_tag(render: Render) -> str | None:
    """Return the text that a call begins with, up to a brace or its name; None if the model's calls are not JSON."""
    try:
        asked, answered, called = (
            render([USER_MESSAGE, *more], [TOOL]) for more in ([], [TEXT_MESSAGE], [CALL_MESSAGE])
        )
    except BadTemplate:
        return NO_TAG
    if called.count(PROBE_NAME) == asked.count(PROBE_NAME):
        return NO_TAG
    before = answered.partition(PROBE_TEXT)[0]
    call = called[len(before if called.startswith(before) else _common_prefix(asked, called)) :].lstrip(WHITE_SPACE)
    tag = re.split(rf"\{{|{PROBE_NAME}", call, maxsplit=1)[0].rstrip(WHITE_SPACE) or NO_TAG
    parser = ToolParser(tag, [PROBE_NAME])
    calls = parser.push(call)[1] + parser.flush()[1]
    return tag if [call.arguments for call in calls] == [{PROBE_KEY: "v"}] else None


def _common_prefix(a: str, b: str) -> str:
    """Return the common prefix of both texts, without an unfinished tag at its end."""
    n = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return re.sub(r"[<\[][^<>\[\]]*\Z", "", a[:n])
