"""Who waits for an answer, and may stop waiting."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns

from .errors import Cancelled, EngineError


class RequestHandle:
    """Somebody who waits for an answer, and may stop waiting at any moment, from any thread."""

    def __init__(self) -> None:
        self.began = perf_counter_ns()
        self.cancelled = False
        self.why: Callable[[], EngineError] = Cancelled  # made anew each time: one that was raised holds its frames
        self.on_cancel: Callable[[], None] = lambda: None  # whatever it waits for now

    def cancel(self, why: Callable[[], EngineError] | None = None) -> None:
        """It ends with what `why` makes, unless it was over before."""
        self.why = why or self.why
        self.cancelled = True
        self.on_cancel()

    def check(self) -> None:
        """Raises Cancelled if nobody waits any more, or what else ended it."""
        if self.cancelled:
            raise self.why()
