"""Text on its way to people: at once, and on a terminal broken between words rather than within."""

from __future__ import annotations

import shutil
import unicodedata
from typing import TextIO

MARGIN = 5  # columns left free on the right, as in Ollama


def text_width(out: TextIO, wordwrap: bool = True) -> int:
    """Columns that text may take on `out`; 0 where lines are not broken: in a pipe, or unasked."""
    columns = shutil.get_terminal_size().columns if wordwrap and out.isatty() else 0
    return columns - MARGIN if columns >= 2 * MARGIN else 0


class Wrapped:
    """Writes to `out` as text comes; a word that passes column `width` is taken back and goes on the next line.

    width   0: nothing is broken, so that no escape code ever goes into a pipe
    text    all that was put
    """

    def __init__(self, out: TextIO, width: int = 0):
        self.out, self.width, self.text = out, width, ""
        self._column, self._word = 0, ""

    def put(self, text: str) -> None:
        """Write `text`, and have it seen."""
        self.text += text
        self.out.write("".join(map(self._placed, text)) if self.width else text)
        self.out.flush()

    def __enter__(self) -> Wrapped:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the last line, if it has not ended; what failed before its first letter has none."""
        if not self.text.endswith("\n") and (self.text or kind is None):
            self.out.write("\n")
            self.out.flush()

    def _placed(self, c: str) -> str:
        """`c`, with what it takes to put it where it belongs."""
        if c == "\n":
            self._column, self._word = 0, ""
            return c
        before = ""
        if self._column + columns(c) > self.width:
            moved = self._word if columns(self._word) <= self.width // 2 and not c.isspace() else ""
            before = (f"\x1b[{columns(moved)}D\x1b[K" if moved else "") + "\n" + moved
            self._column = columns(moved)
            if c.isspace():
                self._word = ""
                return before
        self._column += columns(c)
        self._word = "" if c.isspace() or columns(c) > 1 else self._word + c  # wide letters are words of their own
        return before + c


def columns(text: str) -> int:
    """Columns of a terminal that `text` takes."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
