"""The routes of Anthropic's API: messages, and the count of their tokens."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Response

from ..wire.chat import answer_chat
from ..wire.errors import error_body, json_response
from ..wire.request import Context, RequestContext, body
from ..wire.schema import ChatRequest
from ..wire.sse import Event, send_events
from ..wire.stream import collect_chunks
from ..wire.tool_choice import apply_tool_choice
from .map import MessagesAnswer, chat_from_messages
from .schema import MessagesRequest

router = APIRouter()


@router.post("/v1/messages")
async def messages(request: Annotated[MessagesRequest, body(MessagesRequest)], context: Context) -> Response:
    chat = await chat_for(request, context)
    must_call = apply_tool_choice(chat, request.tool_choice)
    answer = await answer_chat(context, chat, must_call=must_call)
    message = MessagesAnswer(request, answer.n_prompt)
    if request.stream:
        return await send_events(context.pieces(), message.push, anthropic_error_event)
    return json_response(message.whole(await collect_chunks(context.pieces())), content_type="application/json")


@router.post("/v1/messages/count_tokens")
async def count_tokens(request: Annotated[MessagesRequest, body(MessagesRequest)], context: Context) -> Response:
    """Count the tokens of the prompt that the same body would make.  Loads the model."""
    request.max_tokens = max(request.max_tokens, 1)  # not part of this body
    chat = await chat_for(request, context)
    apply_tool_choice(chat, request.tool_choice)
    chat.truncate = False
    answer = await answer_chat(context, chat, count_only=True)
    return json_response({"input_tokens": answer.n_prompt}, content_type="application/json")


async def chat_for(request: MessagesRequest, context: RequestContext) -> ChatRequest:
    """Convert to a request to /api/chat.  Raises: RequestError

    Thinking is ignored for a model that cannot think; one that can do without thinks only when asked.
    """
    chat = await context.run_in_thread(chat_from_messages, request)
    if chat.think and "thinking" not in await context.run_in_thread(context.engine.capabilities, request.model):
        chat.think = None
    elif chat.think is None and await context.run_in_thread(context.engine.thinks_by_choice, request.model):
        chat.think = False  # type: ignore[assignment]
    return chat


def anthropic_error_event(error: Exception) -> Event:
    return "error", error_body(error, "/v1/messages")
