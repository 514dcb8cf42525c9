"""Ids to text during streaming: never part of a character, never the beginning of a stop string."""

from __future__ import annotations

import codecs
from bisect import bisect_left
from collections.abc import Collection, Sequence

from . import Tokenizer


class Detokenizer:
    """The text of one generation, a token at a time.

        stop ["STOP"]     push "the ST" -> ""     push "OP and" -> "the "     stopped

    While the end of the text may be the beginning of a stop string or part of a character, all text since the last push
    that returned something is held back; Ollama cuts its chunks in the same places.  If a token completes several stop
    strings, the text is cut before the first.  Invalid UTF-8 becomes U+FFFD, one for each longest valid prefix of a
    character (as in Python and Ollama's engine).
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str] = (), special: bool = False, shown: Collection[int] = ()
    ):
        """Set the stop strings, of which empty ones never match.

        special   include control tokens; otherwise only those in `shown`
        """
        self._piece, self._special, self._shown = tokenizer.piece, special, shown
        self._stop = sorted({text for text in stop if text})
        self._known = frozenset(self._stop)
        self._lengths = sorted({len(text) for text in self._stop})
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.met: str | None = None  # the stop string that ended the text

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found; the text is cut before it and nothing follows."""
        return self.met is not None

    def push(self, id: int) -> str:
        """Add a token and return the text that may be shown now: often its piece, sometimes more or nothing."""
        if self.stopped:
            return ""
        self._held += self._utf8.decode(self._piece(id, self._special or id in self._shown))
        if found := self._first_stop():
            at, self.met = found
            self._held = self._held[:at]
        elif self._half_a_character() or self._may_stop():
            return ""
        text, self._held = self._held, ""
        return text

    def flush(self) -> str:
        """Return the text that was held back for a stop string.  An incomplete character is dropped, as in Ollama."""
        text, self._held = self._held, ""
        self._utf8.reset()
        return text

    def _half_a_character(self) -> bool:
        return self._utf8.getstate()[0] != b""

    def _first_stop(self) -> tuple[int, str] | None:
        """Return where the first stop string begins, and the shortest there; their number does not matter."""
        held = self._held
        for at in range(len(held)) if self._stop else ():
            for n in self._lengths:
                if at + n > len(held):
                    break
                if held[at : at + n] in self._known:
                    return at, held[at : at + n]
        return None

    def _may_stop(self) -> bool:
        """Return whether the end of the text is the beginning of a stop string."""
        for at in range(len(self._held)) if self._stop else ():
            end = self._held[at:]
            after = bisect_left(self._stop, end)  # a text comes right before those that it begins
            if after < len(self._stop) and self._stop[after].startswith(end):
                return True
        return False


def is_cut(raw: bytes) -> bool:
    """Return whether `raw` ends within a character of UTF-8."""
    utf8 = codecs.getincrementaldecoder("utf-8")("replace")
    utf8.decode(raw)
    return utf8.getstate()[0] != b""


def whole_text(raw: bytes) -> str:
    """Decode `raw` without the beginning of a character at its end.  Other bytes that are not UTF-8 become U+FFFD."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(raw)
