"""Retries: which failures are retried, and how long to wait before each retry."""

from __future__ import annotations

import re
import threading
import time
from email.utils import parsedate_to_datetime

from ...errors import Cancelled, RegistryError

MAX_STALL_S = 30.0  # without PROGRESS_BYTES, over all tries
PROGRESS_BYTES = 1_000_000
MAX_TRIES = 6  # in a row that each transfer less than a sixteenth of PROGRESS_BYTES, for a blob
MAX_SMALL_TRIES = 3  # the same for a small response, such as a manifest
FIRST_PAUSE_S = 1.0  # after the first failed try; it doubles with every try
MAX_PAUSE_S = 120.0  # that a registry may ask for; a longer one is an error at once


class Interrupted(Exception):
    """A retryable failure.

    pause_s   the seconds that the registry asks to wait, by a Retry-After header
    """

    def __init__(self, message: str, pause_s: float = 0.0):
        self.pause_s = pause_s
        super().__init__(message)


class Unreachable(Interrupted):
    """A failure to connect."""


class RangesUnsupported(Exception):
    """The registry ignores the Range header and sends the whole blob."""


def retry_after(text: str) -> float:
    """Return the seconds that a Retry-After header asks to wait: a number, or the time until an HTTP date."""
    if re.fullmatch(r"[0-9]{1,9}", text.strip()):
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return 0.0


class RetryBudget:
    """A counter of failed tries in a row; it waits between tries and raises once they are used up.

    stopped   is set to cancel the transfer
    """

    def __init__(self, stopped: threading.Event, max_tries: int = MAX_TRIES):
        self.stopped, self.max_tries = stopped, max_tries
        self._n_failed, self._progress_at = 0, time.monotonic()
        self._n_bytes = self._n_bytes_of_try = 0

    def progress(self, n_bytes: int) -> None:
        """Count `n_bytes` transferred, which no later try has to repeat."""
        self._n_bytes += n_bytes
        self._n_bytes_of_try += n_bytes
        if self._n_bytes >= PROGRESS_BYTES:
            self._n_bytes = 0
            self.restart_stall_timer()

    def restart_stall_timer(self) -> None:
        """Restart the MAX_STALL_S timer; for a transfer that advances, but may have to start over."""
        self._progress_at = time.monotonic()

    def wait_after(self, error: Exception) -> None:
        """Count a try that failed with `error`, and wait until the next one is due.

        Raises: RegistryError if the tries are used up, Cancelled
        """
        self._n_failed = 0 if self._n_bytes_of_try > PROGRESS_BYTES // 16 else self._n_failed + 1
        self._n_bytes_of_try = 0
        if not self.stopped.is_set():
            if self._n_failed >= self.max_tries or time.monotonic() - self._progress_at > MAX_STALL_S:
                raise RegistryError(f"max retries exceeded: {error}") from None
            asked_s = getattr(error, "pause_s", 0.0)
            if asked_s > MAX_PAUSE_S:
                raise RegistryError(f"{error}; the registry asks to retry after {asked_s:.0f} seconds") from None
            own_s = FIRST_PAUSE_S * 2 ** (self._n_failed - 1) if self._n_failed else 0.0
            self._progress_at += asked_s  # a wait that the registry asks for is not a stall
            self.stopped.wait(max(own_s, asked_s))
        if self.stopped.is_set():
            raise Cancelled()
