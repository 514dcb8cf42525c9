"""A sign of life while nothing else can be shown: a model loads, kernels compile, a prompt is read."""

from __future__ import annotations

from threading import Event, Thread
from typing import TextIO

FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
PATIENCE, PACE = 0.5, 0.1  # seconds before the first frame, and between frames


class Spinner:
    """Turns on `out`, if that is a terminal, from soon after it is entered until it is stopped or left."""

    def __init__(self, out: TextIO):
        self.out, self._stopped = out, Event()
        self._thread = Thread(target=self._turn, name="spinner", daemon=True)

    def __enter__(self) -> Spinner:
        if self.out.isatty():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Leave the line as it was found.  Fine to say twice."""
        if not self._stopped.is_set():
            self._stopped.set()
            if self._thread.ident is not None:
                self._thread.join()

    def _turn(self) -> None:
        if self._stopped.wait(PATIENCE):
            return
        n = 0
        while not self._stopped.is_set():
            self._write(f"\r{FRAMES[n % len(FRAMES)]} ")
            n += 1
            self._stopped.wait(PACE)
        self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()
