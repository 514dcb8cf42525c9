"""Between Anthropic's /v1/messages and Ollama's /api/chat.

blocks: text, image, tool_use, tool_result, thinking -> messages        chunks -> blocks, one open at a time
"""

from __future__ import annotations

import binascii
import secrets
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from ...engine.errors import RequestError
from ...engine.parse import ParsedCall
from ...engine.run.piece import Timings
from ..wire import schema as ollama
from ..wire.answer import arguments_json
from ..wire.sse import Event
from ..wire.stream import Chunk
from . import schema as anthropic

STOP_REASON = {"stop": "end_turn", "length": "max_tokens"}


class ThreadUnsupported(RequestError):
    """No conversation is kept: a client that is told so sends it whole."""

    details: ClassVar[dict[str, str]] = {"error_code": "thread_unsupported_request"}


# --- requests ---


def chat_from_messages(request: anthropic.MessagesRequest) -> ollama.ChatRequest:
    """The same question to /api/chat.  Raises: RequestError"""
    if not request.model:
        raise RequestError("model is required")
    if request.max_tokens <= 0:
        raise RequestError("max_tokens is required and must be positive")
    if not request.messages:
        raise RequestError("messages is required")
    if request.thread is not None:
        raise ThreadUnsupported("threads are not supported: send the whole conversation")
    system = content_text(request.system)
    first = [ollama.Message("system", system)] if system else []
    form = request.output_config.format if request.output_config else None
    return ollama.ChatRequest(
        model=request.model,
        stream=request.stream,
        messages=[*first, *messages_from_anthropic(request.messages)],
        tools=ollama.Tools(tool_from_anthropic(offered) for offered in request.tools if offered.type in ("", "custom")),
        format=form.schema if form and form.type == "json_schema" else None,
        think=request.thinking and {"enabled": True, "adaptive": True, "disabled": False}.get(request.thinking.type),  # type: ignore[arg-type]
        options=options_from_anthropic(request),
    )


def options_from_anthropic(request: anthropic.MessagesRequest) -> dict[str, Any]:
    asked = {
        "num_predict": request.max_tokens,
        "stop": request.stop_sequences or None,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
    }
    return {name: value for name, value in asked.items() if value is not None} | request.options


def tool_from_anthropic(offered: anthropic.AnthropicTool) -> ollama.Tool:
    described = {"description": offered.description} if offered.description else {}
    return ollama.Tool("function", function={"name": offered.name} | described | {"parameters": offered.input_schema})


def messages_from_anthropic(sent: Sequence[anthropic.AnthropicMessage]) -> list[ollama.Message]:
    """Ollama's messages: the results in a message come first and apart, the rest of it stays together.

    Raises: RequestError
    """
    said: list[ollama.Message] = []
    names: dict[str, str] = {}
    for message in sent:
        rest, results = ollama.Message(message.role), []
        for block in blocks(message.content):
            match block.get("type"):
                case "text":
                    rest.content += content_text([block])
                case "image":
                    rest.images.append(image_from_anthropic(block))
                case "thinking":
                    rest.thinking += str(block.get("thinking", ""))
                case "tool_use":
                    call = tool_use(block)
                    names[call.id] = call.function.name
                    rest.tool_calls.append(call)
                case "tool_result":
                    results.append(tool_result(block, names))
        said += results
        if not results or rest.content or rest.images:
            said.append(rest)
    return said


def blocks(content: Any) -> list[dict[str, Any]]:
    """A message's content in blocks.  Raises: RequestError"""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise RequestError("content must be a string or a list of blocks")
    return content


def content_text(content: Any) -> str:
    """The text of all text blocks; other blocks say none."""
    if content is None:
        return ""
    return "".join(str(block.get("text", "")) for block in blocks(content) if block.get("type") == "text")


def image_from_anthropic(block: dict[str, Any]) -> bytes:
    source = block.get("source")
    if not isinstance(source, dict) or source.get("type") != "base64":
        raise RequestError("an image must have a source of type base64")
    try:
        return binascii.a2b_base64(str(source.get("data", "")), strict_mode=True)
    except ValueError as error:
        raise RequestError(f"invalid base64 image data: {error}") from None


def tool_use(block: dict[str, Any]) -> ollama.ToolCall:
    value = block.get("input") or {}
    if not isinstance(value, dict):
        raise RequestError("the input of a tool_use block must be an object")
    function = ollama.ToolCallFunction(name=str(block.get("name", "")), arguments=ollama.Arguments(value))
    return ollama.ToolCall(str(block.get("id", "")), function)


def tool_result(block: dict[str, Any], names: dict[str, str]) -> ollama.Message:
    id, content = str(block.get("tool_use_id", "")), block.get("content")
    images = [image_from_anthropic(b) for b in blocks(content or "") if b.get("type") == "image"]
    return ollama.Message("tool", content_text(content), images=images, tool_call_id=id, tool_name=names.get(id, ""))


# --- answers ---


class MessagesAnswer:
    """An answer of /v1/messages: `push` for one that streams, `whole` for one object."""

    def __init__(self, request: anthropic.MessagesRequest, n_prompt: int):
        """`n_prompt` tokens is what a stream says first; the count at its end is the one that was evaluated."""
        self._stops = request.stop_sequences
        self._head: dict[str, Any] = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant"}
        self._head["model"] = request.model
        self._n_prompt = n_prompt
        self._began, self._called = False, False
        self._open, self._index = "", 0  # the type of the open block, if there is one; the number of it or the next

    def whole(self, chunk: Chunk) -> dict[str, Any]:
        self._called = bool(chunk.tool_calls)
        thoughts = [{"type": "thinking", "thinking": chunk.thinking}] if chunk.thinking else []
        text = [{"type": "text", "text": chunk.text}] if chunk.text else []
        content = [*thoughts, *text, *(_call(call) | {"input": call.arguments} for call in chunk.tool_calls)]
        return self._head | {"content": content} | self._end(chunk) | {"usage": anthropic_usage(chunk.timings)}

    def push(self, chunk: Chunk) -> Iterator[Event]:
        """The events that a chunk causes: blocks begin, grow and end as its kind of text changes."""
        if not self._began:
            self._began = True
            start = self._head | {"content": [], "usage": {"input_tokens": self._n_prompt, "output_tokens": 0}}
            yield event("message_start", message=start)
        if chunk.thinking:
            yield from self._say("thinking", chunk.thinking)
        if chunk.text:
            yield from self._say("text", chunk.text)
        for call in chunk.tool_calls:
            self._called = True
            yield from self._close()
            yield self._start(_call(call))
            yield self._delta(type="input_json_delta", partial_json=arguments_json(call))
            yield from self._close()
        if chunk.done_reason:
            yield from self._close()
            yield event("message_delta", delta=self._end(chunk), usage=anthropic_usage(chunk.timings))
            yield event("message_stop")

    def _say(self, kind: str, text: str) -> Iterator[Event]:
        """More text for the block of this kind, which is begun if it is not open."""
        if self._open != kind:
            yield from self._close()
            yield self._start({"type": kind, kind: ""})
        yield self._delta(type=f"{kind}_delta", **{kind: text})

    def _start(self, block: dict[str, Any]) -> Event:
        self._open = block["type"]
        return event("content_block_start", index=self._index, content_block=block)

    def _delta(self, **delta: str) -> Event:
        return event("content_block_delta", index=self._index, delta=delta)

    def _close(self) -> Iterator[Event]:
        if self._open:
            self._open, self._index = "", self._index + 1
            yield event("content_block_stop", index=self._index - 1)

    def _end(self, chunk: Chunk) -> dict[str, Any]:
        """Why it ended: the model was done, had no tokens left, calls a tool, or said a stop sequence."""
        if self._called:
            return {"stop_reason": "tool_use"}
        if chunk.met in self._stops:
            return {"stop_reason": "stop_sequence", "stop_sequence": chunk.met}
        return {"stop_reason": STOP_REASON.get(chunk.done_reason or "", "end_turn")}


def _call(call: ParsedCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}


def anthropic_usage(timings: Timings | None) -> dict[str, int]:
    t = timings or Timings()
    return {"input_tokens": t.prompt_eval_count, "output_tokens": t.eval_count}


def event(kind: str, **data: Any) -> Event:
    return kind, {"type": kind, **data}
