"""Embeddings from the engine, for the routes of Ollama's and OpenAI's APIs."""

from __future__ import annotations

from typing import Any

from ...engine.errors import RequestError
from ...engine.options import RequestOptions
from ...engine.run.piece import Piece
from .request import RequestContext
from .schema import EmbedRequest


async def embed_texts(context: RequestContext, request: EmbedRequest) -> Piece:
    """Embed all texts of `request` and return the piece with the vectors.  Raises: RequestError"""
    texts = parse_input(request.input)
    options = RequestOptions(request.options, request.keep_alive, truncate=request.truncate)
    context.log["model"] = request.model
    await context.start_answer(context.engine.embed, request.model, texts, options, dimensions=request.dimensions)
    (piece,) = [piece async for piece in context.pieces()]
    return piece


def parse_input(input: Any) -> list[str]:
    """Return `input`, a string or a list of strings, as a list; an empty string gives none.  Raises: RequestError"""
    texts = input if isinstance(input, list) else [] if input in (None, "") else [input]
    if not all(isinstance(text, str) for text in texts):
        raise RequestError("invalid input type")
    return texts
