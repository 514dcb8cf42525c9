"""`tool_choice`: whether the model may, must or must not call a tool, and which one.

A required call is generated as structured output, in the form of the model's own calls: engine/sampling/forced_call.py.
"""

from __future__ import annotations

from typing import Any

from ...engine.errors import RequestError
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
