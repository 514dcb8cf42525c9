"""A client's connection, which does not wait forever for a client that has stopped reading."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as AutoHTTPProtocol
else:
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

PATIENCE = 60.0  # seconds in which a client reads something of what waits for it: 48 KiB of 64


class Connection(AutoHTTPProtocol):
    """uvicorn's, broken off once the client has read nothing for PATIENCE: its request ends as if it had left.

    The transport says when more than 64 KiB wait for the client, and when it has read most of that; meanwhile nothing
    more is written.
    """

    _end: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._end = self.loop.call_later(PATIENCE, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._end:
            self._end.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._end:
            self._end.cancel()

    def timeout_keep_alive_handler(self) -> None:
        """An idle connection is closed, once what it still has is read or PATIENCE is over."""
        if not self.transport.is_closing():
            super().timeout_keep_alive_handler()
            self._end = self.loop.call_later(PATIENCE, self.transport.abort)
