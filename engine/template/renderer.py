"""Renderers: chat formats by name, as a Modelfile's RENDERER or a manifest names them.

Each is a Jinja template in renderers/, written to give the prompts of Ollama v0.33.0-rc2 to the letter
(tests/golden/recorded/renderers).  Several names may share a file, which then sees the name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..go.fmt import json_text, ordered_json_text
from . import jinja
from .messages import Message, Tool

FOLDER = Path(__file__).parent / "renderers"


@dataclass(frozen=True)
class Renderer:
    """A chat format.

    file         its template
    leading_bos  the text of BOS that its prompts begin with; the tokenizer may add the token itself
    images       whether it writes the marks of images
    tools, thinking   what it can render
    """

    file: str
    leading_bos: str = ""
    images: bool = False
    tools: bool = True
    thinking: bool = True


RENDERERS: dict[str, Renderer] = {
    "cogito": Renderer("cogito", "<｜begin▁of▁sentence｜>"),
    "cohere": Renderer("cohere", "<BOS_TOKEN>"),
    "deepseek3.1": Renderer("deepseek3.1", "<｜begin▁of▁sentence｜>"),
    "functiongemma": Renderer("functiongemma", "<bos>", thinking=False),
    "gemma4": Renderer("gemma4", "<bos>", images=True),
    "gemma4-large": Renderer("gemma4", "<bos>", images=True),
    "gemma4-small": Renderer("gemma4", "<bos>", images=True),
    "glimmer": Renderer("glimmer", "<|begin_of_text|>", images=True),
    "glm-4.7": Renderer("glm-4.7"),
    "glm-ocr": Renderer("glm-ocr", images=True),
    "laguna": Renderer("laguna", "〈|EOS|〉"),
    "lfm2": Renderer("lfm2", "<|startoftext|>", images=True, thinking=False),
    "lfm2-thinking": Renderer("lfm2", "<|startoftext|>", images=True),
    "nemotron-3-nano": Renderer("nemotron-3-nano", images=True),
    "nemotron-3.5-nano": Renderer("nemotron-3-nano", images=True),
    "olmo3": Renderer("olmo3", thinking=False),
    "olmo3.1": Renderer("olmo3", thinking=False),
    "olmo3-think": Renderer("olmo3-think", tools=False),
    "olmo3-32b-think": Renderer("olmo3-think", tools=False),
    "ornith": Renderer("qwen3.5", images=True),
    "poolside-v1": Renderer("laguna", "〈|EOS|〉"),
    "qwen3-coder": Renderer("qwen3-coder", thinking=False),
    "qwen3-vl-instruct": Renderer("qwen3-vl", images=True, thinking=False),
    "qwen3-vl-thinking": Renderer("qwen3-vl", images=True),
    "qwen3.5": Renderer("qwen3.5", images=True),
    "qwen3.8": Renderer("qwen3.5", images=True),
}


def render_named(
    name: str, messages: Sequence[Message], tools: Sequence[Tool] = (), think: bool | str | None = None
) -> str:
    """Render a conversation with the renderer `name`.  Raises: ConversationRefused, BadTemplate"""
    renderer = RENDERERS[name]
    variables = {
        "name": name,
        "messages": [_message(message) for message in _marked(messages, renderer.images)],
        "tools": [_tool(tool) for tool in tools or ()],
        "think": think,
        "last_user": max((i for i, message in enumerate(messages) if message.get("role") == "user"), default=-1),
        "today": date.today().isoformat(),
    }
    return jinja.render_own(renderer_source(renderer.file), variables)


@lru_cache
def renderer_source(file: str) -> str:
    return (FOLDER / f"{file}.jinja").read_text(encoding="utf-8")


def _marked(messages: Sequence[Message], has_images: bool) -> list[Message]:
    """Put the marks of a message's images before its text, unless the text has some."""
    marked, n = [], 0
    for message in messages:
        images = message.get("images") or ()
        marks = "".join(f"[img-{n + i}]" for i in range(len(images)))
        n += len(images)
        content = message.get("content") or ""
        shows = has_images and marks and "[img-" not in content
        marked.append({**message, "content": f"{marks} {content}"} if shows else message)
    return marked


def _message(message: Message) -> dict[str, Any]:
    calls = [
        {
            "id": call.get("id") or "",
            "name": call["function"].get("name") or "",
            "arguments": call["function"].get("arguments") or {},
        }
        for call in message.get("tool_calls") or ()
    ]
    return {
        "role": message.get("role") or "",
        "content": message.get("content") or "",
        "thinking": message.get("thinking") or "",
        "calls": calls,
        "tool_name": message.get("tool_name") or "",
        "tool_call_id": message.get("tool_call_id") or "",
    }


PROPERTY_KEYS = ("anyOf", "type", "items", "description", "enum", "properties", "required")


def _tool(tool: Tool) -> dict[str, Any]:
    """Write a tool with the fields that Ollama knows, in its order."""
    function = tool.get("function") or {}
    parameters = function.get("parameters") or {}
    schema: dict[str, Any] = {"type": parameters.get("type") or ""}
    for key in ("$defs", "items", "required"):
        if parameters.get(key):
            schema[key] = parameters[key]
    properties = parameters.get("properties") or {}
    schema["properties"] = {key: _property(value) for key, value in properties.items()}
    named = {"name": function.get("name") or ""}
    if function.get("description"):
        named["description"] = function["description"]
    return {"type": tool.get("type") or "", "function": {**named, "parameters": schema}}


def _property(schema: Any) -> dict[str, Any]:
    """Write a parameter of a tool, without empty fields."""
    if not isinstance(schema, Mapping):
        return {}
    made = {key: schema[key] for key in PROPERTY_KEYS if schema.get(key)}
    if "properties" in made:
        made["properties"] = {key: _property(value) for key, value in made["properties"].items()}
    if "anyOf" in made:
        made["anyOf"] = [_property(value) for value in made["anyOf"]]
    return made


def go_json(value: Any) -> str:
    """Write compact JSON as Go does, with the order of keys kept and `<>&` escaped."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{ordered_json_text(str(key))}:{go_json(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(go_json, value)) + "]"
    return ordered_json_text(value)


OUTSIDE = re.compile(r'"(?:\\.|[^"\\])*"|([,:])')


def spaced_json(value: Any) -> str:
    """Write JSON as Go does, with a blank after commas and colons."""
    return OUTSIDE.sub(lambda found: found[0] + " " if found[1] else found[0], go_json(value))


def plain_json(value: Any) -> str:
    """Write compact JSON without escapes of `<>&`."""
    return _plain(go_json(value))


def spaced_plain_json(value: Any) -> str:
    """Write JSON with a blank after commas and colons, without escapes of `<>&`."""
    return _plain(spaced_json(value))


def _plain(text: str) -> str:
    for escaped, letter in (("\\u003c", "<"), ("\\u003e", ">"), ("\\u0026", "&")):
        text = text.replace(escaped, letter)
    return text


def sorted_json(value: Any) -> str:
    """Write compact JSON with sorted keys."""
    return json_text(value)


def indented_json(value: Any, indent: int = 4) -> str:
    """Write JSON on several lines, as Go's MarshalIndent does."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


jinja.add_filters(
    {
        "go_json": go_json,
        "spaced_json": spaced_json,
        "plain_json": plain_json,
        "spaced_plain_json": spaced_plain_json,
        "sorted_json": sorted_json,
        "indented_json": indented_json,
    }
)
