"""WordPiece, BERT's tokenizer: a text loses case and accents, is cut into words, and these into their longest pieces.

    "Ünits, 漢字!"   ->  units | , | 漢 | 字 | !           words()
    ▁units           ->  ▁unit s                          pieces(); U+2581 begins a word in the pieces of a GGUF
    ▁zzyzx           ->  [UNK]                            where the pieces do not make up a word, the whole of it

Google's own files spell it the other way round: `unit ##s`, a mark before what continues a word.

This is llama.cpp's reading (llm_tokenizer_wpm_session in src/llama-vocab.cpp, commit 0c1e57098).  It leaves Google's
(BertTokenizer) on rare text: of a character's canonical decomposition it keeps the first code point alone, so a Hangul
syllable becomes its leading consonant; it drops all of \\p{M}, not only Mn; and it knows no longest word.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import lru_cache

import regex

from .vocab import SPACE, Vocab

_BLANK = regex.compile(r"\p{White_Space}")
_NOTHING = regex.compile("[\\p{Cc}\\p{Cf}\\p{Co}\\p{Cs}\ufffd]")
_MARK = regex.compile(r"\p{M}")
# words of their own: punctuation, ASCII symbols, and ideographs (as BertTokenizer lists them), which no blanks part
_ALONE = regex.compile(
    r"[\p{P}$+<=>^`|~"
    "\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f"
    "\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f]"
)


def wordpiece_encoder(vocab: Vocab) -> Callable[[str], list[int]]:
    """Text without special tokens -> ids."""
    return lambda text: [vocab.ids[piece] for word in normalized_words(vocab, text) for piece in pieces(vocab, word)]


def normalized_words(vocab: Vocab, text: str) -> list[str]:
    """The words of `text`, as the vocabulary spells them."""
    lowercase, strip_accents = vocab.lowercase, vocab.strip_accents
    return "".join([_spelled(char, lowercase, strip_accents) for char in text]).split()


@lru_cache(1 << 14)
def _spelled(char: str, lowercase: bool, strip_accents: bool) -> str:
    """What becomes of a character: nothing, a blank, or itself, with blanks around it if it is a word of its own."""
    if strip_accents:
        char = unicodedata.normalize("NFD", char)[0]
    if _BLANK.match(char):
        return " "
    if _NOTHING.match(char) or (strip_accents and _MARK.match(char)):
        return ""
    spelled = char.lower()[0] if lowercase else char
    return f" {spelled} " if _ALONE.match(char) else spelled


def pieces(vocab: Vocab, word: str) -> list[str]:
    """The longest piece that begins `word`, then the longest that continues it, and so on; or the unknown piece."""
    rest, found = SPACE + word, []
    while rest:
        n = min(len(rest), vocab.longest)
        while n and rest[:n] not in vocab.ids:
            n -= 1
        if n == 0:
            return [vocab.tokens[vocab.roles["unk"]]]
        found.append(rest[:n])
        rest = rest[n:]
    return found
