"""POST /api/embed and /api/embeddings: vectors of texts, all at once or one the old way."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Response

from ...engine.errors import RequestError
from ..wire.embed import vectors
from ..wire.errors import reply
from ..wire.request import Context, body
from ..wire.schema import EmbeddingRequest, EmbedRequest

router = APIRouter()


@router.post("/api/embed")
async def embed(request: Annotated[EmbedRequest, body(EmbedRequest)], visit: Context) -> Response:
    last = await vectors(visit, request)
    answer: dict[str, Any] = {"model": request.model, "embeddings": last.embeddings}
    if last.embeddings and last.timings:
        figures = visit.figures(last.timings)
        answer |= {name: figures[name] for name in ("total_duration", "load_duration", "prompt_eval_count")}
    return reply(answer)


@router.post("/api/embeddings")
async def embeddings(request: Annotated[EmbeddingRequest, body(EmbeddingRequest)], visit: Context) -> Response:
    """One vector, printed with the digits of a float64."""
    if not request.model:
        raise RequestError("model is required")
    last = await vectors(
        visit, EmbedRequest(request.model, request.prompt, request.keep_alive, options=request.options)
    )
    return reply({"embedding": [x for vector in last.embeddings for x in vector.tolist()]})
