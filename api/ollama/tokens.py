"""Text to token ids and back: POST /api/tokenize and /api/detokenize, as has been proposed for Ollama and never merged.

{"model": "m", "content": "a cat"}   -> {"tokens": [264, 8415], "pieces": ["a", " cat"], ...}
{"model": "m", "tokens": [264, 8415]} -> {"content": "a cat", ...}

A piece that is not text by itself, as half a character, is a list of its bytes.  No model is loaded for this.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Response

from ..wire.errors import reply
from ..wire.request import Context, RequestContext, body
from ..wire.schema import DetokenizeRequest, TokenizeRequest

router = APIRouter()


@router.post("/api/tokenize")
async def tokenize(request: Annotated[TokenizeRequest, body(TokenizeRequest)], visit: Context) -> Response:
    asked = (request.model, request.content, request.add_special, request.parse_special)
    tokens = await visit.run(visit.engine.tokenize, *asked)
    ids, pieces = [token.id for token in tokens], [piece_text(token.piece) for token in tokens]
    return answer(visit, request.model, {"tokens": ids, "pieces": pieces})


@router.post("/api/detokenize")
async def detokenize(request: Annotated[DetokenizeRequest, body(DetokenizeRequest)], visit: Context) -> Response:
    return answer(
        visit, request.model, {"content": await visit.run(visit.engine.detokenize, request.model, request.tokens)}
    )


def answer(visit: RequestContext, model: str, found: dict[str, Any]) -> Response:
    visit.log["model"] = model
    return reply({"model": model} | found | {"total_duration": visit.elapsed})


def piece_text(piece: bytes) -> str | list[int]:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
