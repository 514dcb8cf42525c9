"""A client's connection: what it may send, and for how long it may be silent.

Beyond uvicorn's, as Go's net/http does:
    upgrade     an offer to upgrade, to h2c or WebSocket, is ignored and the request answered (RFC 9110 7.8)
    head        at most MAX_HEAD_BYTES, then 431; it must be complete within READ_TIMEOUT_S
    body        may pause for READ_TIMEOUT_S
    pipelining  what follows an unanswered request is not parsed, nor more of it read than one buffer holds
    reading     a client that leaves an answer unread for STALL_TIMEOUT_S is aborted, like a disconnect
    half-close  a client that has ended its side after a request is answered
    HTTP/1.0    answers without a length end with the connection, not in chunks
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import chain, repeat
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

STALL_TIMEOUT_S = 60.0  # ample for any client that still reads: 48 of the 64 buffered KiB have to go out in this time
READ_TIMEOUT_S = 60.0
LINGER_S = (
    0.5  # between a refusal and the end, while what still comes is dropped: an unread byte would reset the refusal
)
SILENT_S = 1.0  # after which a connection without a request may be closed to make place for others
MAX_HEAD_BYTES = 1 << 16  # of a request's line and headers, or between two pieces of its body
FEED_BYTES = 1 << 14  # parsed at once, so that a buffer full of small requests is not turned into objects
PROBE_INTERVALS_S = (
    0.002,
    0.05,
    0.5,
)  # between two signs of life to a client that has ended its side; the last repeats


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with the limits above.

    asyncio calls `pause_writing` when more than 64 KiB are buffered, and `resume_writing` when 16 KiB remain.  Nothing
    is written in between.
    """

    _abort_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None
    _probe_timer: asyncio.TimerHandle | None = None
    _n_unused = 0  # bytes parsed since the last that brought a head to its end or a body further
    _in_head = True
    _waits_since = 0.0  # when the head began, or the body's last piece came
    _refused: int | None = None  # the status with which the connection ends, once earlier requests are answered
    _half_closed = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._held = bytearray()  # received, not parsed yet
        self._probe_intervals = chain(PROBE_INTERVALS_S, repeat(PROBE_INTERVALS_S[-1]))

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport, lambda: bool(self._held))
        self._waits_since = self.loop.time()
        self._read_timer = self.loop.call_later(READ_TIMEOUT_S, self._check_silence)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._held.clear()
        for timer in (self._abort_timer, self._read_timer, self._probe_timer):
            if timer:
                timer.cancel()

    # receiving

    def data_received(self, data: bytes) -> None:
        """Parse what came, as far as earlier requests are answered."""
        self._unset_keepalive_if_required()
        if self._refused:
            return
        if self._in_head and not self._n_unused and not self._held:
            self._waits_since = self.loop.time()  # a head begins
        self._held += data
        self._parse()

    def _parse(self) -> None:
        while self._held and not self.pipeline and not self.transport.is_closing():
            data = bytes(self._held[:FEED_BYTES])
            del self._held[:FEED_BYTES]
            self._n_unused += len(data)
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as stop:
                if self._offers_upgrade:
                    self._held[:0] = self._head_without_upgrade() + data[stop.args[0] :]
                    self.parser, self._n_unused = httptools.HttpRequestParser(self), 0
            except httptools.HttpParserError:
                return self._refuse(self._refused or 400)
            if self._n_unused > MAX_HEAD_BYTES:
                return self._refuse(431)
        if self._held:
            self.flow.pause_reading()

    def on_headers_complete(self) -> None:
        self.scope["method"] = self.parser.get_method().decode("ascii")
        if self._offers_upgrade:
            return
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEAD_BYTES:
            self._refused = 431
            raise ValueError("the head is too long")  # ends the parsing
        self._in_head, self._n_unused, self._waits_since = False, 0, self.loop.time()
        super().on_headers_complete()
        self.cycle.send = _sender(self.cycle, self.transport)  # type: ignore[method-assign, assignment]

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # others follow a chunked body, and have no use here
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._n_unused, self._waits_since = 0, self.loop.time()
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._offers_upgrade:
            self._in_head, self._n_unused = True, 0
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start the next request, and parse what has come since; or end the connection."""
        super().on_response_complete()
        if self.transport.is_closing():
            return
        self._waits_since = self.loop.time()
        if self._held:
            self._unset_keepalive_if_required()
            self._parse()
        if not self._is_answering:
            if self._refused:
                self._refuse(self._refused)
            elif self._half_closed:
                self.transport.close()
            elif not self._held:
                self.flow.resume_reading()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: int) -> None:
        """Answer with `status`, as Go does, and close the connection; wait for the answers to earlier requests."""
        self._refused = status
        self._held.clear()
        if self._is_answering and not self.cycle.more_body:
            return self.flow.pause_reading()
        reason = STATUS_LINE[status].split(b" ", 1)[1].strip()
        head = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
        head += [*self.server_state.default_headers, (b"content-length", str(len(reason)).encode())]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in head)
        if self._is_answering:  # its body is broken
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write(STATUS_LINE[status] + lines + b"\r\n" + reason)
        self.transport.write_eof()
        self.flow.resume_reading()
        self._abort_timer = self.loop.call_later(LINGER_S, self.transport.close)

    # an offer to upgrade

    @property
    def _offers_upgrade(self) -> bool:
        """Whether the parser stops after this request's head, taking what follows for another protocol."""
        return self.parser.should_upgrade() and self.scope["method"] != "CONNECT"

    def _head_without_upgrade(self) -> bytes:
        """Return the head of this request, as parsed, without the offer to upgrade."""
        lines = [self.scope["method"].encode() + b" " + self.url + b" HTTP/1.1"]
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(option for option in value.split(b",") if option.strip().lower() != b"upgrade")
            if name not in (b"upgrade", b"http2-settings"):
                lines.append(name + b": " + value)
        return b"\r\n".join(lines) + b"\r\n\r\n"

    # a client that is silent

    def _check_silence(self) -> None:
        """Close the connection if the rest of a request has not come for READ_TIMEOUT_S."""
        now, since = self.loop.time(), self._waits_since
        if self._held or self.flow.read_paused or (self._in_head and self._is_answering):
            since = now  # not the client's turn
        if since + READ_TIMEOUT_S <= now:
            self.transport.abort()
        else:
            self._read_timer = self.loop.call_later(since + READ_TIMEOUT_S - now, self._check_silence)

    def close_if_silent(self) -> bool:
        """Close the connection if it has sent no whole head for SILENT_S; return whether it is closed."""
        if self._in_head and not self._is_answering and self._waits_since + SILENT_S <= self.loop.time():
            self.transport.abort()
        return self.transport.is_closing()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Answer a client that has ended its side after whole requests; close the connection otherwise.

        A client that has disconnected looks the same, until something is written: its system then answers with a reset.
        So until the answer begins, it gets `100 Continue` from time to time, which clients skip (RFC 9110 15.2).  One
        that ends its side later, when nothing but the answer may be written, counts as disconnected.
        """
        may_probe = self._is_answering and not self.cycle.response_started and self.cycle.scope["http_version"] == "1.1"
        if not self._in_head or not may_probe:
            return None
        self._half_closed = True
        self._probe()
        return True

    def _probe(self) -> None:
        if not self.cycle.response_started and not self.transport.is_closing():
            if not self.pipeline:  # else an earlier answer is on its way
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._probe_timer = self.loop.call_later(next(self._probe_intervals), self._probe)

    # a client that does not read

    def pause_writing(self) -> None:
        super().pause_writing()
        self._abort_timer = self.loop.call_later(STALL_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._abort_timer:
            self._abort_timer.cancel()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection when its buffer is empty, or after STALL_TIMEOUT_S."""
        if not self.transport.is_closing():
            super().timeout_keep_alive_handler()
            self._abort_timer = self.loop.call_later(STALL_TIMEOUT_S, self.transport.abort)


class _Flow(FlowControl):
    """uvicorn's flow control, which does not resume reading while `is_full`."""

    def __init__(self, transport: asyncio.Transport, is_full: Callable[[], bool]):
        super().__init__(transport)
        self._is_full = is_full

    def resume_reading(self) -> None:
        if not self._is_full():
            super().resume_reading()


def _sender(cycle: RequestResponseCycle, transport: asyncio.Transport) -> Callable[[Any], Awaitable[None]]:
    """Wrap `cycle.send` for clients of HTTP/1.0, which know no chunks, and for those that have left.

    A body without a length then ends with the connection.  After a failed write nothing more is written: asyncio would
    log a warning for each piece of the answer.
    """
    send, is_old, is_bare = cycle.send, cycle.scope["http_version"] == "1.0", False

    async def send_piece(message: Any) -> None:
        nonlocal is_bare
        if transport.is_closing() and not cycle.response_complete:
            cycle.disconnected = True
        elif message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            is_bare = is_old and not any(name.lower() == b"content-length" for name, _ in headers)
            cycle.chunked_encoding = False if is_bare else None
            if is_bare:  # uvicorn says so itself only in newer versions
                message = message | {"headers": [*headers, (b"connection", b"close")]}
        elif is_bare:
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    return send_piece
