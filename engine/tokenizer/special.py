"""Special tokens: found in a text and cut out of it before the rest is tokenized.

    "a<b>c</b>"   ->   "a", 5, "c", 6

As in llama.cpp, the longest token is cut out first, wherever it occurs, then the next one out of what is left.  Cutting
token by token takes time in proportion to tokens times fragments: a minute for 44 kB with each of Gemma 3's 6,414
tokens.  So one pass over the text finds where every token occurs, and a mask says which characters are still free.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from .vocab import Attr, Vocab

_BLANKS = " \t\n\v\f\r"  # C's isspace


class SpecialTokens:
    """The special tokens `ids` of a vocabulary, in the order in which they are cut out."""

    def __init__(self, vocab: Vocab, ids: list[int]):
        self._vocab, self._ids = vocab, ids
        # runs of one character, such as "\n\n\n", occur at every place of a longer run, so these are found one by one
        self._runs = [id for id in ids if len(set(vocab.tokens[id])) == 1]
        self._by_length: dict[str, dict[int, dict[str, int]]] = {}  # first two characters -> length -> piece -> id
        following: dict[str, set[str]] = defaultdict(set)
        for id in sorted(set(ids).difference(self._runs)):
            piece = vocab.tokens[id]
            following[piece[0]].add(piece[1])
            self._by_length.setdefault(piece[:2], {}).setdefault(len(piece), {})[piece] = id
        starts = (
            re.escape(first) + "(?=[" + "".join(map(re.escape, sorted(seconds))) + "])"
            for first, seconds in sorted(following.items())
        )
        self._start = re.compile("|".join(starts)) if following else None

    def partition(self, text: str) -> list[int | str]:
        """Split `text` into special tokens and the text between them."""
        vocab, taken = self._vocab, bytearray(len(text))
        found = self._found(text, taken)
        if not found:
            return [text] if text else []
        cuts: list[tuple[int, int, int]] = []  # start, end, id
        for id in self._ids:
            if id not in found:
                continue
            own, n, end = [], len(vocab.tokens[id]), 0
            for start in found[id]:
                if start >= end and taken.find(1, start, start + n) < 0:
                    end = start + n
                    taken[start:end] = b"\1" * n
                    own.append((start, end, id))
            cuts += own
            if attr := int(vocab.attr[id]) & (Attr.LSTRIP | Attr.RSTRIP):
                self._absorb_blanks(text, taken, own, attr)
        parts: list[int | str] = []
        at = 0
        for start, end, id in sorted(cuts):
            parts += _free(text, taken, at, start)
            parts.append(id)
            at = end
        return [*parts, *_free(text, taken, at, len(text))]

    def _found(self, text: str, taken: bytearray) -> dict[int, Iterable[int]]:
        """Return where each token occurs in `text`, from left to right; occurrences may overlap."""
        pieces = self._vocab.tokens
        found: dict[int, Iterable[int]] = {
            id: _run_starts(text, pieces[id], taken) for id in self._runs if pieces[id] in text
        }
        others: dict[int, list[int]] = defaultdict(list)
        for start in self._start.finditer(text) if self._start else ():
            at = start.start()
            for n, by_piece in self._by_length[text[at : at + 2]].items():
                id = by_piece.get(text[at : at + n])
                if id is not None:
                    others[id].append(at)
        return found | others

    @staticmethod
    def _absorb_blanks(text: str, taken: bytearray, own: list[tuple[int, int, int]], attr: int) -> None:
        """Take the blanks that the tokens at `own` absorb on either side."""
        for start, end, _ in own:
            while attr & Attr.RSTRIP and end < len(text) and not taken[end] and text[end] in _BLANKS:
                taken[end] = 1
                end += 1
            while attr & Attr.LSTRIP and start and not taken[start - 1] and text[start - 1] in _BLANKS:
                start -= 1
                taken[start] = 1


def _run_starts(text: str, piece: str, taken: bytearray) -> Iterator[int]:
    """Yield where `piece` occurs in free characters.  The caller takes each occurrence before it asks for the next."""
    at = 0
    while (at := text.find(piece, at)) >= 0:
        if (used := taken.find(1, at, at + len(piece))) < 0:
            yield at
            at += len(piece)
        elif (at := taken.find(0, used)) < 0:
            return


def _free(text: str, taken: bytearray, start: int, end: int) -> list[str]:
    """Return what is left of text[start:end] without absorbed blanks, which lie at its ends."""
    first, last = taken.find(0, start, end), taken.rfind(0, start, end)
    return [text[first : last + 1]] if first >= 0 else []
