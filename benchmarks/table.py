"""Tables of measurements: Markdown for readers, CSV for spreadsheets, JSON lines for programs."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class NamedTable:
    """A table with a title above it and remarks below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    remarks: Sequence[str] = ()

    def to_markdown(self) -> str:
        parts = [f"**{self.title}**", markdown(self.rows, self.columns), *self.remarks]
        return "\n\n".join(part for part in parts if part)

    def to_csv(self) -> str:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["table", *self.columns])
        writer.writerows([self.title, *(plain(row.get(column)) for column in self.columns)] for row in self.rows)
        return out.getvalue()


def append_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append `rows` to the file as JSON lines."""
    with open(path, "a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


def markdown(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Return a table of the `columns` of `rows`, aligned; numbers with three digits, "" for a missing value."""
    cells = [list(columns), *([cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["| " + " | ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def cell(value: Any) -> str:
    """Format a value for a table."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return " ".join(str(value).split()).replace("|", "\\|")


def plain(value: Any) -> Any:
    return "" if value is None else value


def show_progress(text: str) -> None:
    """Show `text` on a terminal's status line, which the next call overwrites; "" clears it."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
