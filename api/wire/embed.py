"""Embeddings from the engine, for the routes of Ollama's and OpenAI's APIs."""

from __future__ import annotations

from typing import Any

from ...engine.errors import RequestError
from ...engine.options import RequestOptions
from ...engine.run.piece import Piece
from .request import RequestContext
from .schema import EmbedRequest


async def embed_texts(context: RequestContext, request: EmbedRequest, takes_ids: bool = False) -> Piece:
    """Embed all texts of `request` and return the piece with the vectors.

    takes_ids   a text may be given as a list of token ids
    Raises: RequestError
    """
    texts = parse_input(request.input, takes_ids)
    options = RequestOptions(request.options, request.keep_alive, truncate=request.truncate)
    context.log["model"] = request.model
    await context.start_answer(context.engine.embed, request.model, texts, options, dimensions=request.dimensions)
    (piece,) = [piece async for piece in context.pieces()]
    return piece


def parse_input(input: Any, takes_ids: bool = False) -> list[str | list[int]]:
    """Return `input`, a text or a list of texts, as a list; an empty string gives none.  Raises: RequestError"""
    if takes_ids and _is_ids(input):
        return [input]
    texts = input if isinstance(input, list) else [] if input in (None, "") else [input]
    if not all(isinstance(text, str) or (takes_ids and _is_ids(text)) for text in texts):
        raise RequestError("invalid input type")
    return texts


def _is_ids(text: Any) -> bool:
    return isinstance(text, list) and bool(text) and all(type(id) is int for id in text)
