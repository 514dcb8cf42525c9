"""One request on its way into the engine: a client that leaves ends what it asked for.

event loop       body -> request -> ask(verb)                           pieces() -> ...
its own thread                          verb: resolve, load, render, submit
engine thread                                             deliver(piece) -- loop.call_soon_threadsafe --> outbox
event loop       client gone -> call.cancel(), seen within a token
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter_ns
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request

from ...engine.errors import CapacityError
from ...engine.go.decode import decode_json
from ...engine.go.json import BodyTooLarge
from ...engine.handle import RequestHandle
from ...engine.run.piece import Piece, Timings
from ...engine.serve.answer import Answer
from ...engine.serve.engine import Engine

T = TypeVar("T")

MAX_BODY = 1 << 28  # bytes of JSON; what is larger, the files of models, comes as blobs
MAX_UNREAD_PIECES = 10_000  # pieces of an answer that a client has not read: more of them are its end
MAX_INLINE_BYTES = 1 << 20  # what is smaller is decoded at once: a few ms


def body(cls: type[T]) -> Any:
    """The dependency that reads a request's body as `cls`, whatever its content type."""

    async def read(request: Request) -> T:
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > MAX_BODY:
                raise BodyTooLarge(f"the request's body is larger than {MAX_BODY >> 20} MiB")
        if len(content) < MAX_INLINE_BYTES:
            return decode_json(cls, bytes(content))
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(request.app.state.threads, decode_json, cls, bytes(content))

    return Depends(read)


class RequestContext:
    """A request to the engine, from the handler's entry to the last byte."""

    def __init__(self, request: Request):
        self.handle = RequestHandle()
        self.engine: Engine = request.app.state.engine
        self.log: dict[str, Any] = request.scope["log"]
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._outbox: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self._watch: asyncio.Task[None] | None = None
        self._load_duration = 0

    @property
    def elapsed(self) -> int:
        """Nanoseconds since the handler's entry."""
        return perf_counter_ns() - self.handle.began

    def figures(self, t: Timings) -> dict[str, int]:
        """The six figures of an answer, nanoseconds and tokens, at its end."""
        return {
            "total_duration": self.elapsed,
            "load_duration": self._load_duration,
            "prompt_eval_count": t.prompt_eval_count,
            "prompt_eval_duration": t.prompt_eval_duration,
            "eval_count": t.eval_count,
            "eval_duration": t.eval_duration,
        }

    async def run(self, verb: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """What the blocking `verb` returns, in a thread of its own."""
        return await self._loop.run_in_executor(self._request.app.state.threads, partial(verb, *args, **kwargs))

    async def ask(self, verb: Callable[..., Answer], *args: Any, **kwargs: Any) -> Answer:
        """The answer that `verb` of the engine gives; its pieces go to the outbox."""
        self._watch = asyncio.create_task(self._leave_with_client())
        try:
            answer = await self.run(verb, *args, handle=self.handle, deliver=self._deliver, **kwargs)
        except BaseException:
            self.end()
            raise
        self._load_duration = answer.load_duration
        if answer.is_over:
            self._outbox.put_nowait(Piece("", done_reason="stop", timings=Timings()))
            self.end()
        return answer

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """What comes out of the outbox, up to the last piece, whose figures the log gets.  Closing it ends the request.

        An answer that is over before it began has one empty piece.
        """
        stopwatch = self._request.app.state.metrics.answer(self.handle.began / 1e9)
        piece: Piece | Exception | None
        try:
            while True:
                piece = await self._outbox.get()
                if isinstance(piece, Exception):
                    raise piece
                stopwatch.see(piece)
                if piece.timings:
                    self.log |= self.figures(piece.timings)
                yield piece
                if piece.done_reason:
                    return
        finally:
            piece = None  # an error holds this frame
            self.end()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A client that leaves meanwhile ends what it asked for."""
        self._watch = asyncio.create_task(self._leave_with_client())
        try:
            yield
        finally:
            self.end()

    def again(self) -> RequestContext:
        """Another question of the same request."""
        return RequestContext(self._request)

    def end(self) -> None:
        self.handle.cancel()
        if self._watch:
            self._watch.cancel()
            self._watch = None  # a task holds what ended it, and that what it was about

    def _deliver(self, piece: Piece | Exception) -> None:
        """From any thread."""
        if self._outbox.qsize() > MAX_UNREAD_PIECES and not self.handle.cancelled:
            too_slow = f"the client is too slow: {MAX_UNREAD_PIECES} pieces of its answer wait for it"
            self.handle.cancel(lambda: CapacityError(too_slow))
        try:
            self._loop.call_soon_threadsafe(self._outbox.put_nowait, piece)
        except RuntimeError:  # the loop is closed: the server is going down
            self.handle.cancel()

    async def _leave_with_client(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self.handle.cancel()


async def _context(request: Request) -> RequestContext:
    return RequestContext(request)


Context = Annotated[RequestContext, Depends(_context)]
