"""Results as JSON lines: one for a run, for each remark, for each round of each contender, and for the end.

    {"type": "run", "schema": "numllama.bench/1", "run": "...", "part": "serve", "settings": {...}, ...}
    {"type": "note", "run": "...", "text": "outputs of a and b: equal"}
    {"type": "round", "run": "...", "cell": "1 client", "round": 0, "order": 1, "contender": "a", ...}
    {"type": "end", "run": "...", "reason": "every verdict is known", "verdicts": [...]}

docs/benchmarks.md describes every field.  A run without an end is resumed by the same command.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..engine.errors import RequestError

SCHEMA = "numllama.bench/1"
Line = dict[str, Any]


@dataclass
class Run:
    """A run as it is recorded: its header, its rounds, and its end if it has ended."""

    header: Line
    rounds: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    end: Line | None = None

    @property
    def id(self) -> str:
        return str(self.header["run"])

    @property
    def contenders(self) -> list[str]:
        return list(self.header["contenders"])

    @property
    def cells(self) -> list[str]:
        return list(dict.fromkeys(line["cell"] for line in self.rounds))

    def is_same_command(self, header: Mapping[str, Any]) -> bool:
        """Return whether `header` describes the same measurement on the same machine."""
        keys = ("schema", "part", "settings", "contenders", "machine")
        return all(json_form(self.header.get(key)) == json_form(header.get(key)) for key in keys)


class ResultsFile:
    """A file that lines are appended to, each flushed; without a path, lines are kept in memory only."""

    def __init__(self, path: Path | None, header: Line):
        header = {"type": "run", "schema": SCHEMA, "run": uuid.uuid4().hex[:12], "started": now()} | header
        self.path, self.run, self.is_resumed = path, Run(header), False
        if path is not None and path.exists():
            cut_half_line(path)
            unfinished = [run for run in read_runs([path]) if run.end is None and run.is_same_command(header)]
            if unfinished:
                self.run, self.is_resumed = unfinished[-1], True
        if not self.is_resumed:
            self._append(header)

    def add_round(self, line: Line) -> None:
        line = {"type": "round", "run": self.run.id, "at": now()} | line
        self.run.rounds.append(line)
        self._append(line)

    def say(self, text: str) -> None:
        """Add a remark for the reader, once."""
        if text not in self.run.notes:
            self.run.notes.append(text)
            self._append({"type": "note", "run": self.run.id, "text": text})

    def finish(self, line: Line) -> None:
        self.run.end = {"type": "end", "run": self.run.id, "at": now()} | line
        self._append(self.run.end)

    def _append(self, line: Line) -> None:
        if self.path is None:
            return
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line, default=str) + "\n")
        except OSError as error:
            raise RequestError(f"{self.path} cannot be written: {error.strerror}") from None


def cut_half_line(path: Path) -> None:
    """Cut off a last line that was being written when its run was killed."""
    with suppress(OSError), open(path, "rb+") as file:
        data = file.read()
        if data and not data.endswith(b"\n"):
            file.truncate(data.rfind(b"\n") + 1)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def json_form(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read the runs in files.  Raises: RequestError, which names file and line"""
    runs: dict[str, Run] = {}
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
        lines = text.split("\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                take(json.loads(line), runs)
            except (ValueError, KeyError, TypeError, AttributeError):
                if number >= len(lines) - 1 and not text.endswith("\n"):
                    continue  # the last line of a run that was killed while writing it
                raise RequestError(f"{path}:{number}: not a line of {SCHEMA}: {line[:60]!r}") from None
    return list(runs.values())


def take(line: Line, runs: dict[str, Run]) -> None:
    """Add a line to its run.  Raises: ValueError, KeyError for a line that has none"""
    match line["type"]:
        case "run":
            if line["schema"] != SCHEMA:
                raise ValueError(line["schema"])
            runs[line["run"]] = Run(line)
            len(line["contenders"]), line["part"]
        case "round":
            if not isinstance(line["figures"], dict) or not {"cell", "contender", "round"} <= line.keys():
                raise ValueError(line)
            runs[line["run"]].rounds.append(line)
        case "note":
            runs[line["run"]].notes.append(str(line["text"]))
        case "end":
            runs[line["run"]].end = line
        case other:
            raise ValueError(other)
