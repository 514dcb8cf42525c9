"""The conversation of a request as a plain list of messages, before a template renders it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]  # role, content; optional: thinking, images, tool_calls, tool_name, tool_call_id
Tool = Mapping[str, Any]


def generate_messages(
    prompt: str, system: str = "", history: Sequence[Message] = (), images: Sequence[Any] = ()
) -> list[Message]:
    """Build the messages of /api/generate: the system text, the model's own messages, then `prompt` as the user's.

    system   from the request, or else from the model
    history  the model's MESSAGEs; empty when the request continues a `context`
    """
    first = [{"role": "system", "content": system}] if system else []
    asked = {"role": "user", "content": prompt} | ({"images": list(images)} if images else {})
    return [*first, *history, asked]


def chat_messages(messages: Sequence[Message], system: str = "", history: Sequence[Message] = ()) -> list[Message]:
    """Build the messages of /api/chat: the model's system text, its own messages, then the request's.

    If the request begins with a system message, the model's system text is dropped; the model's messages still come
    first.
    """
    own = messages and messages[0].get("role") == "system"
    first = [{"role": "system", "content": system}] if system and not own else []
    return [*first, *history, *messages]


def bare_prompt(messages: Sequence[Message]) -> str:
    """Render for a model without a template, as `{{ .Prompt }}` does: the text of user and assistant only."""
    return "".join(message["content"] for message in collate(messages) if message["role"] in ("user", "assistant"))


def collate(messages: Sequence[Message]) -> list[Message]:
    """Merge neighbours of the same role, their texts separated by an empty line; tool results stay separate."""
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1]["role"] == message["role"] != "tool":
            text = f"{merged[-1]['content']}\n\n{message['content']}"
            merged[-1] = {**merged[-1], "content": text}
        else:
            merged.append(message)
    return merged


def mark_images(messages: Sequence[Message]) -> list[Message]:
    """Mark the places of images in `messages`: [img-0] for the first, [img-1], ...

    A mark replaces the first `[img]` in the text; without one, it is put in front.
    """
    marked, n = [], 0
    for message in messages:
        front, text = "", message["content"]
        for _ in message.get("images") or ():
            mark = f"[img-{n}]"
            front, text = (front, text.replace("[img]", mark, 1)) if "[img]" in text else (front + mark, text)
            n += 1
        marked.append({**message, "content": front + text} if front or text != message["content"] else message)
    return marked


def images_of(messages: Sequence[Message]) -> list[bytes]:
    """Return the images that the marks of `mark_images` refer to; a model's own messages hold them in base64."""
    images = [image for message in messages for image in message.get("images") or ()]
    return [base64.b64decode(image) if isinstance(image, str) else image for image in images]


def for_jinja(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Rename the fields of Ollama's messages as Hugging Face's templates expect.

    The `tool_name` of a result becomes its `name`, a call gets the type "function", and empty fields are dropped.
    """
    renamed = []
    for message in messages:
        kept = [key for key in ("thinking", "tool_call_id") if message.get(key)]
        fields = {key: value for key, value in message.items() if key in ("role", "content", *kept)}
        if message.get("tool_name"):
            fields["name"] = message["tool_name"]
        if message.get("tool_calls"):
            fields["tool_calls"] = [_call_for_jinja(call) for call in message["tool_calls"]]
        renamed.append(fields)
    return renamed


def _call_for_jinja(call: Mapping[str, Any]) -> dict[str, Any]:
    function = {key: value for key, value in call["function"].items() if key != "index"}
    return ({"id": call["id"]} if call.get("id") else {}) | {"type": "function", "function": function}
