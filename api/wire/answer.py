"""Fields common to the answers of generate and chat: options in; timings, counts and log-probabilities out."""

from __future__ import annotations

from time import time_ns
from typing import Any

from ...engine.errors import RequestError
from ...engine.go.json import dumps
from ...engine.go.times import rfc3339
from ...engine.options import RequestOptions
from ...engine.parse import ParsedCall
from ...engine.serve.answer import Answer
from ...engine.tokenizer.detokenize import is_cut, whole_text
from .request import RequestContext
from .schema import AnswerRequest
from .stream import Chunk


def request_options(request: AnswerRequest) -> RequestOptions:
    """Convert a request's fields to the engine's options.  Raises: RequestError"""
    if not 0 <= request.top_logprobs <= 20:
        raise RequestError("top_logprobs must be between 0 and 20")
    return RequestOptions(
        options=request.options,
        keep_alive=request.keep_alive,
        think=request.think,  # a bool, too
        format=request.format,
        truncate=request.truncate,
        shift=request.shift,
        n_logprobs=request.top_logprobs if request.logprobs else None,
        render_only=request.debug_render_only,
        look=request.look,
    )


def head_fields(request: AnswerRequest) -> dict[str, Any]:
    """Return the first fields of every object: the model's name as the client sent it, and the current time."""
    return {"model": request.model, "created_at": rfc3339(time_ns())}


def empty_answer_fields(answer: Answer) -> dict[str, Any]:
    """Return the last fields of an answer without text: a model loaded or unloaded, or a prompt only rendered."""
    if answer.done_reason:
        return {"done": True, "done_reason": answer.done_reason}
    images = {"image_count": answer.n_images} if answer.n_images else {}
    return {"done": False, "_debug_info": {"rendered_template": answer.prompt} | images}


def thinking_field(chunk: Chunk) -> dict[str, str]:
    """Return `thinking`, or nothing if the chunk has no thinking."""
    return {"thinking": chunk.thinking} if chunk.thinking else {}


def tool_calls_field(chunk: Chunk) -> dict[str, Any]:
    """Return `tool_calls`, or nothing if the chunk has no calls."""
    calls = [
        {"id": call.id, "function": {"index": call.index, "name": call.name, "arguments": call.arguments}}
        for call in chunk.tool_calls
    ]
    return {"tool_calls": calls} if calls else {}


def arguments_json(call: ParsedCall) -> str:
    """Write the arguments of a tool call as JSON, the form in which OpenAI and Anthropic send them."""
    return dumps(call.arguments).decode()


def statistics_fields(context: RequestContext, chunk: Chunk) -> dict[str, Any]:
    """Return the durations and counts of the last object.  Zeros are omitted, as in Ollama.

    `prompt_eval_cached_count`, `truncated` and the counts of guesses are extensions; Ollama truncates prompts silently.
    """
    if not (t := chunk.timings):
        return {}
    truncated = {"truncated": {"prompt_tokens": t.n_whole, "kept": t.prompt_eval_count}} if t.n_whole else {}
    fields: dict[str, Any] = {name: n for name, n in context.timing_fields(t).items() if n}
    if t.tells_drafts:
        fields |= {"draft_tokens": t.draft_tokens, "draft_accepted_tokens": t.draft_accepted_tokens}
    return fields | {"prompt_eval_cached_count": t.prompt_eval_cached_count} | truncated


def logprobs_field(answer: Answer, chunk: Chunk) -> dict[str, Any]:
    """Return `logprobs`, one entry per token without the end-of-generation token, if the client requested them.

    Tokens that end within a character have none of their own, as in llama.cpp: their bytes are part of the text of the
    token that completes it.
    """
    assert answer.model
    tokenizer, entries, held = answer.model.tokenizer, [], b""
    for known in chunk.logprobs:
        if known.id not in tokenizer.eog:
            held += tokenizer.piece(known.id, special=False)
            if not is_cut(held):
                top = [_token(whole_text(tokenizer.piece(id, special=False)), value) for id, value in known.top]
                entries.append(_token(whole_text(held), known.logprob) | ({"top_logprobs": top} if top else {}))
                held = b""
    return {"logprobs": entries} if entries else {}


def _token(text: str, logprob: float) -> dict[str, Any]:
    shown: dict[str, Any] = {"token": text}
    shown["logprob"] = int(logprob) if logprob.is_integer() else logprob  # Go writes 0, not 0.0
    return shown | ({"bytes": list(text.encode())} if text else {})
