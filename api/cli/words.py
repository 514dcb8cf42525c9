"""Figures as Ollama's commands print them: `4.7 GB`, `About an hour ago`, a table four blanks apart.

Source: Ollama's format package, fb30760.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

SECONDS = {"minute": 60, "hour": 3600, "day": 86_400, "year": 365 * 86_400}


def size(n_bytes: int) -> str:
    """Decimal units, one decimal below ten unless it is whole: 512 B, 3.6 MB, 5 GB, 42 GB"""
    value, unit = next(
        (
            (n_bytes / 1000**power, unit)
            for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "KB"))
            if n_bytes >= 1000**power
        ),
        (n_bytes, "B"),
    )
    return f"{value:.1f} {unit}" if value < 10 and value != int(value) else f"{int(value)} {unit}"


def span(seconds: float) -> str:
    """A duration in one word or two, from `Less than a second` to `3 years`."""
    whole, minutes, hours = int(seconds), int(seconds / 60), int(seconds / 3600 + 0.5)
    if whole < 60:
        return "Less than a second" if whole < 1 else "1 second" if whole == 1 else f"{whole} seconds"
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    for limit, hours_each, unit in ((48, 1, "hours"), (336, 24, "days"), (1440, 168, "weeks"), (17_520, 720, "months")):
        if hours < limit:
            return "About an hour" if hours == 1 else f"{hours // hours_each} {unit}"
    return f"{int(seconds / SECONDS['year'])} years"


def ago(seconds: float) -> str:
    return f"{span(seconds)} ago"


def until(seconds: float) -> str:
    """How long a model stays: `4 minutes from now`."""
    if seconds < 0:
        return "Stopping..."
    return "Forever" if seconds >= 21 * SECONDS["year"] else f"{span(seconds)} from now"


def seconds_until(moment: str) -> float:
    """From now to an RFC 3339 time, negative if it is past."""
    return (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds()


def table(rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Rows of cells as lines, each column as wide as its widest cell and four blanks from the next."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("    ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{indent}{line}".rstrip() + "\n" for line in lines)
