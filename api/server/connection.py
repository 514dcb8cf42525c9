"""A client's connection, closed when the client stops reading."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as AutoHTTPProtocol
else:
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

STALL_TIMEOUT_S = 60.0  # ample for any client that still reads: 48 of the 64 buffered KiB have to go out in this time


class Connection(AutoHTTPProtocol):
    """uvicorn's connection, aborted when the client does not read for STALL_TIMEOUT_S, like a disconnect.

    asyncio calls `pause_writing` when more than 64 KiB are buffered, and `resume_writing` when 16 KiB remain.  Nothing
    is written in between.
    """

    _abort_timer: asyncio.TimerHandle | None = None

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
