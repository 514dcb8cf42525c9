"""Chunks of a long text, cut only where no token can reach across, so that the ids are those of the whole text.

    "The grass| is green|, they say| ..."

Encoding a chunk takes some milliseconds.  Between two chunks other threads get Python's lock, and a request can be
cancelled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from ..errors import RequestError
from .vocab import SPACE

CHUNK_CHARS = 1 << 14  # about 5 ms of byte-level BPE
MAX_UNCUT_CHARS = 1 << 24  # of one chunk, which nothing can cancel: 3 s of byte-level BPE
MAX_TOKENS = 1 << 24  # of one text, a list of 0.6 GB; no model's window has as many


class Encoder(NamedTuple):
    """A vocabulary's algorithm.

    encode     text without special tokens -> ids
    boundary   matches up to a place where a text may be cut; None: such texts stay whole
    """

    encode: Callable[[str], list[int]]
    boundary: re.Pattern[str] | None = None


def chunks(text: str, boundary: re.Pattern[str] | None, size: int = CHUNK_CHARS) -> Iterator[str]:
    """Yield `text` in chunks of `size` characters and those up to the next boundary.

    Raises: RequestError for a chunk of more than MAX_UNCUT_CHARS
    """
    start = 0
    while boundary and len(text) - start > size and (cut := boundary.search(text, start + size - 1)):
        yield _bounded(text[start : cut.end()])
        start = cut.end()
    yield _bounded(text[start:])


def _bounded(chunk: str) -> str:
    if len(chunk) > MAX_UNCUT_CHARS:
        raise RequestError(
            f"the text has {len(chunk)} characters in a row where no token ends, at most {MAX_UNCUT_CHARS} are allowed"
        )
    return chunk


_LETTERS = "A-Za-z\u0400-\u0481\u4e00-\u9fa5\uac00-\ud7a3"  # of scripts with and without case or blanks
_LETTER_PROBES = ["ab", "AB", "aB", "Ab", "1ab", "<ab", " ab", "яж", "ЯЖ", "中文", "한글"]
_FOLLOWERS = ' \t\r\n<>(){}[]",;=|'


def word_boundary(word_ends: Callable[[str], set[int]]) -> re.Pattern[str] | None:
    """Find out where a pre-tokenizer always splits: between a letter and some sign or blank.

    word_ends   the ends of the words of a text
    Its expressions know characters by their class and look ahead, never behind.  So what holds for some letters of each
    kind before a sign, whatever follows, holds for all.  tests/engine/tokenizer/test_chunks.py tries them all.
    """

    def splits_before(sign: str) -> bool:
        rests = ["", sign, sign * 4, "cd", "CD", " cd", "1", "123", "\n", "\ncd", " \n\n cd", ".", "'s", "中文", "é"]
        return all(len(left) in word_ends(left + sign + rest) for left in _LETTER_PROBES for rest in rests)

    if signs := [sign for sign in _FOLLOWERS if splits_before(sign)]:
        return re.compile(f"[{_LETTERS}](?=[{re.escape(''.join(signs))}])")
    return None


def blank_boundary(pieces: Iterable[str]) -> re.Pattern[str]:
    """Return where a text with escaped blanks may be cut: before a blank, after a character that no piece has there.

    Every merge makes a piece, so none reaches across such a place.
    """
    before = set(re.findall(f"([^\ud800]){SPACE}", "\ud800".join(pieces)))  # no piece has this surrogate
    return re.compile(f"[^{re.escape(''.join(sorted(before | {SPACE})))}](?={SPACE})")
