"""Streaming output, wrapped between words on a terminal."""

from __future__ import annotations

import shutil
import unicodedata
from typing import TextIO

from wcwidth import iter_graphemes, wcswidth

from ...engine.go.text import several_lines

RIGHT_MARGIN = 5  # columns, as in Ollama
TAB_COLUMNS = 8
MAX_CLUSTER_CHARS = 32  # of a cluster that is measured; a longer one is a pile of accents
SAVE_CURSOR, RESTORE_CURSOR = "\x1b7", "\x1b8"


def text_width(out: TextIO, wordwrap: bool = True) -> int:
    """Return the columns available for text on `out`; 0 for no wrapping, as in a pipe."""
    columns = shutil.get_terminal_size().columns if wordwrap and out.isatty() else 0
    return columns - RIGHT_MARGIN if columns >= 2 * RIGHT_MARGIN else 0


class WrappedOutput:
    """Writes text to `out` as it arrives; a word that crosses column `width` is erased and moved to the next line.

    On a terminal, control characters of the text are escaped: an answer must not steer it.

    Lines break between grapheme clusters only.  Terminals disagree on the columns of clusters outside the Latin, Greek
    and Cyrillic scripts, so the cursor is saved before the first such character of a word, and erasing starts there.

    width   0: no wrapping, and no escape codes
    text    everything written so far
    """

    def __init__(self, out: TextIO, width: int = 0):
        self.out, self.width, self.text = out, width, ""
        self._column, self._cluster = 0, ""
        self._word, self._saved_at = "", -1  # the index in `_word` at which the cursor was saved, or -1
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
            self._column, self._cluster = 0, ""
            self._start_word()
            return c
        if _joins(self._cluster, c):
            before = self._save_before(c) if self._word else ""
            self._column += display_width(self._cluster + c) - display_width(self._cluster)
            self._cluster += c
            self._word += c if self._word else ""
            return before + c
        columns = TAB_COLUMNS - self._column % TAB_COLUMNS if c == "\t" else display_width(c)
        before = ""
        if self._column + columns > self.width:
            before = self._break_line(moves=not c.isspace())
            if c.isspace():
                self._cluster = ""
                self._start_word()
                return before
        self._column += columns
        self._cluster = c
        if c.isspace() or unicodedata.east_asian_width(c) in "WF":  # lines may break between wide characters
            self._start_word()
        else:
            before += self._save_before(c)
            self._word += c
        return before + c

    def _start_word(self) -> None:
        self._word, self._saved_at = "", -1

    def _save_before(self, c: str) -> str:
        """Return the code that saves the cursor before `c`, if it is the first of its word of uncertain width."""
        if self._saved_at >= 0 or _has_certain_width(c):
            return ""
        self._saved_at = len(self._word)
        return SAVE_CURSOR

    def _break_line(self, moves: bool) -> str:
        """Return the codes that end the line, and move the last word to the next one if `moves` and it is short."""
        word, saved_at = self._word, self._saved_at
        if not (moves and word and display_width(word) <= self.width // 2):
            self._column = 0
            return "\n"
        self._column = display_width(word)
        if saved_at < 0:
            return f"\x1b[{self._column}D\x1b[K\n{word}"
        certain = word[:saved_at]
        back = f"\x1b[{display_width(certain)}D" if certain else ""
        return f"{RESTORE_CURSOR}{back}\x1b[K\n{certain}{SAVE_CURSOR}{word[saved_at:]}"


def display_width(text: str) -> int:
    """Return the number of terminal columns that `text` takes, by the rules of wcwidth for grapheme clusters."""
    return len(text) if text.isascii() and text.isprintable() else max(wcswidth(text), 0)


def _joins(cluster: str, c: str) -> bool:
    """Return whether `c` belongs to the grapheme cluster before it."""
    if not cluster or c.isascii():
        return False
    return len(list(iter_graphemes(cluster[-MAX_CLUSTER_CHARS:] + c))) == 1


def _has_certain_width(c: str) -> bool:
    """Return whether every terminal shows `c` in one column: letters of Latin, Greek and Cyrillic, digits and so on."""
    return c < "\u0300" or "\u0370" <= c < "\u0483"
