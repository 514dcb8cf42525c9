"""What a long task says of itself, on stderr: a line for each step, a bar for each file on its way."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any


class Progress:
    """Used as a context; `tell` takes statuses as a server sends them.

    A status with a total is a bar that fills while its digest and words stay the same, and any other a line.  What is
    no terminal gets each line once.
    """

    def __init__(self) -> None:
        self._told, self._bars = "", {}  # type: ignore[var-annotated]
        self._display: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, TaskProgressColumn, TextColumn
            from rich.progress import Progress as Bars

            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), DownloadColumn())
            self._display = Bars(*columns, console=Console(stderr=True))
            self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._display:
            self._display.stop()

    def tell(self, status: dict[str, Any]) -> None:
        words = status.get("status", "")
        if not self._display:
            if words != self._told:
                print(words, file=sys.stderr, flush=True)
            self._told = words
        elif total := status.get("total"):
            if words not in self._bars:
                self._bars[words] = self._display.add_task(words, total=total)
            self._display.update(self._bars[words], completed=status.get("completed", 0), total=total)
        else:
            self._display.console.print(words, markup=False, highlight=False, soft_wrap=True)

    def follow(self, statuses: Iterable[dict[str, Any]]) -> None:
        """All of `statuses`, as they come."""
        for status in statuses:
            self.tell(status)
