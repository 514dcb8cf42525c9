"""Ids to text while they stream: never half a character, never what may be the beginning of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence

from . import Tokenizer


class Detokenizer:
    """The text of one generation, a token at a time.

        stop ["STOP"]     push "the ST" -> ""     push "OP and" -> "the "     stopped

    Text is shown token by token.  While its end may be the beginning of a stop string, or half a character, all that
    has not been shown yet is held back; this is where Ollama cuts its chunks.  Where a token completes several stop
    strings, the text is cut before the first.  Bytes that can't become UTF-8 are U+FFFD, one for each longest beginning
    of a character (so Python, and Ollama's engine).
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str] = (), special: bool = False, shown: Collection[int] = ()
    ):
        """`special`: control tokens are shown, else only those in `shown`.  Empty stop strings never match."""
        self._piece, self._special, self._shown = tokenizer.piece, special, shown
        self._stop = [text for text in stop if text]
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.met: str | None = None  # the stop string that ended the text

    @property
    def stopped(self) -> bool:
        """A stop string was met; the text is cut before it, and nothing follows."""
        return self.met is not None

    def push(self, id: int) -> str:
        """The text that `id` makes safe to show; often its piece, sometimes more, or nothing yet."""
        if self.stopped:
            return ""
        self._held += self._utf8.decode(self._piece(id, self._special or id in self._shown))
        found = [(at, stop) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            at, self.met = min(found)
            self._held = self._held[:at]
        elif self._half_a_character() or self._may_stop():
            return ""
        text, self._held = self._held, ""
        return text

    def flush(self) -> str:
        """What was held back in case of a stop string.  Half a character at the very end is dropped, as Ollama does."""
        text, self._held = self._held, ""
        self._utf8.reset()
        return text

    def _half_a_character(self) -> bool:
        return self._utf8.getstate()[0] != b""

    def _may_stop(self) -> bool:
        longest = len(self._held) + 1
        return any(self._held.endswith(stop[:n]) for stop in self._stop for n in range(1, min(len(stop), longest)))
