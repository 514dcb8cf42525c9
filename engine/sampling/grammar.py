r"""`format` -> which tokens may come next, so that an answer asked for as JSON is JSON.

    source     "json" or a schema, as a grammar that llguidance reads: an answer, maybe after thoughts
    Grammars   one for each model: its tokens as bytes, sorted by their beginnings
    Grammar    one for each answer: mask() -> sample -> accept(token)

so far               {   "na   me"   :"   1}   </s>
nothing              x
{                        x                            or a blank, a quote, the closing brace
{"na                 x   x     x     x    x           anything may stand in a string
{"name": 1}                                    x      nothing can follow

An answer is over when the model says so by an end-of-generation token, which is allowed where the text is complete and
nowhere else.  json_mode.py is the same for "json" in plain Python.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from ..errors import BadGrammar, EngineError, ModelError
from ..tokenizer import Tokenizer
from .json_schema import narrowed

Tags = tuple[str, str]

# One blank, or up to two ends of line and an indentation: with all that JSON allows, some models never go on.  It is
# what llama.cpp allows, common/json-schema-to-grammar.cpp.
BLANKS = r" |\n{1,2}[ \t]{0,20}"
JSON = rf"""
    start: object
    value: object | array | STRING | NUMBER | "true" | "false" | "null"
    object: "{{" ws (member ("," ws member)*)? "}}"
    member: STRING ws ":" ws value ws
    array: "[" ws (value ws ("," ws value ws)*)? "]"
    ws: /{BLANKS}/?
    NUMBER: /-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/
    STRING: "\"" (/[^"\\\x00-\x1f]/ | "\\" /["\\\/bfnrt]/ | "\\u" CODE)* "\""
    CODE: /[0-9a-cefA-CEF]/ HEX HEX HEX | /[dD][0-7]/ HEX HEX | /[dD][89abAB]/ HEX HEX "\\u" /[dD][c-fC-F]/ HEX HEX
    HEX: /[0-9a-fA-F]/
"""
SCHEMA = {"whitespace_pattern": BLANKS, "json_allow_general_unicode_escapes": True}
LIMITS = LLParserLimits(verbose_errors=False)
# Whose fault it is, where llguidance does not say so.
KEYWORDS = {"Pointer": "$ref", "Resource": "$ref", "regex": "pattern", "Invalid type": "type"}


def source(format: str | dict[str, Any], tags: Tags | None = None, is_open: bool = False) -> str:
    """The grammar of an answer in `format`, in llguidance's form of Lark.

    tags     what the model's thoughts stand between: it may think what it likes first, then the answer comes
    is_open  the prompt opened them already
    Raises: BadGrammar
    """
    answer = f"%lark {{{JSON}}}" if isinstance(format, str) else f"%json {_schema(format)}"
    # what can be only one text may still be several tokens, and the model chooses
    head = '%llguidance {"no_forcing": true}'
    if not tags:
        return f"{head}\nstart: answer\nanswer: {answer}"
    before, after = map(json.dumps, tags)
    return rf"""{head}
        start: {"thoughts" if is_open else f"blanks ({before} thoughts)?"} answer
        thoughts: anything blanks
        anything[suffix={after}]: /(?s:.*)/
        blanks: /[ \t\r\n]{{0,20}}/
        answer: {answer}
    """


class Grammars:
    """The constraints of one model."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._sorted: dict[frozenset[int], LLTokenizer] = {}

    def grammar(
        self,
        format: str | dict[str, Any],
        tags: Tags | None = None,
        is_open: bool = False,
        shown: frozenset[int] = frozenset(),
    ) -> Grammar:
        """The constraint of one answer.  The first one waits a second for 128k tokens to be sorted.

        format, tags, is_open   as in `source`
        shown                   control tokens that have a text, because tags are made of them
        Raises: BadGrammar, naming the keyword.
        """
        text = source(format, tags, is_open)
        matcher = LLMatcher(self._tokens(shown), text, log_level=0, limits=LIMITS)
        if not matcher.is_error():
            matcher.compute_bitmask()  # where the grammar allows nothing at all, it shows here
        if matcher.is_error():
            raise BadGrammar(_complaint(matcher.get_error()))
        return Grammar(matcher, self._tokenizer.n_vocab)

    def _tokens(self, shown: frozenset[int]) -> LLTokenizer:
        if shown not in self._sorted:
            pieces, eog = TokenizerWrapper(_Pieces(self._tokenizer, shown)), sorted(self._tokenizer.eog)
            self._sorted[shown] = LLTokenizer(pieces, n_vocab=self._tokenizer.n_vocab, eos_token=eog)
        return self._sorted[shown]


class Grammar:
    """What may come next in one answer, token by token."""

    def __init__(self, matcher: LLMatcher, n_vocab: int):
        self._matcher, self._n_vocab = matcher, n_vocab

    def mask(self) -> NDArray[np.bool_]:
        """Which tokens may be next.  bool [n_vocab]; none is true if the vocabulary cannot spell what has to come.

        Raises: EngineError when the grammar needs more than llguidance's limits allow.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise EngineError(f"format: the answer became too complex: {_complaint(self._matcher.get_error())}")
        return np.unpackbits(bits, count=self._n_vocab, bitorder="little").view(np.bool_)

    def accept(self, token: int) -> None:
        """`token` came next."""
        self._matcher.consume_token(token)


class _Pieces:
    """A vocabulary as llguidance wants it.  A token that adds nothing to a text is special, and never allowed."""

    def __init__(self, tokenizer: Tokenizer, shown: frozenset[int]):
        if not tokenizer.eog:
            raise ModelError("the vocabulary has no end-of-generation token, and a constrained answer needs one to end")
        self.bos_token_id, self.eos_token_id = tokenizer.bos, min(tokenizer.eog)
        self.tokens = [tokenizer.piece(id, special=id in shown) for id in range(tokenizer.n_vocab)]
        for id in tokenizer.eog:
            self.tokens[id] = b""  # the end is never part of a text
        self.special_token_ids = [id for id, piece in enumerate(self.tokens) if not piece]


def _schema(schema: dict[str, Any]) -> str:
    try:
        return json.dumps(narrowed(schema) | {"x-guidance": SCHEMA})
    except RecursionError:
        raise BadGrammar("format: the schema is nested too deeply") from None


def _complaint(error: str) -> str:
    """One line of what llguidance says, and the keyword it says it of.

    at 3(9): failed to compile JSON schema: regex parse error:
        (
        ^
    error: unclosed group                                       -> format: pattern: unclosed group
    """
    error = re.sub(r"^at [0-9()]+: |failed to compile JSON schema: |failed to parse \"%json\": ", "", error)
    said = error.split("\n   1 | ")[0]
    keyword = next((keyword for sign, keyword in KEYWORDS.items() if sign in said), "")
    if "NoExtension" in said:
        said = "no answer is possible: a $ref leads back to itself, or the vocabulary cannot spell one"
    lines = said.split("\n")
    last = next((line for line in lines if line.startswith("error: ")), lines[0]).removeprefix("error: ")
    return f"format: {keyword}: {last}" if keyword else f"format: {last}"
