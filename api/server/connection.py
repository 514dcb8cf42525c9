"""A client's connection, closed when the client stops reading."""

from __future__ import annotations

import asyncio

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

STALL_TIMEOUT_S = 60.0  # ample for any client that still reads: 48 of the 64 buffered KiB have to go out in this time


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with limits, and with the answers of Go's net/http where uvicorn has none.

    Upgrade   An offer to upgrade (to h2c or WebSocket) is ignored and the request answered, as RFC 9110 7.8 allows.
    Reading   A client that does not read for STALL_TIMEOUT_S is aborted, like a disconnect.  asyncio calls
              `pause_writing` when more than 64 KiB are buffered, and `resume_writing` when 16 KiB remain.  Nothing is
              written in between.
    """

    _abort_timer: asyncio.TimerHandle | None = None

    # an offer to upgrade

    @property
    def _offers_upgrade(self) -> bool:
        """Whether the parser stops after this request's head, taking what follows for another protocol."""
        return self.parser.should_upgrade() and self.scope["method"] != "CONNECT"

    def on_headers_complete(self) -> None:
        self.scope["method"] = self.parser.get_method().decode("ascii")
        if not self._offers_upgrade:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self._offers_upgrade:
            super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """Parse `data`.  After the head of an offer to upgrade, begin again with the same head without the offer."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            self._unset_keepalive_if_required()
            if self._offers_upgrade:
                head = self._head_without_upgrade()
                self.parser = httptools.HttpRequestParser(self)
                self.data_received(head + data[stop.args[0] :])
        except httptools.HttpParserError:
            self._unset_keepalive_if_required()
            self.send_400_response("Invalid HTTP request received.")
        else:
            self._unset_keepalive_if_required()

    def _head_without_upgrade(self) -> bytes:
        """Return the head of this request, as parsed, without the offer to upgrade."""
        lines = [self.scope["method"].encode() + b" " + self.url + b" HTTP/1.1"]
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(option for option in value.split(b",") if option.strip().lower() != b"upgrade")
            if name not in (b"upgrade", b"http2-settings"):
                lines.append(name + b": " + value)
        return b"\r\n".join(lines) + b"\r\n\r\n"

    # a client that does not read

    def pause_writing(self) -> None:
        super().pause_writing()
        self._abort_timer = self.loop.call_later(STALL_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._abort_timer:
            self._abort_timer.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._abort_timer:
            self._abort_timer.cancel()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection when its buffer is empty, or after STALL_TIMEOUT_S."""
        if not self.transport.is_closing():
            super().timeout_keep_alive_handler()
            self._abort_timer = self.loop.call_later(STALL_TIMEOUT_S, self.transport.abort)
