"""Server-sent events, the form of all streams under /v1.

event: message_stop                 only in APIs whose events have names
data: {"type": "message_stop"}
                                    a blank line ends each event
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from typing import Any

from fastapi import Response

from ...engine.go.json import dumps
from ...engine.run.piece import Piece
from .choices import Merged
from .stream import Chunk, NDJSONResponse, merge_pieces

Event = tuple[str, Any]  # (name or "", data): the data is an object, or OpenAI's final "[DONE]"
Push = Callable[[Chunk], Iterator[Event]]
"""Converts a chunk to events."""
PushChoice = Callable[[Chunk, int], Iterator[Event]]
"""Converts a chunk of the answer with that index to events."""
Failure = Callable[[Exception], Event]


async def send_events(source: AsyncGenerator[Piece, None], push: Push, failure: Failure) -> Response:
    """Send an answer as events.  An error before the first event is raised; `failure` converts a later one."""
    events = _events(source, push)
    return EventStreamResponse(await anext(events), events, failure)


async def send_choices(merged: Merged, push: PushChoice, failure: Failure) -> Response:
    """Send several answers in one stream of events, each chunk as it comes; errors as in `send_events`."""

    async def all_events() -> AsyncGenerator[Event, None]:
        async with aclosing(merged):
            async for i, chunk in merged:
                for event in push(chunk, i):
                    yield event

    events = all_events()
    return EventStreamResponse(await anext(events), events, failure)


def reply_events(events: Iterable[Event]) -> Response:
    """Return a response with `events` that are all known in advance."""
    return Response(b"".join(map(encode_event, events)), headers={"Content-Type": EventStreamResponse.content_type})


async def _events(source: AsyncGenerator[Piece, None], push: Push) -> AsyncGenerator[Event, None]:
    async with aclosing(merge_pieces(source)) as all_chunks:
        async for chunk in all_chunks:
            for event in push(chunk):
                yield event


class EventStreamResponse(NDJSONResponse):
    """Server-sent events: `first`, then each of `rest`; `failure` makes the last event of a stream that fails."""

    content_type = "text/event-stream"

    def __init__(self, first: Event, rest: AsyncGenerator[Event, None], failure: Failure):
        super().__init__(first, rest)
        self._failure = failure

    def frame(self, value: Event) -> bytes:
        return encode_event(value)

    def failure(self, error: Exception) -> Event:
        return self._failure(error)


def encode_event(event: Event) -> bytes:
    name, data = event
    text = data.encode() if isinstance(data, str) else dumps(data)
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + text + b"\n\n"
