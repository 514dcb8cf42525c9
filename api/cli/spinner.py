"""A spinner for the time before the first token: model load, kernel compilation, prefill."""

from __future__ import annotations

from threading import Event, Thread
from typing import TextIO

FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
DELAY_S = 0.5  # a faster answer shows no spinner
FRAME_S = 0.1


class Spinner:
    """A context that shows a spinner on `out`, if that is a terminal, from DELAY_S after entry until `stop`."""

    def __init__(self, out: TextIO):
        self.out, self._stopped = out, Event()
        self._thread = Thread(target=self._spin, name="spinner", daemon=True)

    def __enter__(self) -> Spinner:
        if self.out.isatty():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Remove the spinner.  May be called more than once."""
        if not self._stopped.is_set():
            self._stopped.set()
            if self._thread.ident is not None:
                self._thread.join()

    def _spin(self) -> None:
        if self._stopped.wait(DELAY_S):
            return
        n = 0
        while not self._stopped.is_set():
            self._write(f"\r{FRAMES[n % len(FRAMES)]} ")
            n += 1
            self._stopped.wait(FRAME_S)
        self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()
