"""Streaming output, wrapped between words on a terminal."""

from __future__ import annotations

import shutil
import unicodedata
from typing import TextIO

from ...engine.go.text import several_lines

RIGHT_MARGIN = 5  # columns, as in Ollama


def text_width(out: TextIO, wordwrap: bool = True) -> int:
    """Return the columns available for text on `out`; 0 for no wrapping, as in a pipe."""
    columns = shutil.get_terminal_size().columns if wordwrap and out.isatty() else 0
    return columns - RIGHT_MARGIN if columns >= 2 * RIGHT_MARGIN else 0


class WrappedOutput:
    """Writes text to `out` as it arrives; a word that crosses column `width` is erased and moved to the next line.

    On a terminal, control characters of the text are escaped: an answer must not steer it.

    width   0: no wrapping, and no escape codes
    text    everything written so far
    """

    def __init__(self, out: TextIO, width: int = 0):
        self.out, self.width, self.text = out, width, ""
        self._column, self._word = 0, ""
        self._is_terminal = out.isatty()

    def put(self, text: str) -> None:
        """Write `text` and flush."""
        self.text += text
        text = several_lines(text) if self._is_terminal else text
        self.out.write("".join(map(self._place, text)) if self.width else text)
        self.out.flush()

    def __enter__(self) -> WrappedOutput:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the last line with a newline, unless an error came before any text."""
        if not self.text.endswith("\n") and (self.text or kind is None):
            self.out.write("\n")
            self.out.flush()

    def _place(self, c: str) -> str:
        """Return `c` with the line break and escape codes that its position requires."""
        if c == "\n":
            self._column, self._word = 0, ""
            return c
        before = ""
        if self._column + display_width(c) > self.width:
            moved = self._word if display_width(self._word) <= self.width // 2 and not c.isspace() else ""
            before = (f"\x1b[{display_width(moved)}D\x1b[K" if moved else "") + "\n" + moved
            self._column = display_width(moved)
            if c.isspace():
                self._word = ""
                return before
        self._column += display_width(c)
        self._word = (
            "" if c.isspace() or display_width(c) > 1 else self._word + c
        )  # lines may break between wide characters
        return before + c


def display_width(text: str) -> int:
    """Return the number of terminal columns that `text` takes."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
