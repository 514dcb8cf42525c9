"""Sizes, times and tables in the format of Ollama's commands: `4.7 GB`, `About an hour ago`.

Source: Ollama's format package, fb30760.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from ...engine.go.text import one_line
from .wrap import display_width

ZERO_TIME = "0001-01-01T00:00:00"
SECONDS_PER = {"minute": 60, "hour": 3600, "day": 86_400, "year": 365 * 86_400}


def format_size(n_bytes: int) -> str:
    """Format a size in decimal units, with one decimal below ten unless it is whole: 512 B, 3.6 MB, 5 GB, 42 GB."""
    value, unit = next(
        (
            (n_bytes / 1000**power, unit)
            for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "KB"))
            if n_bytes >= 1000**power
        ),
        (n_bytes, "B"),
    )
    return f"{value:.1f} {unit}" if value < 10 and value != int(value) else f"{int(value)} {unit}"


def format_span(seconds: float) -> str:
    """Format a duration in words, from `Less than a second` to `3 years`."""
    whole, minutes, hours = int(seconds), int(seconds / 60), int(seconds / 3600 + 0.5)
    if whole < 60:
        return "Less than a second" if whole < 1 else "1 second" if whole == 1 else f"{whole} seconds"
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    for limit, hours_each, unit in ((48, 1, "hours"), (336, 24, "days"), (1440, 168, "weeks"), (17_520, 720, "months")):
        if hours < limit:
            return "About an hour" if hours == 1 else f"{hours // hours_each} {unit}"
    return f"{int(seconds / SECONDS_PER['year'])} years"


def format_time(moment: str) -> str:
    """Format an RFC 3339 time relative to now: `2 days ago`, `3 hours from now`; Go's zero time is `Never`."""
    seconds = None if moment.startswith(ZERO_TIME) else seconds_until(moment)
    if seconds is None:
        return "Never"
    if seconds <= 0:
        return f"{format_span(-seconds)} ago"
    return "Forever" if seconds >= 21 * SECONDS_PER["year"] else f"{format_span(seconds)} from now"


def format_until(seconds: float | None) -> str:
    """Format the time until a model is unloaded: `4 minutes from now`."""
    if seconds is None or seconds < 0:
        return "Stopping..."
    return "Forever" if seconds >= 21 * SECONDS_PER["year"] else f"{format_span(seconds)} from now"


def seconds_until(moment: str) -> float | None:
    """Return the seconds from now to an RFC 3339 time, negative if it is past; None for an invalid time."""
    try:
        return (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):  # TypeError: it has no time zone
        return None


def format_table(rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Format rows of cells as lines, with four spaces between columns.

    Names, keys and values come from files and servers: control characters are escaped.
    """
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(display_width, column)) for column in zip(*rows, strict=True)]
    lines = (
        "    ".join(cell + " " * (width - display_width(cell)) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "".join(f"{indent}{line}".rstrip() + "\n" for line in lines)
