"""A search for the end of a JSON or Python value in a text that is still being written."""

from __future__ import annotations

import re

MARK = re.compile(r"""\\.|["'{}()\[\]]""", re.DOTALL)


class Brackets:
    """A search for the bracket that closes the first one; brackets within strings do not count.

    quotes   the characters that begin strings: '"' in JSON, both kinds in Python
    opens    the brackets of which the first begins the value
    """

    def __init__(self, quotes: str = '"', opens: str = "{[("):
        self._quotes, self._opens = quotes, opens
        self._quote = ""  # the one that ends the string
        self._n_open = 0
        self._at = 0

    @property
    def in_string(self) -> bool:
        return bool(self._quote)

    def find(self, text: str, stop: int) -> int | None:
        """Return where the value ends, if before `stop`.  `text` is that of the last call with more at its end."""
        while found := MARK.search(text, self._at, stop):
            mark = found[0]
            if self._quote:
                self._quote = "" if mark == self._quote else self._quote
            elif mark in self._quotes and self._n_open:
                self._quote = mark
            elif mark in "{[(":
                self._n_open += bool(self._n_open) or mark in self._opens
            elif mark in "}])" and self._n_open:
                self._n_open -= 1
                if not self._n_open:
                    return found.end()
            self._at = found.end()
        self._at = max(self._at, stop - text.endswith("\\", 0, stop))
        return None
