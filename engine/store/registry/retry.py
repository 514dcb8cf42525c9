"""When another try is worth it, and how long to wait before it."""

from __future__ import annotations

import threading
import time

from ...errors import Cancelled, RegistryError

PATIENCE = 30.0  # seconds without a megabyte, over all tries, after which there is no other
TRIES, FEW_TRIES = 6, 3  # in a row that bring less than a sixteenth of that: for a blob, for a small answer
PAUSE = 1.0  # seconds after the first failed try; it doubles
MB = 1_000_000


class Interrupted(Exception):
    """A try that failed in a way in which the next may not."""


class Unreachable(Interrupted):
    """There was no connection at all."""


class RangesUnsupported(Exception):
    """The registry sends the whole blob, whatever range is asked for."""


class RetryBudget:
    """Counts the tries in a row that failed without bringing much, and waits before the next."""

    def __init__(self, stopped: threading.Event, tries: int = TRIES):
        self.stopped, self.tries = stopped, tries
        self._n_failed, self._since = 0, time.monotonic()
        self._n_bytes = self._n_bytes_of_try = 0

    def came(self, n_bytes: int) -> None:
        """So many more, which no try has to bring again."""
        self._n_bytes += n_bytes
        self._n_bytes_of_try += n_bytes
        if self._n_bytes >= MB:
            self._n_bytes = 0
            self.moved()

    def moved(self) -> None:
        """Something goes on, though it may have to be done again."""
        self._since = time.monotonic()

    def failed(self, error: Exception) -> None:
        """Returns when it is time for another try.  Raises: RegistryError, Cancelled"""
        self._n_failed = 0 if self._n_bytes_of_try > MB // 16 else self._n_failed + 1
        self._n_bytes_of_try = 0
        if not self.stopped.is_set():
            if self._n_failed >= self.tries or time.monotonic() - self._since > PATIENCE:
                raise RegistryError(f"max retries exceeded: {error}") from None
            if self._n_failed:
                self.stopped.wait(PAUSE * 2 ** (self._n_failed - 1))
        if self.stopped.is_set():
            raise Cancelled()
