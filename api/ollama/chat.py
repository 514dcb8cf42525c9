"""POST /api/chat: the assistant's next message in a conversation."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Response

from ..wire.answer import (
    empty_answer_fields,
    head_fields,
    logprobs_field,
    statistics_fields,
    thinking_field,
    tool_calls_field,
)
from ..wire.chat import answer_chat
from ..wire.errors import json_response
from ..wire.look import look_field
from ..wire.request import Context, body
from ..wire.schema import ChatRequest
from ..wire.stream import Chunk, send_answer

router = APIRouter()


@router.post("/api/chat")
async def chat(request: Annotated[ChatRequest, body(ChatRequest)], context: Context) -> Response:
    answer = await answer_chat(context, request)
    if answer.is_over:
        role = "assistant" if answer.done_reason else ""
        return json_response(
            head_fields(request) | {"message": {"role": role, "content": ""}} | empty_answer_fields(answer)
        )

    def shape(chunk: Chunk) -> dict[str, Any]:
        message = {"role": "assistant", "content": chunk.text} | thinking_field(chunk) | tool_calls_field(chunk)
        done = {"done": True, "done_reason": chunk.done_reason} if chunk.done_reason else {"done": False}
        assert answer.model
        return (
            head_fields(request)
            | {"message": message}
            | done
            | logprobs_field(answer, chunk)
            | statistics_fields(context, chunk)
            | look_field(request, answer.model.tokenizer, chunk)
        )

    return await send_answer(context.pieces(), shape, request.stream)
