"""An answer's pieces as a client sees them: chunks of text, as NDJSON or as one object."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

from ...engine.errors import Cancelled
from ...engine.go.json import dumps
from ...engine.parse import ParsedCall
from ...engine.run.piece import Piece, Timings
from ...engine.sampling import Logprob
from .errors import error_text, reply

Objects = AsyncGenerator[dict[str, Any], None]


@dataclass
class Chunk:
    """What can be shown and what is known of its tokens; `done_reason`, `timings` and `met` in the last one only."""

    text: str = ""
    thinking: str = ""
    tool_calls: tuple[ParsedCall, ...] = ()
    logprobs: list[Logprob] = field(default_factory=list)
    done_reason: str | None = None
    timings: Timings | None = None
    met: str | None = None

    def __add__(self, later: Chunk) -> Chunk:
        return Chunk(
            self.text + later.text,
            self.thinking + later.thinking,
            self.tool_calls + later.tool_calls,
            self.logprobs + later.logprobs,
            later.done_reason,
            later.timings,
            later.met,
        )


Shape = Callable[[Chunk], dict[str, Any]]
"""A chunk as the object that a route sends."""


async def chunks(source: AsyncGenerator[Piece, None]) -> AsyncGenerator[Chunk, None]:
    """Pieces that show something, then a last chunk that does not.

    A token whose text was held back counts with what follows.
    """
    chunk = Chunk()
    async with aclosing(source):
        async for piece in source:
            chunk += Chunk(piece.text, piece.thinking, piece.tool_calls, [piece.logprob] if piece.logprob else [])
            if chunk.text or chunk.thinking or chunk.tool_calls:
                yield chunk
                chunk = Chunk()
            if piece.done_reason:
                yield replace(chunk, done_reason=piece.done_reason, timings=piece.timings, met=piece.met)


async def whole(source: AsyncGenerator[Piece, None]) -> Chunk:
    """All that comes, as one chunk."""
    total = Chunk()
    async for chunk in chunks(source):
        total += chunk
    return total


async def send(source: AsyncGenerator[Piece, None], shape: Shape, stream: bool) -> Response:
    """An answer: objects on lines as they come, or one when all is there.

    Raises what goes wrong before the first line, so that it still has a status of its own.
    """
    if not stream:
        return reply(shape(await whole(source)))
    objects = _objects(source, shape)
    return Lines(await anext(objects), objects)


async def _objects(source: AsyncGenerator[Piece, None], shape: Shape) -> Objects:
    async with aclosing(chunks(source)) as all_chunks:
        async for chunk in all_chunks:
            yield shape(chunk)


class Lines(Response):
    """NDJSON: `first` and then each of `rest` on a line of its own, sent at once.

    What goes wrong on the way is a last line {"error": ...}: the status has gone out long ago.
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
