"""Conversion between OpenAI's /v1/responses and Ollama's /api/chat.  Stateless: the input is the whole conversation.

message, reasoning, call and result items -> messages        chunks -> events that add items to the output
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ...engine.errors import RequestError
from ...engine.parse import ParsedCall
from ...engine.run.piece import Timings
from ..wire import schema as ollama
from ..wire.answer import arguments_json
from ..wire.effort import think_from_effort
from ..wire.errors import error_body
from ..wire.sse import Event
from ..wire.stream import Chunk
from . import schema as openai
from .map import (
    MIN_CACHED_PROMPT_TOKENS,
    format_from_type,
    ollama_role,
    parse_part,
    parse_tool_call,
)

# --- requests ---


def chat_from_responses(request: openai.ResponsesRequest) -> ollama.ChatRequest:
    """Convert to a request to /api/chat.  Raises: RequestError"""
    if request.previous_response_id:
        raise RequestError("previous_response_id is not supported; send the whole conversation as input")
    first = [ollama.Message("system", request.instructions)] if request.instructions else []
    fields = {"num_predict": request.max_output_tokens, "temperature": request.temperature, "top_p": request.top_p}
    given = {name: value for name, value in fields.items() if value is not None}
    form = request.text.format if request.text else None
    return ollama.ChatRequest(
        model=request.model,
        stream=request.stream,
        messages=[*first, *messages_from_responses(request.input)],
        tools=ollama.Tools(tool_from_responses(t) for t in request.tools if t.type == "function"),
        format=form and format_from_type(form.type, form.schema, "text.format"),
        think=think_from_effort(request.reasoning.effort if request.reasoning else None),
        options={"temperature": 1.0, "top_p": 1.0} | given | request.options,
    )


def tool_from_responses(offered: openai.FunctionTool) -> ollama.Tool:
    known = {"name": offered.name, "description": offered.description, "parameters": offered.parameters}
    given = ollama.ToolFunction((key, value) for key, value in known.items() if value is not None)
    return ollama.Tool("function", function=given)


def messages_from_responses(input: Any) -> list[ollama.Message]:
    """Convert the input to messages.  Consecutive reasoning, text and calls of the assistant form one message.

    Raises: RequestError
    """
    if input is None or isinstance(input, str):
        return [ollama.Message("user", input)] if input else []
    if not isinstance(input, list):
        raise RequestError("input must be a string or a list of items")
    messages: list[ollama.Message] = []
    names: dict[str, str] = {}
    for item in input:
        if not isinstance(item, dict):
            raise RequestError("input items must be objects")
        match item.get("type", "message"):
            case "message":
                text, images = parse_content(item.get("content"))
                role = ollama_role(str(item.get("role", "")).lower())
                message = _assistant(messages, fresh=True) if role == "assistant" else _add(messages, role)
                message.content, message.images = text, images
            case "reasoning":
                _assistant(messages, fresh=True).thinking = _join_texts(item.get("content")) or _join_texts(
                    item.get("summary")
                )
            case "function_call":
                call = parse_tool_call(*(str(item.get(key, "")) for key in ("call_id", "name", "arguments")))
                names[call.id] = call.function.name
                _assistant(messages, fresh=False).tool_calls.append(call)
            case "function_call_output":
                message = _add(messages, "tool")
                message.content, message.images = parse_content(item.get("output"))
                message.tool_call_id = str(item.get("call_id", ""))
                message.tool_name = names.get(message.tool_call_id, "")
            case kind:
                raise RequestError(f"unknown input item type: {kind}")
    return messages


def _add(messages: list[ollama.Message], role: str) -> ollama.Message:
    messages.append(ollama.Message(role))
    return messages[-1]


def _assistant(messages: list[ollama.Message], *, fresh: bool) -> ollama.Message:
    """Return the assistant message to extend: the last message, or a new one.

    fresh   extend it only if it has nothing but thinking
    """
    last = messages[-1] if messages else None
    reusable = last and last.role == "assistant" and not (fresh and (last.content or last.tool_calls))
    return last if reusable and last else _add(messages, "assistant")


def parse_content(value: Any) -> tuple[str, list[bytes]]:
    """Return the text and the images of a message's content: a string or a list of parts."""
    if isinstance(value, str):
        return value, []
    if not isinstance(value, list):
        raise RequestError("content must be a string or a list of parts")
    parts = [parse_part(item) for item in value]
    return "".join(text for text, _ in parts), [image for _, images in parts for image in images]


def _join_texts(parts: Any) -> str:
    return "".join(str(item.get("text", "")) for item in parts or [] if isinstance(item, dict))


# --- answers ---


class ResponsesAnswer:
    """An answer of /v1/responses: `push` builds the events of a stream, `whole` a single object.

    A stream that max_output_tokens cuts ends as incomplete.  A whole answer says completed then, as Ollama's does.
    The output is a list of items: reasoning, text, calls.  In a stream, at most one item is open: reasoning or text.
    """

    def __init__(self, request: openai.ResponsesRequest):
        self._request, self._n, self._created = request, random.randrange(10**6), int(time.time())
        self._output: list[dict[str, Any]] = []
        self._open, self._text = "", ""  # the type of the open item, and its text so far
        self._n_events = 0

    def whole(self, chunk: Chunk) -> dict[str, Any]:
        reasoning = [self._item("reasoning", chunk.thinking)] if chunk.thinking else []
        text = [self._item("message", chunk.text)] if chunk.text or not chunk.tool_calls else []
        return self._response([*reasoning, *text, *map(self._call_item, chunk.tool_calls)], chunk.timings)

    def push(self, chunk: Chunk) -> Iterator[Event]:
        """Yield the events of `chunk`: items open and close as the answer changes between reasoning, text, calls."""
        if not self._n_events:
            yield self._event("response.created", response=self._response([]))
            yield self._event("response.in_progress", response=self._response([]))
        if chunk.thinking:
            yield from self._append("reasoning", chunk.thinking)
        if chunk.text or (chunk.done_reason and not self._open and not self._output):
            yield from self._append("message", chunk.text)
        for call in chunk.tool_calls:
            yield from self._close()
            yield from self._call_events(self._call_item(call))
        if chunk.done_reason:
            is_cut = chunk.done_reason == "length"
            yield from self._close(is_cut)
            response = self._response(self._output, chunk.timings or Timings(), is_cut)
            yield self._event(f"response.{response['status']}", response=response)

    def failure(self, error: Exception) -> Event:
        sent = error_body(error, "/v1/")["error"]
        return self._event("error", code=sent["type"], message=sent["message"], param=None)

    # --- the parts of a stream ---

    def _append(self, kind: str, text: str) -> Iterator[Event]:
        """Append text to the open item; if that is of another kind, close it and open a new one."""
        if self._open != kind:
            yield from self._close()
            self._open = kind
            yield self._added(self._item(kind, None))
            if kind == "message":
                yield self._event("response.content_part.added", **self._place(kind), part=output_text(""))
        self._text += text
        if text:
            yield self._event(f"{EVENT_PREFIX[kind]}.delta", **self._place(kind), **EXTRA_FIELDS[kind], delta=text)

    def _close(self, is_cut: bool = False) -> Iterator[Event]:
        if not self._open:
            return
        kind, text, self._open, self._text = self._open, self._text, "", ""
        yield self._event(f"{EVENT_PREFIX[kind]}.done", **self._place(kind), **EXTRA_FIELDS[kind], text=text)
        if kind == "message":
            yield self._event("response.content_part.done", **self._place(kind), part=output_text(text))
        item = self._item(kind, text)
        yield self._done(item | {"status": "incomplete"} if is_cut and "status" in item else item)

    def _call_events(self, item: dict[str, Any]) -> Iterator[Event]:
        place, text = {"item_id": item["id"], "output_index": len(self._output)}, item["arguments"]
        yield self._added(item | {"status": "in_progress", "arguments": ""})
        yield self._event("response.function_call_arguments.delta", **place, delta=text)
        yield self._event("response.function_call_arguments.done", **place, name=item["name"], arguments=text)
        yield self._done(item)

    def _added(self, item: dict[str, Any]) -> Event:
        return self._event("response.output_item.added", output_index=len(self._output), item=item)

    def _done(self, item: dict[str, Any]) -> Event:
        self._output.append(item)
        return self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)

    def _place(self, kind: str) -> dict[str, Any]:
        index = "content_index" if kind == "message" else "summary_index"
        return {"item_id": self._id(kind), "output_index": len(self._output), index: 0}

    def _event(self, kind: str, **data: Any) -> Event:
        self._n_events += 1
        return kind, {"type": kind, "sequence_number": self._n_events - 1, **data}

    # --- objects ---

    def _id(self, kind: str) -> str:
        return f"{'msg' if kind == 'message' else 'rs'}_{self._n}"

    def _item(self, kind: str, text: str | None) -> dict[str, Any]:
        """Build an item of text or reasoning; in progress if `text` is None."""
        head = {"id": self._id(kind), "type": kind}
        if kind == "reasoning":
            return head | {"summary": [] if text is None else [{"type": "summary_text", "text": text}]}
        status = "in_progress" if text is None else "completed"
        return head | {"status": status, "role": "assistant", "content": [] if text is None else [output_text(text)]}

    def _call_item(self, call: ParsedCall) -> dict[str, Any]:
        head = {"id": f"fc_{self._n}_{call.index}", "type": "function_call", "status": "completed"}
        return head | {"call_id": call.id, "name": call.name, "arguments": arguments_json(call)}

    def _response(
        self, output: list[dict[str, Any]], timings: Timings | None = None, is_cut: bool = False
    ) -> dict[str, Any]:
        """Build the response object; without `timings` it is in progress, if `is_cut` it is incomplete."""
        r, t = self._request, timings
        completed = t is not None and not is_cut
        status = "incomplete" if is_cut else "completed" if completed else "in_progress"
        return {
            "id": f"resp_{self._n}",
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if completed else None,
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "model": r.model,
            "previous_response_id": None,
            "instructions": r.instructions or None,
            "output": list(output),
            "error": None,
            "tools": [_tool(offered) for offered in r.tools],
            "tool_choice": "auto" if r.tool_choice is None else r.tool_choice,
            "truncation": r.truncation or "disabled",
            "parallel_tool_calls": True,
            "text": {"format": _format(r)},
            "top_p": 1.0 if r.top_p is None else r.top_p,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "top_logprobs": 0,
            "temperature": 1.0 if r.temperature is None else r.temperature,
            "reasoning": r.reasoning and {"effort": r.reasoning.effort or None, "summary": r.reasoning.summary or None},
            "usage": responses_usage(t) if t else None,
            "max_output_tokens": r.max_output_tokens,
            "max_tool_calls": None,
            "store": False,
            "background": False,
            "service_tier": "default",
            "metadata": {},
            "safety_identifier": None,
            "prompt_cache_key": None,
        }


EVENT_PREFIX = {"message": "response.output_text", "reasoning": "response.reasoning_summary_text"}
EXTRA_FIELDS: Mapping[str, dict[str, Any]] = {"message": {"logprobs": []}, "reasoning": {}}


def output_text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def responses_usage(t: Timings) -> dict[str, Any]:
    return {
        "input_tokens": t.prompt_eval_count,
        "output_tokens": t.eval_count,
        "total_tokens": t.prompt_eval_count + t.eval_count,
        "input_tokens_details": {
            "cached_tokens": t.prompt_eval_cached_count if t.prompt_eval_count >= MIN_CACHED_PROMPT_TOKENS else 0
        },
        "output_tokens_details": {"reasoning_tokens": 0},
    }


def _tool(offered: openai.FunctionTool) -> dict[str, Any]:
    head = {"type": offered.type, "name": offered.name, "description": offered.description}
    return head | {"strict": offered.strict, "parameters": offered.parameters}


def _format(request: openai.ResponsesRequest) -> dict[str, Any]:
    format = request.text.format if request.text else None
    if format is None or format.type != "json_schema":
        return {"type": format.type if format and format.type else "text"}
    return {"type": format.type, "name": format.name, "schema": format.schema, "strict": format.strict}
