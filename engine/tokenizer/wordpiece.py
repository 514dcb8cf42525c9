"""WordPiece, BERT's tokenizer: text is normalized, split into words, and these into their longest pieces.

    "Ünits, 漢字!"   ->  units | , | 漢 | 字 | !           normalized_words()
    ▁units           ->  ▁unit s                          pieces(); U+2581 begins a word in the pieces of a GGUF
    ▁zzyzx           ->  [UNK]                            the whole word, if the pieces do not cover it

Google's own files have the opposite convention: `unit ##s`, with a mark before a continuation.

The rules are llama.cpp's (llm_tokenizer_wpm_session in src/llama-vocab.cpp, commit 0c1e57098).  They differ from
Google's BertTokenizer on rare text.  Only the first code point of a character's canonical decomposition is kept, so a
Hangul syllable becomes its leading consonant.  All of \\p{M} is dropped, not only Mn.  Words have no maximum length.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

import regex

from .chunks import Encoder
from .vocab import SPACE, Vocab

_BLANK = regex.compile(r"\p{White_Space}")
_DROPPED = regex.compile("[\\p{Cc}\\p{Cf}\\p{Co}\\p{Cs}\ufffd]")
_MARK = regex.compile(r"\p{M}")
# words of their own: punctuation, ASCII symbols, and ideographs (as listed in BertTokenizer), written without blanks
_SINGLE_CHARACTER_WORD = regex.compile(
    r"[\p{P}$+<=>^`|~"
    "\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f"
    "\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f]"
)


def wordpiece_encoder(vocab: Vocab) -> Encoder:
    """Return the encoder of `vocab`."""

    def encode(text: str) -> list[int]:
        return [vocab.ids[piece] for word in normalized_words(vocab, text) for piece in pieces(vocab, word)]

    return Encoder(encode, re.compile("[ \t\r\n]"))


def normalized_words(vocab: Vocab, text: str) -> list[str]:
    """Split `text` into words, normalized as in the vocabulary."""
    lowercase, strip_accents = vocab.lowercase, vocab.strip_accents
    return "".join([_normalized(char, lowercase, strip_accents) for char in text]).split()


@lru_cache(1 << 14)
def _normalized(char: str, lowercase: bool, strip_accents: bool) -> str:
    """Normalize a character: to nothing, to a blank, or to itself, with blanks around it if it is a word of its own."""
    if strip_accents:
        char = unicodedata.normalize("NFD", char)[0]
    if _BLANK.match(char):
        return " "
    if _DROPPED.match(char) or (strip_accents and _MARK.match(char)):
        return ""
    spelled = char.lower()[0] if lowercase else char
    return f" {spelled} " if _SINGLE_CHARACTER_WORD.match(char) else spelled


def pieces(vocab: Vocab, word: str) -> list[str]:
    """Split `word` greedily into the longest matching pieces; return the unknown piece if no piece matches."""
    rest, at, found = SPACE + word, 0, []
    while at < len(rest):
        end = min(len(rest), at + vocab.longest)
        while end > at and rest[at:end] not in vocab.ids:
            end -= 1
        if end == at:
            return [vocab.tokens[vocab.roles["unk"]]]
        found.append(rest[at:end])
        at = end
    return found
