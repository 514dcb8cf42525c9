"""POST /api/chat: a model's next turn in a conversation."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Response

from ..wire.answer import (
    head,
    logprobs_field,
    statistics,
    thinking_field,
    tool_calls_field,
    without_text,
)
from ..wire.chat import answer_chat
from ..wire.errors import reply
from ..wire.request import Context, body
from ..wire.schema import ChatRequest
from ..wire.stream import Chunk, send

router = APIRouter()


@router.post("/api/chat")
async def chat(request: Annotated[ChatRequest, body(ChatRequest)], visit: Context) -> Response:
    answer = await answer_chat(visit, request)
    if answer.is_over:
        role = "assistant" if answer.done_reason else ""
        return reply(head(request) | {"message": {"role": role, "content": ""}} | without_text(answer))

    def shape(chunk: Chunk) -> dict[str, Any]:
        message = {"role": "assistant", "content": chunk.text} | thinking_field(chunk) | tool_calls_field(chunk)
        done = {"done": True, "done_reason": chunk.done_reason} if chunk.done_reason else {"done": False}
        return head(request) | {"message": message} | done | logprobs_field(answer, chunk) | statistics(visit, chunk)

    return await send(visit.pieces(), shape, request.stream)
