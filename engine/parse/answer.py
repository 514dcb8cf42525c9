"""Reads an answer by its shape while it is generated: text -> thinking, content and tool calls, in their order.

The result does not depend on how the text is cut into pieces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..go.text import WHITE_SPACE
from .brackets import Brackets
from .shape import Mode, Shape
from .thinking import overlap
from .tools import ParsedCall
from .values import Call, Tools


@dataclass(frozen=True)
class AnswerPart:
    """A part of an answer: thinking, text or a call."""

    thinking: str = ""
    text: str = ""
    call: ParsedCall | None = None


class AnswerParser:
    """A parser of one answer by `shape`, for a request with `tools`.

    Text that may be the beginning of a mark is held back until that is decided, and so is a call.
    """

    def __init__(self, shape: Shape, tools: Tools):
        self._shape, self._tools = shape, tools
        self._buffer = ""  # text of the mode that was neither shown nor read
        self._raw = ""  # marks that led to a call; shown if it cannot be read
        self._blanks: list[str] = []  # white space held back
        self._header = ""
        self._begins_line = True  # whether the buffer does
        self._at = 0  # no mark begins before this place in the buffer
        self._n_calls = 0
        self._parts: list[AnswerPart] = []
        self._enter(shape.start)

    def push(self, text: str) -> list[AnswerPart]:
        """Add a piece of text; return the parts that it completes."""
        buffer, self._buffer = self._buffer, ""  # the only reference, so that += appends without a copy
        buffer += text
        self._buffer = buffer
        while self._step():
            pass
        return self._taken()

    def flush(self) -> list[AnswerPart]:
        """Return the rest at the end of the answer."""
        while self._end():
            while self._step():
                pass
        return self._taken()

    # --- up to the next mark ---

    def _step(self) -> bool:
        """Read up to the next mark; False if the rest of the buffer has to wait for more text."""
        mode = self._mode
        if self._is_undecided:
            return self._begin(mode)
        found = self._find(mode)
        if mode.brackets:
            end = self._scan.find(self._buffer, found.start() if found else self._begin_of_mark(mode))
            if end is not None:
                return self._read(self._buffer[:end], "", end)
        if not found:
            self._wait(mode)
            return False
        before, mark, end = self._buffer[: found.start()], found[0], found.end()
        if mark in mode.kept:
            mark, end = "", found.start()
        if mode.shows == "calls":
            return self._read(before, mark, end, found[0])
        self._show(before)
        following = mode.marks[found[0]]
        if mode.choose:
            self._header, following = before, mode.choose(before, self._tools)
        if found[0] in mode.spaced and self._blanks and not self._is_fresh:
            blanks, self._blanks = "".join(self._blanks), []
            self._parts.append(AnswerPart(text=blanks) if mode.shows == "content" else AnswerPart(thinking=blanks))
        dropped = before if mode.choose or mode.shows == "nothing" else "".join(self._blanks)
        self._raw += dropped + mark
        self._enter(following, end)
        return True

    def _begin(self, mode: Mode) -> bool:
        """Decide which of its first marks the mode begins with, if any."""
        rest = self._buffer if mode.is_tight else self._buffer.lstrip(WHITE_SPACE)
        if any(first.startswith(rest) and first != rest for first in mode.first):
            return False
        n_blank = len(self._buffer) - len(rest)
        for mark in sorted(mode.first, key=len, reverse=True):
            if rest.startswith(mark):
                end = n_blank + (0 if mark in mode.kept else len(mark))
                self._raw += self._buffer[:end]
                self._enter(mode.first[mark], end)
                return True
        self._decide(mode)
        return True

    def _decide(self, mode: Mode) -> None:
        """Go on without any of the first marks."""
        self._is_undecided = False
        if mode.otherwise:
            if mode.broken:
                self._add_broken(mode, self._raw)
            self._raw = ""
            self._enter(mode.otherwise)

    def _find(self, mode: Mode) -> re.Match[str] | None:
        """Find the first mark, unless it may become a longer one."""
        at = self._at
        while found := mode.pattern.search(self._buffer, at):
            if not (found[0] in mode.lines and found.start() == 0 and not self._begins_line):
                break
            at = found.start() + 1
        rest = self._buffer[found.start() :] if found else ""
        return None if any(mark != rest and mark.startswith(rest) for mark in mode.marks) else found

    def _wait(self, mode: Mode) -> None:
        """Show or drop the text that cannot be part of a mark."""
        end = self._begin_of_mark(mode)
        if mode.shows == "calls" or mode.choose:
            self._at = max(self._at, end)
            return
        before, self._buffer, self._at = self._buffer[:end], self._buffer[end:], 0
        self._show(before)

    def _begin_of_mark(self, mode: Mode) -> int:
        """Return where a mark may begin whose end is still to come; the end of the buffer if none does."""
        n_held = max((overlap(self._buffer, mark) for mark in mode.marks), default=0)
        if found := mode.pattern.search(self._buffer, self._at):  # which may become a longer one
            n_held = max(n_held, len(self._buffer) - found.start())
        return len(self._buffer) - n_held

    def _enter(self, name: str, end: int = 0) -> None:
        """Enter the mode `name` with the buffer from `end` on."""
        self._mode = mode = self._shape.modes[name]
        if end:
            self._begins_line = self._buffer[end - 1] == "\n"
        self._buffer, self._at = self._buffer[end:], 0
        self._blanks.clear()
        self._is_fresh, self._is_undecided = True, bool(mode.first)
        self._scan, self._closed_at = Brackets(mode.quotes, mode.opens), 0
        if mode.shows in ("content", "thinking"):
            self._raw = ""

    # --- what is shown ---

    def _show(self, text: str) -> None:
        mode = self._mode
        if mode.shows not in ("content", "thinking"):
            return
        if self._is_fresh and mode.skip_blanks:
            text = text.lstrip(WHITE_SPACE)
        if not text:
            return
        self._is_fresh = False
        self._begins_line = text.endswith("\n")
        if mode.hold_blanks:
            kept = text.rstrip(WHITE_SPACE)
            blanks = text[len(kept) :]
            text = "".join([*self._blanks, kept]) if kept else ""
            if kept:
                self._blanks.clear()
            self._blanks.append(blanks)
        if mode.shows == "content":
            self._add_text(text)
        elif text:
            self._parts.append(AnswerPart(thinking=text))

    def _add_text(self, text: str) -> None:
        if text:
            self._parts.append(AnswerPart(text=text))

    def _read(self, text: str, mark: str, end: int, found: str = "") -> bool:
        """Read the calls in `text`, which the mode's brackets or the mark that was `found` end at `end`."""
        mode = self._mode
        calls = mode.read(text, self._tools, self._header) if mode.read else None
        if calls is None and found and self._scan.in_string:  # the mark may be part of an argument
            self._closed_at = self._closed_at or end
            self._at = end
            return True
        if calls is None and self._closed_at:  # it was not
            text, mark, end = self._buffer[: self._closed_at], "", self._closed_at
        if calls is None and mode.broken:
            self._add_broken(mode, self._raw + text + mark)
            following = mode.broken
        else:
            self._add_calls(calls or ())
            following = mode.marks[found] if found else mode.otherwise
        self._raw = ""
        self._enter(following, end)
        return True

    def _add_broken(self, mode: Mode, text: str) -> None:
        """Show what is not a call after all as the mode that follows shows it."""
        shows = self._shape.modes[mode.broken].shows
        if text and shows == "thinking":
            self._parts.append(AnswerPart(thinking=text))
        elif shows == "content":
            self._add_text(text)

    def _add_calls(self, calls: Iterable[Call]) -> None:
        for name, arguments in calls:
            self._parts.append(AnswerPart(call=ParsedCall(name, arguments, self._n_calls)))
            self._n_calls += 1

    # --- the end of the answer ---

    def _end(self) -> bool:
        """Decide about the buffer at the end of the answer; True if a part of it is to be read again."""
        mode, text = self._mode, self._buffer
        if self._is_undecided:
            rest = text.strip(WHITE_SPACE)  # after a call: white space, or a part of its end
            is_end = self._n_calls and not mode.is_tight and any(mark.startswith(rest) for mark in mode.first)
            if self._shape.end == "none" or is_end or (mode.shows == "nothing" and not mode.broken):
                self._buffer = ""
            self._decide(mode)
            return True
        if mode.shows == "calls":
            return self._end_calls(mode, text)
        self._buffer = ""
        if mode.shows == "nothing" or mode.choose:
            if mode.unfinished == "show":
                self._add_text(self._raw + text)
        elif self._shape.end == "all" or self._shape.end == mode.shows:
            self._show(text)
        self._raw = ""
        return False

    def _end_calls(self, mode: Mode, text: str) -> bool:
        """Read or show a call that has no end."""
        self._buffer = ""
        if mode.unfinished == "drop":
            return False
        n_mark = max((overlap(text, mark) for mark in mode.marks), default=0) if mode.unfinished != "read" else 0
        read = mode.read_unfinished or mode.read
        calls = read(text[: len(text) - n_mark], self._tools, self._header) if read else None
        if calls is not None:
            self._add_calls(calls)
            return False
        if not mode.broken:
            return False
        end = self._closed_at or len(text)
        self._add_broken(mode, self._raw + text[:end])
        self._raw = ""
        self._buffer = text
        self._enter(mode.broken, end)
        return bool(self._buffer)

    def _taken(self) -> list[AnswerPart]:
        """Return the parts, neighbours of a kind joined."""
        parts, self._parts = self._parts, []
        joined: list[AnswerPart] = []
        for part in parts:
            if joined and not part.call and not joined[-1].call and bool(part.text) == bool(joined[-1].text):
                joined[-1] = AnswerPart(joined[-1].thinking + part.thinking, joined[-1].text + part.text)
            else:
                joined.append(part)
        return joined
