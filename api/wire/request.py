"""The context of one HTTP request: it calls the engine in threads and cancels the work if the client disconnects.

event loop       body -> request -> start_answer(verb)                  pieces() -> ...
worker thread                           verb: resolve, load, render, submit
engine thread                                             deliver(piece) -- loop.call_soon_threadsafe --> outbox
event loop       client disconnects -> handle.cancel(), effective within one token
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

MAX_BODY_BYTES = 1 << 28  # of JSON; model files are uploaded as blobs
MAX_UNREAD_PIECES = 10_000  # of an answer; a client that leaves more unread is cut off
MAX_INLINE_BYTES = 1 << 16  # a smaller body is decoded on the event loop, in a few ms


def body(cls: type[T]) -> Any:
    """Return a dependency that decodes the request's body as `cls`, ignoring the content type as Ollama does."""

    async def read(request: Request) -> T:
        content = await read_body(request)
        if len(content) < MAX_INLINE_BYTES:
            return decode_json(cls, content)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(request.app.state.threads, decode_json, cls, content)

    return Depends(read)


async def read_body(request: Request) -> bytes:
    """Read a request's body.  Raises: BodyTooLarge, ClientDisconnect"""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > MAX_BODY_BYTES:
            raise BodyTooLarge(f"request body exceeds the limit of {MAX_BODY_BYTES >> 20} MiB")
    return bytes(content)


class RequestContext:
    """The state of one HTTP request, from the handler's entry to the last byte of the response."""

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

    def timing_fields(self, t: Timings) -> dict[str, int]:
        """Return the six durations (nanoseconds) and token counts at the end of an answer."""
        return {
            "total_duration": self.elapsed,
            "load_duration": self._load_duration,
            "prompt_eval_count": t.prompt_eval_count,
            "prompt_eval_duration": t.prompt_eval_duration,
            "eval_count": t.eval_count,
            "eval_duration": t.eval_duration,
        }

    async def run_in_thread(self, verb: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run `verb`, which blocks for a short time, in a worker thread and return its result."""
        return await self._loop.run_in_executor(self._request.app.state.threads, partial(verb, *args, **kwargs))

    async def run_transfer(self, verb: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run `verb`, which may wait for a registry or write a model, in a worker thread for such work."""
        threads = self._request.app.state.transfer_threads
        return await self._loop.run_in_executor(threads, partial(verb, *args, **kwargs))

    async def start_answer(self, verb: Callable[..., Answer], *args: Any, **kwargs: Any) -> Answer:
        """Call the engine's `verb` in a worker thread; the pieces of its answer arrive through `pieces`."""
        self._watch = asyncio.create_task(self._cancel_when_disconnected())
        try:
            call = partial(verb, *args, handle=self.handle, deliver=self._deliver, **kwargs)
            answer = await self._loop.run_in_executor(self._request.app.state.answer_threads, call)
        except BaseException:
            self.end()
            raise
        self._load_duration = answer.load_duration
        if answer.is_over:
            self._outbox.put_nowait(Piece("", done_reason="stop", timings=Timings()))
            self.end()
        return answer

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield the answer's pieces up to the last one, whose timings are logged.  Closing it ends the request.

        An answer without text yields one empty piece.
        """
        stopwatch = self._request.app.state.metrics.stopwatch(self.handle.began / 1e9)
        piece: Piece | Exception | None
        try:
            while True:
                piece = await self._outbox.get()
                if isinstance(piece, Exception):
                    raise piece
                stopwatch.record(piece)
                if piece.timings:
                    self.log |= self.timing_fields(piece.timings)
                yield piece
                if piece.done_reason:
                    return
        finally:
            piece = None  # the traceback of a raised error refers to this frame
            self.end()

    @contextmanager
    def cancel_on_disconnect(self) -> Iterator[None]:
        """Cancel the request if the client disconnects inside the `with` block."""
        self._watch = asyncio.create_task(self._cancel_when_disconnected())
        try:
            yield
        finally:
            self.end()

    def fork(self) -> RequestContext:
        """Return another context for the same HTTP request, for its next prompt."""
        return RequestContext(self._request)

    def end(self) -> None:
        """Cancel the work that is still running, and stop watching the connection."""
        self.handle.cancel()
        if self._watch:
            self._watch.cancel()
            self._watch = None  # breaks the cycle task -> exception -> traceback -> self

    def _deliver(self, piece: Piece | Exception) -> None:
        """Queue `piece` for the event loop.  Called from any thread."""
        if self._outbox.qsize() > MAX_UNREAD_PIECES and not self.handle.cancelled:
            too_slow = f"client reads too slowly: more than {MAX_UNREAD_PIECES} pieces of its answer are unread"
            self.handle.cancel(lambda: CapacityError(too_slow))
        try:
            self._loop.call_soon_threadsafe(self._outbox.put_nowait, piece)
        except RuntimeError:  # the event loop is closed: the server is shutting down
            self.handle.cancel()

    async def _cancel_when_disconnected(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self.handle.cancel()


async def _context(request: Request) -> RequestContext:
    return RequestContext(request)


Context = Annotated[RequestContext, Depends(_context)]
