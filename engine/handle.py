"""A request's handle: its start time and its cancellation."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns

from .errors import Cancelled, EngineError


class RequestHandle:
    """A running request, which any thread may cancel.

    began       perf_counter_ns() at the start
    why         makes the error that ends a cancelled request; a new one per raise, since an error holds its frames
    on_cancel   called by `cancel`, to interrupt the step that the request is blocked in
    """

    def __init__(self) -> None:
        self.began = perf_counter_ns()
        self.cancelled = False
        self.why: Callable[[], EngineError] = Cancelled
        self.on_cancel: Callable[[], None] = lambda: None

    def cancel(self, why: Callable[[], EngineError] | None = None) -> None:
        """Cancel the request, unless it has finished; it then ends with the error that `why` makes."""
        self.why = why or self.why
        self.cancelled = True
        self.on_cancel()

    def check(self) -> None:
        """Raise the cancellation error if the request was cancelled: Cancelled, or the error given to `cancel`."""
        if self.cancelled:
            raise self.why()
