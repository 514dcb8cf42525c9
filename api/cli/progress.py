"""Progress of a long task on stderr: a line for each step, a bar for each file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from ...engine.go.text import one_line
from .format import format_size


class Progress:
    """A context that displays the statuses of pull, push and create.

    On a terminal, a status with a total is a bar, updated by the following statuses with the same text; any other is a
    line.  Elsewhere each text is printed once.  Resumed transfers are announced by a line.
    """

    def __init__(self) -> None:
        self._last_text, self._bars = "", {}  # type: ignore[var-annotated]
        self._display: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich import progress as rich
            from rich.console import Console

            self._display = rich.Progress(
                rich.TextColumn("{task.description}", markup=False),
                rich.BarColumn(),
                rich.TaskProgressColumn(),
                rich.DownloadColumn(),
                rich.TransferSpeedColumn(),
                rich.TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._display:
            self._display.stop()

    def show(self, status: dict[str, Any]) -> None:
        """Display a status as the server sends it: as a bar if it has a total, else as a line."""
        text, total, completed = one_line(status.get("status", "")), status.get("total"), status.get("completed", 0)
        if text != self._last_text and total and 0 < completed < total and text not in self._bars:
            self._line(f"{text}: resuming at {format_size(completed)} of {format_size(total)}")
        if not self._display:
            if text != self._last_text:
                self._line(text)
        elif total:
            if text not in self._bars:
                self._bars[text] = self._display.add_task(text, total=total, completed=completed)
            self._display.update(self._bars[text], completed=completed, total=total)
        else:
            self._line(text)
        self._last_text = text

    def _line(self, text: str) -> None:
        if self._display:
            self._display.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def follow(self, statuses: Iterable[dict[str, Any]]) -> None:
        """Display all `statuses` as they arrive."""
        for status in statuses:
            self.show(status)
