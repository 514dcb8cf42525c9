"""POST /api/generate: an answer to a single prompt."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Response

from ...engine.run.piece import Piece
from ..wire.answer import (
    empty_answer_fields,
    head_fields,
    logprobs_field,
    request_options,
    statistics_fields,
    thinking_field,
)
from ..wire.errors import json_response
from ..wire.look import look_field
from ..wire.request import Context, body
from ..wire.schema import GenerateRequest
from ..wire.stream import Chunk, send_answer

router = APIRouter()


@router.post("/api/generate")
async def generate(request: Annotated[GenerateRequest, body(GenerateRequest)], context: Context) -> Response:
    context.log["model"] = request.model
    answer = await context.start_answer(
        context.engine.generate,
        request.model,
        request.prompt,
        request_options(request),
        suffix=request.suffix,
        system=request.system,
        template=request.template,
        context=request.context,
        raw=request.raw,
        images=request.images,
    )
    ids: list[int] = []

    async def pieces() -> AsyncGenerator[Piece, None]:
        """Yield the pieces; before the last one, tokenize prompt and answer for `context`, which may take a while."""
        async with aclosing(context.pieces()) as source:
            async for piece in source:
                if piece.done_reason and not request.raw:
                    ids.extend(await context.run_in_thread(answer.context, context.handle.check))
                yield piece

    if answer.is_over:
        return json_response(head_fields(request) | {"response": ""} | empty_answer_fields(answer))

    def shape(chunk: Chunk) -> dict[str, Any]:
        sent: dict[str, Any] = (
            {"response": chunk.text} | thinking_field(chunk) | {"done": chunk.done_reason is not None}
        )
        if chunk.done_reason:
            sent |= {"done_reason": chunk.done_reason} | ({} if request.raw else {"context": ids})
            sent |= statistics_fields(context, chunk)
        assert answer.model
        look = look_field(request, answer.model.tokenizer, chunk)
        return head_fields(request) | sent | logprobs_field(answer, chunk) | look

    return await send_answer(pieces(), shape, request.stream)
