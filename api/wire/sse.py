"""Server-sent events: what the streams of /v1 are made of.

event: message_stop                 where the wire names its events
data: {"type": "message_stop"}
                                    a blank line ends each
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from typing import Any

from fastapi import Response

from ...engine.go.json import dumps
from ...engine.run.piece import Piece
from .stream import Chunk, Lines, chunks

Event = tuple[str, Any]  # its name or "", its data: an object, or OpenAI's last word
Push = Callable[[Chunk], Iterator[Event]]
"""A chunk as the events that tell it."""
Failure = Callable[[Exception], Event]


async def send_events(source: AsyncGenerator[Piece, None], push: Push, failure: Failure) -> Response:
    """An answer event by event.  Raises what goes wrong before the first; `failure` tells what does later."""
    events = _events(source, push)
    return Events(await anext(events), events, failure)


def reply_events(events: Iterable[Event]) -> Response:
    """Events that are all there."""
    return Response(b"".join(map(frame, events)), headers={"Content-Type": Events.content_type})


async def _events(source: AsyncGenerator[Piece, None], push: Push) -> AsyncGenerator[Event, None]:
    async with aclosing(chunks(source)) as all_chunks:
        async for chunk in all_chunks:
            for event in push(chunk):
                yield event


class Events(Lines):
    """`first` and then each of `rest`, sent at once; `failure` makes the last one of a stream that broke."""

    content_type = "text/event-stream"

    def __init__(self, first: Event, rest: AsyncGenerator[Event, None], failure: Failure):
        super().__init__(first, rest)
        self._failure = failure

    def frame(self, value: Event) -> bytes:
        return frame(value)

    def failure(self, error: Exception) -> Event:
        return self._failure(error)


def frame(event: Event) -> bytes:
    name, data = event
    text = data.encode() if isinstance(data, str) else dumps(data)
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + text + b"\n\n"
