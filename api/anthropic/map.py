"""Conversion between Anthropic's /v1/messages and Ollama's /api/chat.

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
from ..wire.effort import think_from_effort
from ..wire.sse import Event
from ..wire.stream import Chunk
from . import schema as anthropic

UNFINISHED = {"stop_reason": None, "stop_sequence": None}  # Ollama omits them; in whole answers we do, too
STOP_REASON = {"stop": "end_turn", "length": "max_tokens"}


class ThreadUnsupported(RequestError):
    """The server stores no conversations.  Clients that see this error code send the whole conversation instead."""

    details: ClassVar[dict[str, str]] = {"error_code": "thread_unsupported_request"}


# --- requests ---


def chat_from_messages(request: anthropic.MessagesRequest) -> ollama.ChatRequest:
    """Convert to a request to /api/chat.  Raises: RequestError"""
    if not request.model:
        raise RequestError("model is required")
    if request.max_tokens <= 0:
        raise RequestError("max_tokens is required and must be positive")
    if not request.messages:
        raise RequestError("messages is required")
    if request.thread is not None:
        raise ThreadUnsupported("threads are not supported; send the whole conversation")
    system = content_text(request.system)
    first = [ollama.Message("system", system)] if system else []
    form = request.output_config.format if request.output_config else None
    return ollama.ChatRequest(
        model=request.model,
        stream=request.stream,
        messages=[*first, *messages_from_anthropic(request.messages)],
        tools=ollama.Tools(tool_from_anthropic(offered) for offered in request.tools if offered.type in ("", "custom")),
        format=schema_of_format(form) if form else None,
        think=think_of(request),
        options=options_from_anthropic(request),
    )


BUDGETS = ((4096, "low"), (16384, "medium"), (65536, "high"))  # tokens of thinking below which an effort is meant


def think_of(request: anthropic.MessagesRequest) -> Any:
    """Return Ollama's `think`: an effort, else the one that a budget of tokens stands for; None if not asked.

    Raises: RequestError for an unknown effort
    """
    kind = request.thinking.type if request.thinking else ""
    effort = think_from_effort(request.output_config.effort if request.output_config else "")
    if kind == "disabled":
        return False
    budget = request.thinking.budget_tokens if request.thinking else 0
    if effort is None and kind == "enabled" and budget > 0:
        effort = next((word for below, word in BUDGETS if budget < below), "max")
    return True if effort is None and kind in ("enabled", "adaptive") else effort


def schema_of_format(form: anthropic.Format) -> Any:
    """Return the schema of an output format.  Raises: RequestError"""
    if form.type != "json_schema":
        raise RequestError(f"output_config.format: unknown type '{form.type}'; expected json_schema")
    if form.schema is None:
        raise RequestError("output_config.format: type json_schema requires a schema")
    return form.schema


def options_from_anthropic(request: anthropic.MessagesRequest) -> dict[str, Any]:
    fields = {
        "num_predict": request.max_tokens,
        "stop": request.stop_sequences or None,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
    }
    return {name: value for name, value in fields.items() if value is not None} | request.options


def tool_from_anthropic(offered: anthropic.AnthropicTool) -> ollama.Tool:
    described = {"description": offered.description} if offered.description else {}
    known = {"name": offered.name} | described | {"parameters": offered.input_schema}
    return ollama.Tool("function", function=ollama.ToolFunction(known))


def messages_from_anthropic(sent: Sequence[anthropic.AnthropicMessage]) -> list[ollama.Message]:
    """Convert to Ollama's messages: each tool result becomes a message, followed by one with all other blocks.

    Raises: RequestError
    """
    messages: list[ollama.Message] = []
    names: dict[str, str] = {}
    for message in sent:
        rest, results = ollama.Message(message.role), []
        for block in content_blocks(message.content):
            match block.get("type"):
                case "text":
                    rest.content += content_text([block])
                case "image":
                    rest.images.append(image_from_anthropic(block))
                case "thinking":
                    rest.thinking += str(block.get("thinking", ""))
                case "tool_use":
                    call = parse_tool_use(block)
                    names[call.id] = call.function.name
                    rest.tool_calls.append(call)
                case "tool_result":
                    results.append(parse_tool_result(block, names))
        messages += results
        if not results or rest.content or rest.images:
            messages.append(rest)
    return messages


def content_blocks(content: Any) -> list[dict[str, Any]]:
    """Return a message's content as blocks.  Raises: RequestError"""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise RequestError("content must be a string or a list of blocks")
    return content


def content_text(content: Any) -> str:
    """Return the text of all text blocks."""
    if content is None:
        return ""
    return "".join(str(block.get("text", "")) for block in content_blocks(content) if block.get("type") == "text")


def image_from_anthropic(block: dict[str, Any]) -> bytes:
    source = block.get("source")
    if not isinstance(source, dict) or source.get("type") != "base64":
        raise RequestError("image source must be of type base64")
    try:
        return binascii.a2b_base64(str(source.get("data", "")), strict_mode=True)
    except ValueError as error:
        raise RequestError(f"invalid base64 image data: {error}") from None


def parse_tool_use(block: dict[str, Any]) -> ollama.ToolCall:
    value = block.get("input") or {}
    if not isinstance(value, dict):
        raise RequestError("tool_use input must be an object")
    function = ollama.ToolCallFunction(name=str(block.get("name", "")), arguments=ollama.Arguments(value))
    return ollama.ToolCall(str(block.get("id", "")), function)


def parse_tool_result(block: dict[str, Any], names: dict[str, str]) -> ollama.Message:
    id, content = str(block.get("tool_use_id", "")), block.get("content")
    images = [image_from_anthropic(b) for b in content_blocks(content or "") if b.get("type") == "image"]
    return ollama.Message("tool", content_text(content), images=images, tool_call_id=id, tool_name=names.get(id, ""))


# --- answers ---


class MessagesAnswer:
    """An answer of /v1/messages: `push` builds the events of a stream, `whole` a single object."""

    def __init__(self, request: anthropic.MessagesRequest, n_prompt: int):
        """Set up an answer.  A stream reports `n_prompt` at its start, and the tokens actually evaluated at its end."""
        self._stops = request.stop_sequences
        self._head: dict[str, Any] = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant"}
        self._head["model"] = request.model
        self._n_prompt = n_prompt
        self._began, self._called = False, False
        self._open, self._index = "", 0  # the type of the open block or ""; the index of it or the next

    def whole(self, chunk: Chunk) -> dict[str, Any]:
        self._called = bool(chunk.tool_calls)
        thinking = [{"type": "thinking", "thinking": chunk.thinking}] if chunk.thinking else []
        text = [{"type": "text", "text": chunk.text}] if chunk.text else []
        content = [*thinking, *text, *(_tool_use_block(call) | {"input": call.arguments} for call in chunk.tool_calls)]
        return self._head | {"content": content} | self._end(chunk) | {"usage": anthropic_usage(chunk.timings)}

    def push(self, chunk: Chunk) -> Iterator[Event]:
        """Yield the events of `chunk`: blocks open and close as the answer changes between thinking, text, calls."""
        if not self._began:
            self._began = True
            usage = {"usage": {"input_tokens": self._n_prompt, "output_tokens": 0}}
            yield make_event("message_start", message=self._head | {"content": []} | UNFINISHED | usage)
        if chunk.thinking:
            yield from self._append("thinking", chunk.thinking)
        if chunk.text:
            yield from self._append("text", chunk.text)
        for call in chunk.tool_calls:
            self._called = True
            yield from self._close()
            yield self._start(_tool_use_block(call))
            yield self._delta(type="input_json_delta", partial_json=arguments_json(call))
            yield from self._close()
        if chunk.done_reason:
            yield from self._close()
            end = UNFINISHED | self._end(chunk)
            yield make_event("message_delta", delta=end, usage=anthropic_usage(chunk.timings))
            yield make_event("message_stop")

    def _append(self, kind: str, text: str) -> Iterator[Event]:
        """Append text to the open block; if that is of another kind, close it and open a new one."""
        if self._open != kind:
            yield from self._close()
            yield self._start({"type": kind, kind: ""})
        yield self._delta(type=f"{kind}_delta", **{kind: text})

    def _start(self, block: dict[str, Any]) -> Event:
        self._open = block["type"]
        return make_event("content_block_start", index=self._index, content_block=block)

    def _delta(self, **delta: str) -> Event:
        return make_event("content_block_delta", index=self._index, delta=delta)

    def _close(self) -> Iterator[Event]:
        if self._open:
            self._open, self._index = "", self._index + 1
            yield make_event("content_block_stop", index=self._index - 1)

    def _end(self, chunk: Chunk) -> dict[str, Any]:
        """Return the stop reason: end of turn, token limit, tool call or stop sequence."""
        if self._called:
            return {"stop_reason": "tool_use"}
        if chunk.met in self._stops:
            return {"stop_reason": "stop_sequence", "stop_sequence": chunk.met}
        return {"stop_reason": STOP_REASON.get(chunk.done_reason or "", "end_turn")}


def _tool_use_block(call: ParsedCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}


def anthropic_usage(timings: Timings | None) -> dict[str, int]:
    t = timings or Timings()
    return {"input_tokens": t.prompt_eval_count, "output_tokens": t.eval_count}


def make_event(kind: str, **data: Any) -> Event:
    return kind, {"type": kind, **data}
