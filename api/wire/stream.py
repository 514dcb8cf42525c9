"""Answers as HTTP responses: the engine's pieces merged into chunks, sent as NDJSON or as one object."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

from ...engine.errors import Cancelled
from ...engine.go.json import dumps
from ...engine.look.step import LookPart
from ...engine.parse import ParsedCall
from ...engine.run.piece import Piece, Timings
from ...engine.sampling import Logprob
from .errors import error_text, json_response

Objects = AsyncGenerator[dict[str, Any], None]


@dataclass
class Chunk:
    """A part of an answer: visible text, thinking or calls, the log-probabilities of its tokens, and their looks.

    Only the last chunk has `done_reason`, `timings` and `met`, the stop string that ended the answer.
    """

    text: str = ""
    thinking: str = ""
    tool_calls: tuple[ParsedCall, ...] = ()
    logprobs: list[Logprob] = field(default_factory=list)
    done_reason: str | None = None
    timings: Timings | None = None
    met: str | None = None
    looks: list[LookPart] = field(default_factory=list)

    def __add__(self, later: Chunk) -> Chunk:
        return Chunk(
            self.text + later.text,
            self.thinking + later.thinking,
            self.tool_calls + later.tool_calls,
            self.logprobs + later.logprobs,
            later.done_reason,
            later.timings,
            later.met,
            self.looks + later.looks,
        )


Shape = Callable[[Chunk], dict[str, Any]]
"""Converts a chunk to the object that a route sends."""


async def merge_pieces(source: AsyncGenerator[Piece, None]) -> AsyncGenerator[Chunk, None]:
    """Yield a chunk for each piece with visible content, then a last chunk without.

    A token whose text the engine holds back goes into the next chunk.
    """
    chunk = Chunk()
    async with aclosing(source):
        async for piece in source:
            chunk += Chunk(
                piece.text,
                piece.thinking,
                piece.tool_calls,
                [piece.logprob] if piece.logprob else [],
                looks=[piece.look] if piece.look else [],
            )
            if chunk.text or chunk.thinking or chunk.tool_calls:
                yield chunk
                chunk = Chunk()
            if piece.done_reason:
                yield replace(chunk, done_reason=piece.done_reason, timings=piece.timings, met=piece.met)


async def collect_chunks(source: AsyncGenerator[Piece, None]) -> Chunk:
    """Return the whole answer as one chunk."""
    total = Chunk()
    async for chunk in merge_pieces(source):
        total += chunk
    return total


async def send_answer(source: AsyncGenerator[Piece, None], shape: Shape, stream: bool) -> Response:
    """Send an answer: a line for each chunk if `stream`, else one object at the end.

    An error before the first line is raised, so that the response still gets the error's status.
    """
    if not stream:
        return json_response(shape(await collect_chunks(source)))
    objects = _objects(source, shape)
    return NDJSONResponse(await anext(objects), objects)


async def _objects(source: AsyncGenerator[Piece, None], shape: Shape) -> Objects:
    async with aclosing(merge_pieces(source)) as all_chunks:
        async for chunk in all_chunks:
            yield shape(chunk)


class NDJSONResponse(Response):
    """NDJSON: `first`, then each object of `rest`, one per line and sent immediately.

    An error in between becomes a last line {"error": ...}, as the status has already been sent.
    """

    content_type = "application/x-ndjson"

    def __init__(self, first: Any, rest: AsyncGenerator[Any, None]):
        super().__init__(headers={"Content-Type": self.content_type})
        del self.headers["content-length"]
        self.first, self.rest = first, rest

    def frame(self, value: Any) -> bytes:
        return dumps(value) + b"\n"

    def failure(self, error: Exception) -> Any:
        return {"error": error_text(error)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def line(value: Any) -> None:
            await send({"type": "http.response.body", "body": self.frame(value), "more_body": True})

        async with aclosing(self.rest) as rest:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await line(self.first)
            try:
                async for value in rest:
                    await line(value)
            except Cancelled:
                pass
            except Exception as error:
                await line(self.failure(error))
        await send({"type": "http.response.body", "body": b""})
