"""Conversion between OpenAI's completions, chats and embeddings and Ollama's.

ChatCompletionRequest -> ChatRequest            chunks -> ChatCompletion.push -> chat.completion.chunk
CompletionRequest     -> GenerateRequest        chunk  -> ChatCompletion.whole -> chat.completion
EmbedRequest          -> EmbedRequest           piece  -> embeddings_object    -> list
"""

from __future__ import annotations

import binascii
import codecs
import math
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...engine.errors import RequestError
from ...engine.go.json import kind, loads
from ...engine.parse import ParsedCall
from ...engine.run.piece import Piece, Timings
from ...engine.sampling import Logprob
from ...engine.serve.answer import Answer
from ...engine.tokenizer import Tokenizer
from ..wire import schema as ollama
from ..wire.answer import arguments_json, logprobs_field
from ..wire.effort import think_from_effort
from ..wire.sse import Event
from ..wire.stream import Chunk
from . import schema as openai

MIN_CACHED_PROMPT_TOKENS = 512  # Ollama's recorded answers, with prompts up to 307 tokens, report no cached tokens
Prompt = str | Sequence[int]

_DATA_URL = re.compile("data:(image/(jpeg|jpg|png|webp))?;base64,")


# --- requests ---


def chat_from_completions(request: openai.ChatCompletionRequest) -> ollama.ChatRequest:
    """Convert to a request to /api/chat.  Raises: RequestError"""
    if not request.messages:
        raise RequestError("[] is too short - 'messages'")
    max_tokens = request.max_completion_tokens if request.max_tokens is None else request.max_tokens
    stop = [request.stop] if isinstance(request.stop, str) else request.stop if isinstance(request.stop, list) else []
    return ollama.ChatRequest(
        model=request.model,
        stream=request.stream,
        messages=messages_from_openai(request.messages),
        tools=request.tools,
        format=response_format(request.response_format),
        think=think_from_effort(request.reasoning_effort or (request.reasoning.effort if request.reasoning else None)),
        logprobs=request.logprobs,
        top_logprobs=request.top_logprobs or 0,
        options=options_from_openai(request, max_tokens, [text for text in stop if isinstance(text, str)]),
    )


def generate_request(request: openai.CompletionRequest) -> ollama.GenerateRequest:
    """Convert to a request to /api/generate, without the prompt.  Raises: RequestError"""
    stop = [request.stop] if isinstance(request.stop, str) else request.stop if isinstance(request.stop, list) else []
    for text in stop:
        if not isinstance(text, str):
            raise RequestError(f"invalid type for 'stop' field: {go_type_name(text)}")
    penalties = {"frequency_penalty": 0.0, "presence_penalty": 0.0}
    return ollama.GenerateRequest(
        model=request.model,
        stream=request.stream,
        suffix=request.suffix,
        logprobs=request.logprobs is not None,
        top_logprobs=request.logprobs or 0,
        options=penalties | options_from_openai(request, request.max_tokens, stop),
    )


def embed_request(request: openai.OpenAIEmbedRequest) -> ollama.EmbedRequest:
    """Convert to a request to /api/embed.  Raises: RequestError"""
    if request.encoding_format.lower() not in ("", "float", "base64"):
        problem = f"Invalid value for 'encoding_format' = {request.encoding_format}."
        raise RequestError(f"{problem} Supported values: ['float', 'base64'].")
    if request.input in (None, []):
        raise RequestError("invalid input")
    texts = [""] if request.input == "" else request.input
    return ollama.EmbedRequest(request.model, texts, dimensions=request.dimensions, options=request.options)


def parse_prompts(request: openai.CompletionRequest) -> list[Prompt]:
    """Return the prompts, each a string or a list of token ids.

    Ollama accepts one string and nothing else.  Its refusal of a list with a single text is kept, except with `echo`.

    Raises: RequestError
    """
    sent = request.prompt
    if isinstance(sent, str):
        return [sent]
    if isinstance(sent, list) and sent:
        if all(type(id) is int for id in sent):
            return [sent]
        is_several = len(sent) > 1 or request.echo
        if all(_is_token_list(item) or (is_several and isinstance(item, str)) for item in sent):
            return sent
    raise RequestError(
        f"json: cannot unmarshal {kind(sent)} into Go struct field CompletionRequest.prompt of type string"
    )


def _is_token_list(item: Any) -> bool:
    return isinstance(item, list) and bool(item) and all(type(id) is int for id in item)


def options_from_openai(request: openai.OpenAIRequest, max_tokens: int | None, stop: Sequence[str]) -> dict[str, Any]:
    """Return Ollama's options: OpenAI's defaults, overridden by the request's fields, then by its `options`."""
    fields = {
        "num_predict": max_tokens,
        "min_tokens": request.min_tokens,
        "ignore_eos": request.ignore_eos,
        "seed": request.seed,
        "stop": list(stop) or None,
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "top_p": request.top_p or 1.0 if isinstance(request, openai.CompletionRequest) else request.top_p,
        "frequency_penalty": request.frequency_penalty,
        "presence_penalty": request.presence_penalty,
        "logit_bias": logit_bias(request.logit_bias),
    }
    return {"top_p": 1.0} | {name: value for name, value in fields.items() if value is not None} | request.options


def logit_bias(sent: Any) -> Any:
    """Check that all values lie in OpenAI's range; the engine's option of the same name checks their types.

    Raises: RequestError
    """
    numbers = [x for x in sent.values() if isinstance(x, int | float)] if isinstance(sent, dict) else []
    if any(not -100 <= x <= 100 for x in numbers):
        raise RequestError("logit_bias values must be between -100 and 100")
    return sent


def response_format(format: openai.ResponseFormat | None) -> Any:
    """Convert to Ollama's `format`.  Raises: RequestError"""
    if format is None:
        return None
    schema = format.json_schema.schema if format.json_schema else format.schema
    return format_from_type(format.type, schema, "response_format")


def format_from_type(kind: str, schema: Any, field: str) -> Any:
    """Return the `format` of a text, a JSON object or a JSON schema.  Raises: RequestError, naming `field`"""
    if kind == "text":
        return None
    if kind not in ("json_object", "json_schema"):
        raise RequestError(f"{field}: unknown type '{kind}'; choose from text, json_object, json_schema")
    if schema is None and kind == "json_schema":
        raise RequestError(f"{field}: type json_schema requires a schema")
    return "json" if schema is None else schema


def messages_from_openai(sent: Sequence[openai.OpenAIMessage]) -> list[ollama.Message]:
    """Convert to Ollama's messages, one for each part of a message.  Raises: RequestError"""
    messages = []
    names = {call.id: call.function.name for message in sent for call in message.tool_calls}
    for message in sent:
        parts = list(messages_of_parts(message))
        last = parts[-1]
        last.thinking = message.reasoning
        last.tool_calls = [parse_tool_call(c.id, c.function.name, c.function.arguments) for c in message.tool_calls]
        if last.role == "tool":
            last.tool_name = message.name or names.get(message.tool_call_id, "")
            last.tool_call_id = message.tool_call_id
        messages += parts
    return messages


def messages_of_parts(message: openai.OpenAIMessage) -> Iterator[ollama.Message]:
    role = ollama_role(message.role)
    if isinstance(message.content, str) or (message.content is None and message.tool_calls):
        yield ollama.Message(role, message.content or "")
    elif isinstance(message.content, list) and message.content:
        for item in message.content:
            text, images = parse_part(item)
            yield ollama.Message(role, text, images=images)
    elif message.content == []:
        yield ollama.Message(role)
    else:
        raise RequestError(f"invalid message content type: {go_type_name(message.content)}")


def parse_part(item: Any) -> tuple[str, list[bytes]]:
    """Return the text and the images of a part of a message, of chat/completions or of responses."""
    kind = item.get("type") if isinstance(item, dict) else None
    if kind in ("text", "input_text", "output_text") and isinstance(item.get("text"), str):
        return item["text"], []
    if kind == "refusal" and isinstance(item.get("refusal"), str):
        return item["refusal"], []
    if kind in ("image_url", "input_image"):
        url = item.get("image_url")
        url = url.get("url") if isinstance(url, dict) else url
        if isinstance(url, str):
            return "", [image_from_openai(url)]
    raise RequestError("invalid message format")


def ollama_role(role: str) -> str:
    """Return Ollama's name for a role: OpenAI's newer role `developer` is `system`."""
    return "system" if role == "developer" else role


def image_from_openai(url: str) -> bytes:
    """Decode the image in a data URL."""
    if url.startswith(("http://", "https://")):
        raise RequestError("image URLs are not currently supported, please use base64 encoded data instead")
    if head := _DATA_URL.match(url):
        try:
            return binascii.a2b_base64(url[head.end() :], strict_mode=True)
        except ValueError:
            pass
    raise RequestError("invalid image input")


def parse_tool_call(id: str, name: str, arguments: str) -> ollama.ToolCall:
    """Convert a call from the conversation, whose arguments are JSON in a string."""
    try:
        value = loads(arguments.encode())
    except Exception:
        value = None
    if not isinstance(value, dict):
        raise RequestError("invalid tool call arguments")
    return ollama.ToolCall(id, ollama.ToolCallFunction(name=name, arguments=ollama.Arguments(value)))


def go_type_name(value: Any) -> str:
    """Return the name of the Go type that a JSON value decodes to."""
    names = {type(None): "<nil>", bool: "bool", int: "float64", float: "float64", str: "string"}
    return names.get(type(value), "[]interface {}" if isinstance(value, list) else "map[string]interface {}")


# --- answers ---


def openai_usage(*timings: Timings | None) -> dict[str, Any]:
    """Return `usage`, and the extension `truncated` if prompts were truncated.

    Cached tokens are reported for prompts of at least MIN_CACHED_PROMPT_TOKENS, half of OpenAI's own limit.  Ollama
    never reports them.
    """
    known = [t for t in timings if t]
    n_prompt, n_sampled = sum(t.prompt_eval_count for t in known), sum(t.eval_count for t in known)
    usage: dict[str, Any] = {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_sampled,
        "total_tokens": n_prompt + n_sampled,
    }
    if n_prompt >= MIN_CACHED_PROMPT_TOKENS:
        usage |= {"prompt_tokens_details": {"cached_tokens": sum(t.prompt_eval_cached_count for t in known)}}
    truncated = [t for t in known if t.n_whole]
    whole, kept = sum(t.n_whole for t in truncated), sum(t.prompt_eval_count for t in truncated)
    return {"usage": usage} | ({"truncated": {"prompt_tokens": whole, "kept": kept}} if truncated else {})


def embeddings_object(request: openai.OpenAIEmbedRequest, last: Piece) -> dict[str, Any]:
    """Return the vectors of `last`, each as numbers or as the base64 of little-endian float32."""
    is_base64 = request.encoding_format.lower() == "base64"
    data = [
        {"object": "embedding", "embedding": base64_vector(vector) if is_base64 else vector, "index": i}
        for i, vector in enumerate(last.embeddings)
    ]
    n = last.timings.prompt_eval_count if last.timings else 0
    usage = {"prompt_tokens": n, "total_tokens": n}
    return {"object": "list", "data": data, "model": request.model, "usage": usage}


def base64_vector(vector: np.ndarray) -> str:
    return binascii.b2a_base64(vector.astype("<f4").tobytes(), newline=False).decode()


def openai_tool_calls(calls: Sequence[ParsedCall]) -> list[dict[str, Any]]:
    functions = [{"name": call.name, "arguments": arguments_json(call)} for call in calls]
    heads = [{"id": call.id, "index": call.index, "type": "function"} for call in calls]
    return [head | {"function": function} for head, function in zip(heads, functions, strict=True)]


def joint_timings(timings: Sequence[Timings | None]) -> Timings | None:
    """Return the counts of several answers to one prompt, which counts once."""
    known = [t for t in timings if t]
    return replace(known[0], eval_count=sum(t.eval_count for t in known)) if known else None


class ChatCompletion:
    """The answers of /v1/chat/completions: `push` builds the events of a stream, `whole` a single object."""

    def __init__(self, request: openai.ChatCompletionRequest, answer: Answer, n: int = 1):
        self._answer, self._model = answer, request.model
        self._include_usage = request.stream_options.include_usage
        self._lists_top = request.stream or request.top_logprobs is not None  # Ollama omits an empty list
        self._id, self._created = f"chatcmpl-{random.randrange(999)}", int(time.time())
        self._choices = [_Streamed() for _ in range(n)]

    def whole(self, chunks: Sequence[Chunk]) -> dict[str, Any]:
        """Return the whole answers as one object."""
        choices = []
        for i, chunk in enumerate(chunks):
            message = {"role": "assistant", "content": chunk.text} | _reasoning_field(chunk) | _tool_calls_field(chunk)
            finish = _finish(chunk, bool(chunk.tool_calls))
            choices.append({"index": i, "message": message, "finish_reason": finish} | self._logprobs(chunk))
        timings = joint_timings([chunk.timings for chunk in chunks])
        return self._object("chat.completion", choices) | openai_usage(timings)

    def push(self, chunk: Chunk, i: int = 0) -> Iterator[Event]:
        """Yield the events of `chunk` of choice `i`; after the last one also the usage, if requested, and "[DONE]"."""
        choice = self._choices[i]
        choice.called = choice.called or bool(chunk.tool_calls)
        if chunk.thinking:
            yield self._chunk(i, {"content": ""} | _reasoning_field(chunk))
        if chunk.text or chunk.tool_calls:
            yield self._chunk(i, {"content": chunk.text} | _tool_calls_field(chunk), self._logprobs(chunk))
        if chunk.done_reason:
            if choice.role:
                yield self._chunk(i, {"content": ""})
            yield self._chunk(i, {}, self._logprobs(chunk), _finish(chunk, choice.called))
            choice.last = chunk
            if all(one.last for one in self._choices):
                yield from self._end()

    def _end(self) -> Iterator[Event]:
        if self._include_usage:
            timings = joint_timings([one.last.timings for one in self._choices if one.last])
            yield "", self._object("chat.completion.chunk", []) | openai_usage(timings)
        yield "", "[DONE]"

    def _chunk(
        self, i: int, delta: dict[str, Any], more: dict[str, Any] | None = None, finish: str | None = None
    ) -> Event:
        choice = {"index": i, "delta": self._choices[i].role | delta, "finish_reason": finish} | (more or {})
        self._choices[i].role = {}
        return "", self._object("chat.completion.chunk", [choice])

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": self._id, "object": kind, "created": self._created, "model": self._model}
        return head | {"system_fingerprint": "fp_ollama", "choices": choices}

    def _logprobs(self, chunk: Chunk) -> dict[str, Any]:
        entries = logprobs_field(self._answer, chunk).get("logprobs", [])
        if self._lists_top:
            entries = [{**entry, "top_logprobs": entry.get("top_logprobs", [])} for entry in entries]
        return {"logprobs": {"content": entries}} if entries else {}


@dataclass
class _Streamed:
    """The state of one choice in a stream: `role` is empty after the first chunk, `last` is the last chunk."""

    role: dict[str, Any] = field(default_factory=lambda: {"role": "assistant"})
    called: bool = False
    last: Chunk | None = None


def _finish(chunk: Chunk, called: bool) -> str | None:
    return "tool_calls" if called and chunk.done_reason == "stop" else chunk.done_reason


def _reasoning_field(chunk: Chunk) -> dict[str, Any]:
    return {"reasoning": chunk.thinking} if chunk.thinking else {}


def _tool_calls_field(chunk: Chunk) -> dict[str, Any]:
    return {"tool_calls": openai_tool_calls(chunk.tool_calls)} if chunk.tool_calls else {}


class Completion:
    """The answers of /v1/completions: `push` builds the events of a stream, `whole` a single object.

    Each prompt has `n` choices; choice i answers prompt i // n.
    """

    def __init__(
        self, request: openai.CompletionRequest, tokenizer: Tokenizer, prompts: Sequence[Prompt] = ("",), n: int = 1
    ):
        self._request, self._tokenizer, self._prompts, self._n = request, tokenizer, prompts, n
        self._head = {"id": f"cmpl-{random.randrange(999)}", "object": "text_completion", "created": int(time.time())}
        self._tail = {"model": request.model, "system_fingerprint": "fp_ollama"}
        self._n_sent = [0 for _ in range(len(prompts) * n)]  # characters sent so far, by choice
        self._timings: list[Timings | None] = [None for _ in self._n_sent]

    def whole(self, chunks: Sequence[Chunk]) -> dict[str, Any]:
        """Return the whole answers as one object."""
        choices = [self._choice(chunk, i, self._prompts[i // self._n]) for i, chunk in enumerate(chunks)]
        self._timings = [chunk.timings for chunk in chunks]
        return self._head | self._tail | {"choices": choices} | self._usage()

    def push(self, chunk: Chunk, i: int = 0) -> Iterator[Event]:
        """Yield the events of `chunk` of choice `i`; after the last one also the usage, if requested, and "[DONE]"."""
        self._timings[i] = chunk.timings
        yield from self.events([self._choice(chunk, i)], self._usage() if all(self._timings) else None)
        self._n_sent[i] += len(chunk.text)

    def _usage(self) -> dict[str, Any]:
        """Return the usage; a prompt with several choices counts once."""
        groups = [self._timings[at : at + self._n] for at in range(0, len(self._timings), self._n)]
        return openai_usage(*map(joint_timings, groups))

    def events(self, choices: list[dict[str, Any]], total: dict[str, Any] | None) -> Iterator[Event]:
        """Yield `choices` as an event; if `total` is given, the usage, if requested, and "[DONE]" follow."""
        include_usage = self._request.stream_options.include_usage
        so_far = openai_usage() if include_usage else {}
        yield "", self._head | {"choices": choices} | self._tail | so_far
        if total and include_usage:
            yield "", self._head | {"choices": []} | self._tail | total
        if total:
            yield "", "[DONE]"

    def _choice(self, chunk: Chunk, index: int, prompt: Prompt = ()) -> dict[str, Any]:
        """Build a choice.  An echo of a text `prompt` starts with that text, without BOS or the space that SPM adds."""
        front = max(chunk.text.find(prompt), 0) if self._request.echo and isinstance(prompt, str) else 0
        choice = {"text": chunk.text[front:], "index": index, "finish_reason": chunk.done_reason}
        if self._request.logprobs is None:
            return choice
        return choice | {"logprobs": classic_logprobs(self._tokenizer, chunk.logprobs, self._n_sent[index] - front)}


def classic_logprobs(tokenizer: Tokenizer, known: Sequence[Logprob], at: int = 0) -> dict[str, list[Any]]:
    """Return lists with an entry per token: its text, log-probability, most likely alternatives, offset in the text.

    at   offset of the first token in the text; negative if an echo starts with tokens that are not in it, such as BOS

    The first token of a prompt has no probability; it is omitted if it lies before the text.  A token that is part of a
    character is written as "bytes:\\xe2".  The last entry may be the end-of-generation token.
    """
    entries = []
    utf8 = codecs.getincrementaldecoder("utf-8")("replace")
    for one in known:
        text, first = token_text(tokenizer.piece(one.id)), math.isnan(one.logprob)
        offset, at = at, at + len(utf8.decode(tokenizer.piece(one.id)))
        top = {token_text(tokenizer.piece(id)): value for id, value in one.top} | {text: one.logprob}
        if not (first and offset < 0 and at <= 0):
            entries.append((text, None if first else one.logprob, None if first else top, max(offset, 0)))
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return {name: [entry[i] for entry in entries] for i, name in enumerate(names)}


def token_text(piece: bytes) -> str:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
