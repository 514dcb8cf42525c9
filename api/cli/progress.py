"""What a long task says of itself, on stderr: a line for each step, a bar for each file on its way."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from .words import size


class Progress:
    """Used as a context; `tell` takes statuses as a server sends them.

    A status with a total is a bar that fills while its words stay the same, and any other a line.  A bar that does not
    begin at nothing says what was there.  What is no terminal gets each line once.
    """

    def __init__(self) -> None:
        self._told, self._bars = "", {}  # type: ignore[var-annotated]
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

    def tell(self, status: dict[str, Any]) -> None:
        """A status as the server sends it: a line of words, or a bar where it has a total."""
        words, total, completed = status.get("status", ""), status.get("total"), status.get("completed", 0)
        if words != self._told and total and 0 < completed < total and words not in self._bars:
            self._line(f"{words}: {size(completed)} of {size(total)} were kept")
        if not self._display:
            if words != self._told:
                self._line(words)
        elif total:
            if words not in self._bars:
                self._bars[words] = self._display.add_task(words, total=total, completed=completed)
            self._display.update(self._bars[words], completed=completed, total=total)
        else:
            self._line(words)
        self._told = words

    def _line(self, text: str) -> None:
        if self._display:
            self._display.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def follow(self, statuses: Iterable[dict[str, Any]]) -> None:
        """All of `statuses`, as they come."""
        for status in statuses:
            self.tell(status)
