"""Which conversation a request means, before any template sees it: plain lists of plain messages."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]  # role, content; maybe thinking, images, tool_calls, tool_name, tool_call_id
Tool = Mapping[str, Any]


def generate_messages(
    prompt: str, system: str = "", history: Sequence[Message] = (), images: Sequence[Any] = ()
) -> list[Message]:
    """What /api/generate asks: the system text, the model's own messages, then `prompt` as the user's.

    system   the request's, or else the model's
    history  the model's MESSAGEs; none when the request continues a `context`
    """
    first = [{"role": "system", "content": system}] if system else []
    asked = {"role": "user", "content": prompt} | ({"images": list(images)} if images else {})
    return [*first, *history, asked]


def chat_messages(messages: Sequence[Message], system: str = "", history: Sequence[Message] = ()) -> list[Message]:
    """What /api/chat asks: the model's system text, its own messages, then the request's.

    A request that starts with a system message of its own drops the model's; the model's messages still come first.
    """
    own = messages and messages[0].get("role") == "system"
    first = [{"role": "system", "content": system}] if system and not own else []
    return [*first, *history, *messages]


def bare_prompt(messages: Sequence[Message]) -> str:
    """The conversation of a model without any template, as `{{ .Prompt }}` writes it: what is said and nothing else."""
    return "".join(message["content"] for message in collate(messages) if message["role"] in ("user", "assistant"))


def collate(messages: Sequence[Message]) -> list[Message]:
    """Neighbours of one role as one message, their texts a blank line apart; results of tools stay apart."""
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1]["role"] == message["role"] != "tool":
            text = f"{merged[-1]['content']}\n\n{message['content']}"
            merged[-1] = {**merged[-1], "content": text}
        else:
            merged.append(message)
    return merged


def mark_images(messages: Sequence[Message]) -> list[Message]:
    """`messages` that say where their images are: [img-0] for the first, [img-1], ...

    A mark takes the place of the first `[img]` in the text; where there is none, it stands in front.
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
    """What the marks that `mark_images` leaves stand for; the messages of a model have their images in base64."""
    images = [image for message in messages for image in message.get("images") or ()]
    return [base64.b64decode(image) if isinstance(image, str) else image for image in images]


def for_jinja(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Ollama's messages under the names that templates from Hugging Face expect.

    A result's `tool_name` is its `name`; a call is of type "function"; what is empty is absent.
    """
    renamed = []
    for message in messages:
        told = {key: value for key, value in message.items() if key in ("role", "content", "thinking", "tool_call_id")}
        told = {key: value for key, value in told.items() if value or key in ("role", "content")}
        if message.get("tool_name"):
            told["name"] = message["tool_name"]
        if message.get("tool_calls"):
            told["tool_calls"] = [_call_for_jinja(call) for call in message["tool_calls"]]
        renamed.append(told)
    return renamed


def _call_for_jinja(call: Mapping[str, Any]) -> dict[str, Any]:
    function = {key: value for key, value in call["function"].items() if key != "index"}
    return ({"id": call["id"]} if call.get("id") else {}) | {"type": "function", "function": function}
