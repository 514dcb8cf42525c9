"""POST /api/embed for any number of texts, and the older /api/embeddings for one."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Response

from ...engine.errors import RequestError
from ..wire.embed import embed_texts
from ..wire.errors import json_response
from ..wire.request import Context, body
from ..wire.schema import EmbeddingRequest, EmbedRequest

router = APIRouter()


@router.post("/api/embed")
async def embed(request: Annotated[EmbedRequest, body(EmbedRequest)], context: Context) -> Response:
    last = await embed_texts(context, request)
    answer: dict[str, Any] = {"model": request.model, "embeddings": last.embeddings}
    if last.embeddings and last.timings:
        durations = context.timing_fields(last.timings)
        answer |= {name: durations[name] for name in ("total_duration", "load_duration", "prompt_eval_count")}
    return json_response(answer)


@router.post("/api/embeddings")
async def embeddings(request: Annotated[EmbeddingRequest, body(EmbeddingRequest)], context: Context) -> Response:
    """Embed one text; the numbers have the digits of a float64, as in Ollama."""
    if not request.model:
        raise RequestError("model is required")
    last = await embed_texts(
        context, EmbedRequest(request.model, request.prompt, request.keep_alive, options=request.options)
    )
    return json_response({"embedding": [x for vector in last.embeddings for x in vector.tolist()]})
