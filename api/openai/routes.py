"""OpenAI's routes: chat/completions, completions, responses, embeddings, models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Response

from ...engine.serve.answer import Answer
from ...engine.store import ModelName
from ..wire.answer import request_options
from ..wire.chat import answer_chat
from ..wire.embed import vectors
from ..wire.errors import body_of, reply
from ..wire.request import Context, RequestContext, body
from ..wire.sse import Event, reply_events, send_events
from ..wire.stream import whole
from ..wire.tool_choice import as_call, choose
from . import map as openai_map
from .map import ChatCompletion, Completion, chat_from_completions, embed_request, generate_request, prompts
from .responses import ResponsesAnswer
from .responses import chat_from_responses as chat_of_responses
from .schema import ChatCompletionRequest, CompletionRequest, OpenAIEmbedRequest, ResponsesRequest

JSON = "application/json"
router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(
    request: Annotated[ChatCompletionRequest, body(ChatCompletionRequest)], visit: Context
) -> Response:
    chat = chat_from_completions(request)
    must_call = choose(chat, request.tool_choice)
    completion = ChatCompletion(request, await answer_chat(visit, chat))
    pieces = as_call(visit.pieces()) if must_call else visit.pieces()
    if request.stream:
        return await send_events(pieces, completion.push, openai_error_event)
    return reply(completion.whole(await whole(pieces)), content_type=JSON)


@router.post("/v1/responses")
async def responses(request: Annotated[ResponsesRequest, body(ResponsesRequest)], visit: Context) -> Response:
    chat = chat_of_responses(request)
    must_call = choose(chat, request.tool_choice)
    await answer_chat(visit, chat)
    pieces = as_call(visit.pieces()) if must_call else visit.pieces()
    response = ResponsesAnswer(request)
    if request.stream:
        return await send_events(pieces, response.push, response.failure)
    return reply(response.whole(await whole(pieces)), content_type=JSON)


@router.post("/v1/completions")
async def completions(request: Annotated[CompletionRequest, body(CompletionRequest)], visit: Context) -> Response:
    """Text is what the model's template makes of the prompt; an echo, and tokens, are what the model sees."""
    asked = prompts(request)
    answer = await ask_generate(visit, request, asked[0])
    assert answer.model
    completion = Completion(request, answer.model.tokenizer)
    if request.stream and not request.echo and len(asked) == 1:
        return await send_events(visit.pieces(), completion.push, openai_error_event)
    said = [await whole(visit.pieces())]
    for prompt in asked[1:]:
        visit = visit.again()
        await ask_generate(visit, request, prompt)
        said.append(await whole(visit.pieces()))
    answered = completion.whole(asked, said)
    if request.stream:
        return reply_events(
            completion.events(answered["choices"], {k: v for k, v in answered.items() if k in ("usage", "truncated")})
        )
    return reply(answered, content_type=JSON)


async def ask_generate(visit: RequestContext, request: CompletionRequest, prompt: str | Sequence[int]) -> Answer:
    how = request_options(generate_request(request))
    if request.echo:
        how = replace(how, echo=True, truncate=False)
    visit.log["model"] = request.model
    return await visit.ask(visit.engine.generate, request.model, prompt, how, suffix=request.suffix, raw=request.echo)


@router.post("/v1/embeddings")
async def embeddings(request: Annotated[OpenAIEmbedRequest, body(OpenAIEmbedRequest)], visit: Context) -> Response:
    last = await vectors(visit, embed_request(request))
    return reply(openai_map.embeddings(request, last), content_type=JSON)


@router.get("/v1/models")
async def models(visit: Context) -> Response:
    entries = [entry(listed["name"], listed) for listed in await visit.run(visit.engine.list)]
    return reply({"object": "list", "data": entries}, content_type=JSON)


@router.get("/v1/models/{name:path}")
async def model(name: str, visit: Context) -> Response:
    if not name:
        raise HTTPException(404)  # a path with a slash too many
    return reply(entry(name, await visit.run(visit.engine.show, name)), content_type=JSON)


def entry(name: str, shown: dict[str, Any]) -> dict[str, Any]:
    changed = datetime.fromisoformat(shown["modified_at"])
    owner = ModelName.parse_request(name)[0].namespace
    return {"id": name, "object": "model", "created": int(changed.timestamp()), "owned_by": owner}


def openai_error_event(error: Exception) -> Event:
    return "", body_of(error, "/v1/")
