"""`tool_choice`: whether the model may, must or must not call a tool, and which one.

A required call is generated as structured output: a schema constrains the answer, which is then parsed as a call.

    {"name": "get_weather", "arguments": {"city": "Paris"}}
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from ...engine.errors import RequestError
from ...engine.parse import ParsedCall
from ...engine.run.piece import Piece
from .schema import ChatRequest, Tools


def apply_tool_choice(request: ChatRequest, choice: Any) -> bool:
    """Restrict the tools of `request` to those that `choice` allows; return True if the model must call one.

    choice   "auto", "none" or "required", or an object that names a tool, in OpenAI's or Anthropic's form
    Raises: RequestError
    """
    kind, name = _parse_choice(choice)
    if kind in ("", "auto"):
        return False
    if kind == "none":
        request.tools = Tools()
        return False
    if kind in ("function", "tool"):
        names = [str(tool.function.get("name")) for tool in request.tools]
        request.tools = Tools(tool for tool in request.tools if tool.function.get("name") == name)
        if not request.tools:
            known = f"choose from {', '.join(names)}" if names else "the request has no tools"
            raise RequestError(f"tool_choice names unknown tool '{name}'; {known}")
    elif kind not in ("required", "any"):
        raise RequestError(f"unknown tool_choice '{kind}'; choose from auto, none, required, or name a function")
    if not request.tools:
        raise RequestError(f"tool_choice '{kind}' requires at least one tool in tools")
    request.format = call_schema(request.tools)
    return True


def _parse_choice(choice: Any) -> tuple[str, str]:
    """Return the kind of choice, and the name of the tool or ""."""
    if isinstance(choice, str) or choice is None:
        return choice or "", ""
    if not isinstance(choice, dict):
        raise RequestError("tool_choice must be a string or an object")
    function = choice.get("function")
    named = function if isinstance(function, dict) else choice
    return str(choice.get("type", "")), str(named.get("name", ""))


def call_schema(tools: Tools) -> dict[str, Any]:
    """Build the JSON schema of a call to one of `tools`."""
    parameters = {str(tool.function.get("name")): tool.function.get("parameters") for tool in tools}
    pointers = {name: "#/$defs/" + name.replace("~", "~0").replace("/", "~1") for name in parameters}
    forms = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": {"$ref": pointers[name]}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name in parameters
    ]
    defs = {name: _rebase_references(value or {"type": "object"}, pointers[name]) for name, value in parameters.items()}
    return (forms[0] if len(forms) == 1 else {"anyOf": forms}) | {"$defs": defs}


def _rebase_references(value: Any, root: str) -> Any:
    """Rewrite the references in a schema for its new place at `root` of another schema."""
    if isinstance(value, list):
        return [_rebase_references(v, root) for v in value]
    if not isinstance(value, dict):
        return value
    moved = {k: _rebase_references(v, root) for k, v in value.items()}
    if isinstance(value.get("$ref"), str) and value["$ref"].startswith("#"):
        moved["$ref"] = root + value["$ref"][1:]
    return moved


async def parse_forced_call(source: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
    """Replace the text of an answer in the form above by the call.  An incomplete form stays text."""
    text, called = "", False
    async with aclosing(source):
        async for piece in source:
            text, called = text + piece.text, called or bool(piece.tool_calls)
            if piece.done_reason and not called:
                yield _call_piece(text)
            yield replace(piece, text="")


def _call_piece(text: str) -> Piece:
    try:
        call = json.loads(text)
        return Piece("", tool_calls=(ParsedCall(call["name"], call["arguments"]),))
    except (ValueError, KeyError, TypeError):
        return Piece(text)
