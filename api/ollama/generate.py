"""POST /api/generate: a model goes on from a prompt."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Response

from ..wire.answer import head, logprobs_field, request_options, statistics, thinking_field, without_text
from ..wire.errors import reply
from ..wire.request import Context, body
from ..wire.schema import GenerateRequest
from ..wire.stream import Chunk, send

router = APIRouter()


@router.post("/api/generate")
async def generate(request: Annotated[GenerateRequest, body(GenerateRequest)], visit: Context) -> Response:
    visit.log["model"] = request.model
    answer = await visit.ask(
        visit.engine.generate,
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
    if answer.is_over:
        return reply(head(request) | {"response": ""} | without_text(answer))

    def shape(chunk: Chunk) -> dict[str, Any]:
        sent: dict[str, Any] = (
            {"response": chunk.text} | thinking_field(chunk) | {"done": chunk.done_reason is not None}
        )
        if chunk.done_reason:
            ids = {} if request.raw else {"context": answer.context()}
            sent |= {"done_reason": chunk.done_reason} | ids | statistics(visit, chunk)
        return head(request) | sent | logprobs_field(answer, chunk)

    return await send(visit.pieces(), shape, request.stream)
