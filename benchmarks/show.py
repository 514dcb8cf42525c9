"""Progress on a terminal: a bar over the budget, with an estimate of the time left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[float, str], None]
"""Called with the share that is done and a text."""


def silent(share: float, text: str) -> None:
    """Show nothing."""


@contextmanager
def budget_bar() -> Iterator[Progress]:
    """Show a bar on stderr while the block runs, if that is a terminal."""
    if not sys.stderr.isatty():
        yield silent
        return
    from rich import progress as rich
    from rich.console import Console

    columns = [rich.TextColumn("{task.description}", markup=False), rich.BarColumn(), rich.TimeElapsedColumn()]
    columns += [rich.TextColumn("of"), rich.TimeRemainingColumn(compact=True), rich.TextColumn("left at most")]
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("", total=1.0)
        yield lambda share, text: shown.update(task, completed=min(1.0, share), description=text)
