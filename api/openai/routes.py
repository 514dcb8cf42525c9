"""The routes of OpenAI's API: chat/completions, completions, responses, embeddings, models."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Response

from ...engine.serve.answer import Answer
from ...engine.store import ModelName
from ..wire.answer import request_options
from ..wire.chat import answer_chat
from ..wire.choices import Merged, collect_choices, merge_choices, n_choices, start_choices
from ..wire.embed import embed_texts
from ..wire.errors import error_body, json_response
from ..wire.request import Context, RequestContext, body
from ..wire.sse import Event, reply_events, send_choices, send_events
from ..wire.stream import collect_chunks
from ..wire.tool_choice import apply_tool_choice
from . import map as openai_map
from .map import ChatCompletion, Completion, chat_from_completions, embed_request, generate_request, parse_prompts
from .responses import ResponsesAnswer, chat_from_responses
from .schema import ChatCompletionRequest, CompletionRequest, OpenAIEmbedRequest, ResponsesRequest

JSON_WITHOUT_CHARSET = "application/json"
router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(
    request: Annotated[ChatCompletionRequest, body(ChatCompletionRequest)], context: Context
) -> Response:
    """Answer with `n` choices, each chunk of a stream as it comes."""
    chat, n = await context.run_in_thread(chat_from_completions, request), n_choices(request.n)
    must_call = apply_tool_choice(chat, request.tool_choice)
    answer, contexts = await start_choices(
        context, n, lambda one, i: answer_chat(one, chat, must_call=must_call, choice=i)
    )
    completion, merged = ChatCompletion(request, answer, n), merge_choices(contexts)
    if request.stream:
        return await send_choices(merged, completion.push, openai_error_event)
    return json_response(completion.whole(await collect_choices(merged, n)), content_type=JSON_WITHOUT_CHARSET)


@router.post("/v1/responses")
async def responses(request: Annotated[ResponsesRequest, body(ResponsesRequest)], context: Context) -> Response:
    chat = await context.run_in_thread(chat_from_responses, request)
    must_call = apply_tool_choice(chat, request.tool_choice)
    await answer_chat(context, chat, must_call=must_call)
    response = ResponsesAnswer(request)
    if request.stream:
        return await send_events(context.pieces(), response.push, response.failure)
    return json_response(response.whole(await collect_chunks(context.pieces())), content_type=JSON_WITHOUT_CHARSET)


@router.post("/v1/completions")
async def completions(request: Annotated[CompletionRequest, body(CompletionRequest)], context: Context) -> Response:
    """Answer one or several prompts, in order, each with `n` choices side by side.

    Text is rendered by the model's template; token ids and `echo` are raw.
    """
    prompts, n = parse_prompts(request), n_choices(request.n)
    answer, contexts = await start_completion(context, request, prompts[0], n)
    assert answer.model

    async def merged() -> Merged:
        for at, prompt in enumerate(prompts):
            started = (await start_completion(context.fork(), request, prompt, n))[1] if at else contexts
            async with aclosing(merge_choices(started)) as choices:
                async for i, chunk in choices:
                    yield at * n + i, chunk

    completion = Completion(request, answer.model.tokenizer, prompts, n)
    if request.stream and not request.echo:
        return await send_choices(merged(), completion.push, openai_error_event)
    completed = completion.whole(await collect_choices(merged(), len(prompts) * n))
    if request.stream:
        return reply_events(
            completion.events(completed["choices"], {k: v for k, v in completed.items() if k in ("usage", "truncated")})
        )
    return json_response(completed, content_type=JSON_WITHOUT_CHARSET)


async def start_completion(
    context: RequestContext, request: CompletionRequest, prompt: str | Sequence[int], n: int
) -> tuple[Answer, list[RequestContext]]:
    """Start the `n` answers to `prompt`, as start_choices does."""
    options = request_options(generate_request(request))
    if request.echo:
        options = replace(options, echo=True, truncate=False)
    context.log["model"] = request.model

    def start(one: RequestContext, i: int) -> Awaitable[Answer]:
        chosen = replace(options, choice=i)
        generate = one.engine.generate
        return one.start_answer(generate, request.model, prompt, chosen, suffix=request.suffix, raw=request.echo)

    return await start_choices(context, n, start)


@router.post("/v1/embeddings")
async def embeddings(request: Annotated[OpenAIEmbedRequest, body(OpenAIEmbedRequest)], context: Context) -> Response:
    last = await embed_texts(context, embed_request(request), takes_ids=True)
    return json_response(openai_map.embeddings_object(request, last), content_type=JSON_WITHOUT_CHARSET)


@router.get("/v1/models")
async def models(context: Context) -> Response:
    entries = [model_entry(listed["name"], listed) for listed in await context.run_in_thread(context.engine.list)]
    return json_response({"object": "list", "data": entries}, content_type=JSON_WITHOUT_CHARSET)


@router.get("/v1/models/{name:path}")
async def model(name: str, context: Context) -> Response:
    if not name:
        raise HTTPException(404)  # "/v1/models/": on_http_error redirects it to "/v1/models"
    return json_response(
        model_entry(name, await context.run_in_thread(context.engine.show, name)), content_type=JSON_WITHOUT_CHARSET
    )


def model_entry(name: str, shown: dict[str, Any]) -> dict[str, Any]:
    changed = datetime.fromisoformat(shown["modified_at"])
    owner = ModelName.parse_request(name)[0].namespace
    return {"id": name, "object": "model", "created": int(changed.timestamp()), "owned_by": owner}


def openai_error_event(error: Exception) -> Event:
    return "", error_body(error, "/v1/")
