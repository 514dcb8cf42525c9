"""POST /api/tokenize and /api/detokenize: text to token ids and back.  Proposed for Ollama, never merged there.

{"model": "m", "content": "a cat"}   -> {"tokens": [264, 8415], "pieces": ["a", " cat"], ...}
{"model": "m", "tokens": [264, 8415]} -> {"content": "a cat", ...}

A piece that is not valid UTF-8 on its own, such as half a character, is a list of bytes.  No model is loaded.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Response

from ..wire.errors import json_response
from ..wire.request import Context, RequestContext, body
from ..wire.schema import DetokenizeRequest, TokenizeRequest

router = APIRouter()


@router.post("/api/tokenize")
async def tokenize(request: Annotated[TokenizeRequest, body(TokenizeRequest)], context: Context) -> Response:
    def found() -> Response:
        arguments = (request.model, request.content, request.add_special, request.parse_special)
        tokens = context.engine.tokenize(*arguments, handle=context.handle)
        ids, pieces = [token.id for token in tokens], [piece_text(token.piece) for token in tokens]
        return token_response(context, request.model, {"tokens": ids, "pieces": pieces})

    with context.cancel_on_disconnect():
        return await context.run_in_thread(found)


@router.post("/api/detokenize")
async def detokenize(request: Annotated[DetokenizeRequest, body(DetokenizeRequest)], context: Context) -> Response:
    def found() -> Response:
        content = context.engine.detokenize(request.model, request.tokens)
        return token_response(context, request.model, {"content": content})

    return await context.run_in_thread(found)


def token_response(context: RequestContext, model: str, found: dict[str, Any]) -> Response:
    context.log["model"] = model
    return json_response({"model": model} | found | {"total_duration": context.elapsed})


def piece_text(piece: bytes) -> str | list[int]:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
