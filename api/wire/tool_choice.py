"""`tool_choice`: whether a model may, must or must not call a tool, and which.

A call that has to be made is an answer of a given form, so the form is asked for, and what comes is read as a call:

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


def choose(request: ChatRequest, choice: Any) -> bool:
    """Let `request` offer the tools that `choice` leaves; whether one of them has to be called.

    choice   "auto", "none", "required"; or a tool by its name, in OpenAI's or Anthropic's way
    Raises: RequestError
    """
    kind, name = _meant(choice)
    if kind in ("", "auto"):
        return False
    if kind == "none":
        request.tools = Tools()
        return False
    if kind in ("function", "tool"):
        request.tools = Tools(tool for tool in request.tools if tool.function.get("name") == name)
        if not request.tools:
            raise RequestError(f"tool_choice names '{name}', which is not among the tools")
    elif kind not in ("required", "any"):
        raise RequestError(f"tool_choice '{kind}' is not known; it can be auto, none, required or a function's name")
    if not request.tools:
        raise RequestError(f"tool_choice is '{kind}', but there are no tools")
    request.format = schema(request.tools)
    return True


def _meant(choice: Any) -> tuple[str, str]:
    """What kind of choice it is, and the tool it names."""
    if isinstance(choice, str) or choice is None:
        return choice or "", ""
    if not isinstance(choice, dict):
        raise RequestError("tool_choice must be a string or an object")
    function = choice.get("function")
    named = function if isinstance(function, dict) else choice
    return str(choice.get("type", "")), str(named.get("name", ""))


def schema(tools: Tools) -> dict[str, Any]:
    """The JSON schema of a call of one of `tools`."""
    parameters = {str(tool.function.get("name")): tool.function.get("parameters") for tool in tools}
    place = {name: "#/$defs/" + name.replace("~", "~0").replace("/", "~1") for name in parameters}  # JSON pointers
    forms = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": {"$ref": place[name]}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name in parameters
    ]
    defs = {name: _moved(value or {"type": "object"}, place[name]) for name, value in parameters.items()}
    return (forms[0] if len(forms) == 1 else {"anyOf": forms}) | {"$defs": defs}


def _moved(value: Any, root: str) -> Any:
    """A schema whose references still mean the same when it stands at `root` of another one."""
    if isinstance(value, list):
        return [_moved(v, root) for v in value]
    if not isinstance(value, dict):
        return value
    moved = {k: _moved(v, root) for k, v in value.items()}
    if isinstance(value.get("$ref"), str) and value["$ref"].startswith("#"):
        moved["$ref"] = root + value["$ref"][1:]
    return moved


async def as_call(source: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
    """Pieces whose text is the form above, with a call in its place; text again where the form was not finished."""
    text, called = "", False
    async with aclosing(source):
        async for piece in source:
            text, called = text + piece.text, called or bool(piece.tool_calls)
            if piece.done_reason and not called:
                yield _call(text)
            yield replace(piece, text="")


def _call(text: str) -> Piece:
    try:
        said = json.loads(text)
        return Piece("", tool_calls=(ParsedCall(said["name"], said["arguments"]),))
    except (ValueError, KeyError, TypeError):
        return Piece(text)
