"""Anthropic's route: messages."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Response

from ..wire.chat import answer_chat
from ..wire.errors import body_of, reply
from ..wire.request import Context, body
from ..wire.sse import Event, send_events
from ..wire.stream import whole
from ..wire.tool_choice import as_call, choose
from .map import MessagesAnswer, chat_from_messages
from .schema import MessagesRequest

router = APIRouter()


@router.post("/v1/messages")
async def messages(request: Annotated[MessagesRequest, body(MessagesRequest)], visit: Context) -> Response:
    chat = chat_from_messages(request)
    if chat.think and "thinking" not in await visit.run(visit.engine.capabilities, request.model):
        chat.think = None
    must_call = choose(chat, request.tool_choice)
    answer = await answer_chat(visit, chat)
    pieces = as_call(visit.pieces()) if must_call else visit.pieces()
    message = MessagesAnswer(request, answer.n_prompt)
    if request.stream:
        return await send_events(pieces, message.push, anthropic_error_event)
    return reply(message.whole(await whole(pieces)), content_type="application/json")


def anthropic_error_event(error: Exception) -> Event:
    return "error", body_of(error, "/v1/messages")
