"""Vectors from the engine, for the embedding routes of Ollama's and OpenAI's wires."""

from __future__ import annotations

from typing import Any

from ...engine.errors import RequestError
from ...engine.options import RequestOptions
from ...engine.run.piece import Piece
from .request import RequestContext
from .schema import EmbedRequest


async def vectors(visit: RequestContext, request: EmbedRequest) -> Piece:
    """The piece that has the vectors of all texts.  Raises: RequestError"""
    texts = texts_of(request.input)
    wanted = RequestOptions(request.options, request.keep_alive, truncate=request.truncate)
    visit.log["model"] = request.model
    await visit.ask(visit.engine.embed, request.model, texts, wanted, dimensions=request.dimensions)
    (piece,) = [piece async for piece in visit.pieces()]
    return piece


def texts_of(input: Any) -> list[str]:
    """`input`, a text or several; none for an empty one.  Raises: RequestError"""
    texts = input if isinstance(input, list) else [] if input in (None, "") else [input]
    if not all(isinstance(text, str) for text in texts):
        raise RequestError("invalid input type")
    return texts
