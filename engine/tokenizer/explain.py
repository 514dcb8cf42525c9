"""Tokenization in plain Python, merge by merge: for teaching, and as the reference for the libraries.

Both kinds of vocabulary start from single characters and merge one pair of neighbours at a time until no pair is left:

    SPM   the pair whose piece has the highest score        l o w e r  ->  l ow e r  ->  low e r  ->  low er  ->  lower
    BPE   the pair that comes first in the list of merges

Ties go to the leftmost pair.  The two differ in three ways.  A character is one of the text in SPM, a byte in GPT-2's
alphabet in byte-level BPE.  Merges may span the whole text in SPM, a word of the Pre in BPE.  A character without a
piece becomes its bytes in SPM.  WordPiece does not merge: it looks up pieces in the whole word, the longest first
(wordpiece.py).  Source: llama.cpp's src/llama-vocab.cpp, commit 0c1e57098.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import regex

from . import wordpiece
from .vocab import BYTE_ALPHABET, Vocab


@dataclass(frozen=True)
class Merge:
    """One step: `left` and `right` become one symbol.

    value   the score of the merged piece (SPM), or the rank of the pair in the list of merges (BPE)
    """

    left: str
    right: str
    value: float

    def __str__(self) -> str:
        return f"{self.left} {self.right} ({self.value:g})"


@dataclass(frozen=True)
class Word:
    """A part of the text that merges do not cross: its merges, the remaining symbols and their tokens."""

    text: str
    merges: list[Merge]
    symbols: list[str]
    ids: list[int]


def explain(vocab: Vocab, text: str) -> Iterator[Word]:
    """Tokenize `text` word by word; it has no special tokens and its blanks are escaped, as by Tokenizer.fragments."""
    if vocab.model == "llama":
        scores, ids = vocab.scores, vocab.ids

        def score(left: str, right: str) -> float | None:
            id = ids.get(left + right)
            return None if id is None else -float(scores[id])  # type: ignore[index]

        symbols, merges = merge(_characters(text), score)
        merges = [Merge(m.left, m.right, -m.value) for m in merges]
        yield Word(text, merges, symbols, [id for symbol in symbols for id in _or_bytes(vocab, symbol)])
        return
    if vocab.model == "bert":
        for word in wordpiece.normalized_words(vocab, text):
            symbols = wordpiece.pieces(vocab, word)
            yield Word(word, [], symbols, [vocab.ids[symbol] for symbol in symbols])
        return

    def rank(left: str, right: str) -> int | None:
        return vocab.ranks.get((left, right))

    for word in split_words(vocab, text):
        symbols, merges = list(word), []
        whole = vocab.pre.ignore_merges or (not vocab.pre.byte_level and not word.strip("\n"))
        if whole and word in vocab.ids:
            symbols = [word]
        else:
            symbols, merges = merge(symbols, rank)
        yield Word(word, merges, symbols, [id for symbol in symbols for id in _or_bytes(vocab, symbol)])


def encode(vocab: Vocab, text: str) -> list[int]:
    """Return the ids of `text` by the same steps as `explain`."""
    return [id for word in explain(vocab, text) for id in word.ids]


def merge(symbols: list[str], value: Callable[[str, str], float | None]) -> tuple[list[str], list[Merge]]:
    """Merge neighbours in `symbols` until `value` allows no more; return the symbols left and the merges in order.

    `value` of two neighbours is the cost of merging them, or None if they do not merge.  The cheapest pair goes first,
    the leftmost of equals.  Candidates are kept in a heap; one whose symbols have changed is stale and skipped.
    """
    before = list(range(-1, len(symbols) - 1))  # index of the neighbour, -1 and len(symbols) at the ends
    after = list(range(1, len(symbols) + 1))
    symbol: list[str | None] = [*symbols, None]  # None: merged into the one on its left, or the end
    heap: list[tuple[float, int, int, str, str]] = []
    merges = []

    def offer(i: int, j: int) -> None:
        left, right = symbol[i], symbol[j]
        if i >= 0 and left is not None and right is not None:
            cost = value(left, right)
            if cost is not None:
                heapq.heappush(heap, (cost, i, j, left, right))

    for i in range(len(symbols) - 1):
        offer(i, i + 1)
    while heap:
        cost, i, j, left, right = heapq.heappop(heap)
        if symbol[i] != left or symbol[j] != right:
            continue
        merges.append(Merge(left, right, cost))
        symbol[i], symbol[j] = left + right, None
        after[i] = after[j]
        if after[i] < len(symbols):
            before[after[i]] = i
        offer(before[i], i)
        offer(i, after[i])
    return [text for text in symbol if text is not None], merges


def split_words(vocab: Vocab, text: str) -> list[str]:
    """Split `text` by the vocabulary's Pre: "Hello world" -> ["Hello", "Ġworld"]

    Byte-level words are written in GPT-2's alphabet.
    """
    parts = [text]
    for expression in vocab.pre.split:
        cut = regex.compile(expression)
        parts = [word for part in parts for word in _isolated(cut, part)]
    if vocab.pre.byte_level:
        parts = ["".join(BYTE_ALPHABET[byte] for byte in part.encode()) for part in parts]
    return parts


def _isolated(cut: regex.Pattern[str], text: str) -> Iterator[str]:
    """Yield the matches of `cut` in `text` and the text between them, in order."""
    end = 0
    for match in cut.finditer(text):
        if match.start() > end:
            yield text[end : match.start()]
        yield match.group()
        end = match.end()
    if end < len(text):
        yield text[end:]


def _characters(text: str) -> list[str]:
    """Split `text` into characters.

    Bytes that are not UTF-8 (lone surrogates, see PEP 383) are grouped as in llama.cpp, which takes the length of a
    sequence from its first byte: four for 0xFF, even if "abc" follows.
    """
    try:
        text.encode()
        return list(text)
    except UnicodeEncodeError:
        raw, characters = text.encode("utf-8", "surrogateescape"), []
        while raw:
            n = (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 4)[raw[0] >> 4]
            characters.append(raw[:n].decode("utf-8", "surrogateescape"))
            raw = raw[n:]
        return characters


def _or_bytes(vocab: Vocab, symbol: str) -> list[int]:
    """Return the id of `symbol`, or the ids of its bytes if it is not a piece.

    A byte without a token becomes UNK in SPM (where llama.cpp aborts) and nothing in BPE (as in llama.cpp, which
    looks up the bytes of the symbol's spelling: only ASCII characters are pieces of one byte).
    """
    if symbol in vocab.ids:
        return [vocab.ids[symbol]]
    if vocab.model != "llama" and vocab.pre.byte_level:
        return [vocab.ids[char] for char in symbol if char.isascii() and char in vocab.ids]
    unk = vocab.roles.get("unk") if vocab.model == "llama" else None
    ids = [vocab.byte_ids[byte] for byte in symbol.encode("utf-8", "surrogateescape")]
    return [id for id in (unk if id is None else id for id in ids) if id is not None]
