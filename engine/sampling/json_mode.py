r"""JSON mode in plain Python, byte by byte: a readable equivalent of "json" in grammar.py, and a test for it.

The state is a stack of the symbols still expected, the next one first:

    {           blanks? members
    "           chars : blanks? value more_members
    a           chars : blanks? value more_members
    "           : blanks? value more_members
    :           blanks? value more_members
    1           digits? fraction? exponent? more_members
    }           nothing: the text is complete

RULES maps each symbol to the bytes that it may begin with, and to the symbols expected after such a byte.  A symbol
with "?" is optional and may be skipped.  No byte fits two rules, so backtracking is unnecessary.  Source: RFC 8259.
"""

from __future__ import annotations

import re
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from ..tokenizer import Tokenizer

Expected = tuple[str, ...]

MEMBER = "chars : blanks? value more_members"
NUMBER = {"0": "fraction? exponent?", "[1-9]": "digits? fraction? exponent?"}
VALUE = {
    r"\{": "blanks? members",
    r"\[": "blanks? items",
    '"': "chars",
    "-": "number",
    **NUMBER,
    "t": "r u e",
    "f": "a l s e",
    "n": "u l l",
}
# symbol -> first byte, as a regular expression -> the symbols that follow
RULES: dict[str, dict[str, str]] = {
    "document": {r"\{": "blanks? members"},
    "members": {r"\}": "", '"': MEMBER},
    "more_members": {r"\}": "", ",": "blanks? member", " ": "end_of_object", "\n": "line? end_of_object"},
    "end_of_object": {r"\}": ""},
    "member": {'"': MEMBER},
    "items": {r"\]": "", **{first: f"{then} more_items" for first, then in VALUE.items()}},
    "more_items": {r"\]": "", ",": "blanks? value more_items", " ": "end_of_list", "\n": "line? end_of_list"},
    "end_of_list": {r"\]": ""},
    "value": VALUE,
    "number": NUMBER,
    "digit": {"[0-9]": ""},
    "digits?": {"[0-9]": "digits?"},
    "fraction?": {r"\.": "digit digits?"},
    "exponent?": {"[eE]": "sign? digit digits?"},
    "sign?": {"[+-]": ""},
    "chars": {
        '"': "",
        r"\\": "escaped chars",
        r"[ !#-\[\]-\x7f]": "chars",
        r"[\xc2-\xdf]": "tail chars",  # UTF-8, whose first byte determines the length; RFC 3629
        r"\xe0": "tail_a0 tail chars",  # overlong encodings are invalid
        r"[\xe1-\xec\xee\xef]": "tail tail chars",
        r"\xed": "tail_9f tail chars",  # surrogates are invalid
        r"\xf0": "tail_90 tail tail chars",
        r"[\xf1-\xf3]": "tail tail tail chars",
        r"\xf4": "tail_8f tail tail chars",  # U+10FFFF is the last
    },
    "tail": {r"[\x80-\xbf]": ""},
    "tail_a0": {r"[\xa0-\xbf]": ""},
    "tail_9f": {r"[\x80-\x9f]": ""},
    "tail_90": {r"[\x90-\xbf]": ""},
    "tail_8f": {r"[\x80-\x8f]": ""},
    "escaped": {r'["\\/bfnrt]': "", "u": "code"},
    "code": {"[0-9a-cefA-CEF]": "hex hex hex", "[dD]": "code_d"},
    "code_d": {"[0-7]": "hex hex", "[89abAB]": "hex hex backslash u d low hex hex"},  # a pair of surrogates
    "backslash": {r"\\": ""},
    "d": {"[dD]": ""},
    "low": {"[c-fC-F]": ""},
    "hex": {"[0-9a-fA-F]": ""},
    "blanks?": {" ": "", "\n": "line?"},
    "line?": {"\n": "indentation_20?", "[ \t]": "indentation_19?"},
    **{f"indentation_{n}?": {"[ \t]": f"indentation_{n - 1}?"} for n in range(1, 21)},
    "indentation_0?": {},
    **{letter: {letter: ""} for letter in "ruealsn:"},
}


def _table(rules: dict[str, str]) -> list[Expected | None]:
    """Return the symbols expected after each of the 256 bytes; None for a byte that is not allowed."""
    table: list[Expected | None] = [None] * 256
    for first, then in rules.items():
        for byte in range(256):
            if re.fullmatch(first.encode("latin-1"), bytes([byte]), re.DOTALL):
                assert table[byte] is None, f"byte {byte:#x} fits two rules"
                table[byte] = tuple(then.split())
    return table


TABLES = {thing: _table(rules) for thing, rules in RULES.items()}
START: Expected = ("document",)


def after(expected: Expected | None, byte: int) -> Expected | None:
    """Return the symbols expected after `byte`, or None if that byte is not allowed."""
    expected = expected or ()
    for i, thing in enumerate(expected):
        then = TABLES[thing][byte]
        if then is not None:
            return (*then, *expected[i + 1 :])
        if not thing.endswith("?"):
            return None
    return None


def follow(text: bytes, expected: Expected | None = START) -> Expected | None:
    """Return the symbols expected after `text`: () if it is complete, None if it is not a prefix of a JSON object."""
    return reduce(after, text, expected)


class JsonMode:
    """A Grammar for "json" that tries every token byte by byte; a mask for 128k tokens takes 0.1 s."""

    def __init__(self, tokenizer: Tokenizer):
        self._expected: Expected | None = START
        self._pieces = [
            b"" if id in tokenizer.eog else tokenizer.piece(id, special=False) for id in range(tokenizer.n_vocab)
        ]
        self._eog = tokenizer.eog

    def mask(self) -> NDArray[np.bool_]:
        """Compute which tokens may be next.  bool [n_vocab]"""
        if self._expected == ():
            return np.array([id in self._eog for id in range(len(self._pieces))])
        return np.array([piece != b"" and follow(piece, self._expected) is not None for piece in self._pieces])

    def accept(self, token: int) -> None:
        self._expected = follow(self._pieces[token], self._expected)
