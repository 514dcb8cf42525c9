r"""Constrained decoding for `format`: a mask of the tokens that keep the answer valid JSON or within a schema.

    source     builds the grammar for "json" or a schema in llguidance's syntax, optionally after thinking
    Grammars   one per model: its tokens as bytes, in a prefix tree
    Grammar    one per answer: mask() -> sample -> accept(token)

so far               {   "na   me"   :"   1}   </s>
nothing              x
{                        x                            or a blank, a quote, the closing brace
{"na                 x   x     x     x    x           any text may be part of a string
{"name": 1}                                    x      nothing may follow

An answer ends with an end-of-generation token, which is allowed only where the text is complete.  json_mode.py does the
same for "json" in plain Python.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadGrammar, EngineError, ModelError
from ..handle import RequestHandle
from ..tokenizer import Tokenizer
from .exact_number import rounded
from .forced_call import ForcedCall
from .json_schema import mapped, narrowed
from .trial import N_WALKS_OF_LARGE, TOO_COMPLEX_ANSWER, Trial, compiled, explore, progress_of
from .veto import Pieces, Veto, needs_veto

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Tags = tuple[str, str]

# One blank, or up to two line ends and an indentation, as in llama.cpp's common/json-schema-to-grammar.cpp, and in JSON
# where it has them.  With the unlimited white space of JSON, some models generate nothing else.
BLANKS = r" |\n{1,2}[ \t]{0,20}"
JSON = rf"""
    start: object
    value: object | array | STRING | NUMBER | "true" | "false" | "null"
    object: "{{" ws (member ("," ws member)* ws)? "}}"
    member: STRING ":" ws value
    array: "[" ws (value ("," ws value)* ws)? "]"
    ws: /{BLANKS}/?
    NUMBER: /-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/
    STRING: "\"" (/[^"\\\x00-\x1f]/ | "\\" /["\\\/bfnrt]/ | "\\u" CODE)* "\""
    CODE: /[0-9a-cefA-CEF]/ HEX HEX HEX | /[dD][0-7]/ HEX HEX | /[dD][89abAB]/ HEX HEX "\\u" /[dD][c-fC-F]/ HEX HEX
    HEX: /[0-9a-fA-F]/
"""
TRIAL = Trial()  # its child processes are shared by all models
SCHEMA = {"whitespace_pattern": BLANKS, "json_allow_general_unicode_escapes": False}
# The keyword that an error is about, for errors in which llguidance does not name it
KEYWORD_OF_ERROR = {"Pointer": "$ref", "Resource": "$ref", "regex": "pattern", "Invalid type": "type"}
WORDS_OF_ERROR = {
    "fuel exhausted": TOO_COMPLEX_ANSWER,
    "regex is empty": "pattern: no text matches all keywords for strings, or it takes too long to tell",
    "not disjoint": "patternProperties: a name may match two of the patterns",
    "min/maxProperties": "minProperties: it cannot be enforced beside optional properties in schemas that are combined",
}


def source(format: str | dict[str, Any] | ForcedCall, tags: Tags | None = None, is_open: bool = False) -> str:
    """Build the grammar of an answer in `format`, in llguidance's dialect of Lark.

    tags     the tags around the model's thinking: unconstrained thinking may come before the answer
    is_open  the prompt already contains the opening tag
    Raises: BadGrammar
    """
    return _framed(_rule(format, [*map(narrowed, _schemas(format))]), tags, is_open)


def _schemas(format: str | dict[str, Any] | ForcedCall) -> list[dict[str, Any]]:
    """Return the schemas that `format` consists of.  Raises: BadGrammar"""
    return format.schemas if isinstance(format, ForcedCall) else [format] if isinstance(format, dict) else []


def _rule(format: str | dict[str, Any] | ForcedCall, schemas: Sequence[dict[str, Any]]) -> str:
    """Write the body of the answer's rule; `schemas` are those of `format`, rewritten."""
    texts = [json.dumps(_plain(schema) | {"x-guidance": SCHEMA}) for schema in schemas]
    if isinstance(format, ForcedCall):
        return format.rules(texts)
    return f"%json {texts[0]}" if texts else f"%lark {{{JSON}}}"


def _framed(answer: str, tags: Tags | None, is_open: bool) -> str:
    """Write the grammar of an answer whose rule is `answer`, after thinking if there are `tags`."""
    # where only one text is possible, it may still be spelled by different tokens, and the model chooses
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
    """The grammars of one model."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._prepared: dict[frozenset[int], tuple[LLTokenizer, Pieces]] = {}

    @cached_property
    def _spelling(self) -> tuple[bool, NDArray[np.int8]]:
        """Whether some token spells each byte, and progress_of each token.  Takes 0.2 s for 262k tokens."""
        tokenizer = self._tokenizer
        ids = range(tokenizer.n_vocab)
        pieces = [b"" if id in tokenizer.eog else tokenizer.piece(id, special=False) for id in ids]
        spells_all = {piece for piece in pieces if len(piece) == 1} >= {bytes([byte]) for byte in range(256)}
        return spells_all, np.array([*map(progress_of, pieces)], np.int8)

    def grammar(
        self,
        format: str | dict[str, Any] | ForcedCall,
        tags: Tags | None = None,
        is_open: bool = False,
        shown: frozenset[int] = frozenset(),
        handle: RequestHandle | None = None,
    ) -> Grammar:
        """Compile the grammar of one answer; one with schemas is compiled on trial first.

        The first call prepares the vocabulary.

        format, tags, is_open   as in `source`
        shown                   control tokens that count as text, because tags consist of them
        handle                  the request's, which may be cancelled
        Raises: BadGrammar, naming the keyword; what ended the request
        """
        schemas = [*map(narrowed, _schemas(format))]
        rule = _rule(format, schemas)
        heads = [format.head(i) if isinstance(format, ForcedCall) else None for i in range(len(schemas))]
        tokens, pieces = self._prepare(shown)
        is_vetoed = [needs_veto(schema) for schema in schemas]
        is_followed = any(is_vetoed) and (not isinstance(format, ForcedCall) or format.form.is_json)
        veto = Veto([*zip(heads, schemas, strict=True)], pieces, tags, is_open) if is_followed else None
        if schemas and (error := TRIAL.check(_framed(rule, None, False), handle)):
            raise BadGrammar(_error_line(error))
        matcher = compiled(_framed(rule, tags, is_open), tokens)
        if matcher.is_error():
            raise BadGrammar(_error_line(matcher.get_error()))
        spells_all, progress = self._spelling
        if not spells_all:
            error = explore(matcher, progress, frozenset(self._tokenizer.eog), N_WALKS_OF_LARGE)
            if error:
                raise BadGrammar(f"format: {error} with this vocabulary")
        return Grammar(matcher, self._tokenizer.n_vocab, veto)

    def _prepare(self, shown: frozenset[int]) -> tuple[LLTokenizer, Pieces]:
        from llguidance import LLTokenizer, TokenizerWrapper

        if shown not in self._prepared:
            vocabulary, eog = _Vocabulary(self._tokenizer, shown), sorted(self._tokenizer.eog)
            tokens = LLTokenizer(TokenizerWrapper(vocabulary), n_vocab=self._tokenizer.n_vocab, eos_token=eog)
            self._prepared[shown] = tokens, Pieces(vocabulary.tokens)
        return self._prepared[shown]


class Grammar:
    """The state of one constrained answer, token by token."""

    def __init__(self, matcher: LLMatcher, n_vocab: int, veto: Veto | None = None):
        self._matcher, self._n_vocab, self._veto = matcher, n_vocab, veto

    def mask(self) -> NDArray[np.bool_]:
        """Compute which tokens may be next.  bool [n_vocab]; all False if the vocabulary cannot spell what must follow.

        Raises: EngineError when the grammar exceeds llguidance's limits.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise EngineError(f"format: the answer became too complex: {_error_line(self._matcher.get_error())}")
        mask = np.unpackbits(bits, count=self._n_vocab, bitorder="little").view(np.bool_)
        if self._veto:
            self._veto.apply(mask)
        return mask

    def accept(self, token: int) -> None:
        """Advance by `token`, which was sampled."""
        self._matcher.consume_token(token)
        if self._veto:
            self._veto.accept(token)


class _Vocabulary:
    """A vocabulary in the form that llguidance requires.  A token with an empty piece is special and never allowed."""

    def __init__(self, tokenizer: Tokenizer, shown: frozenset[int]):
        if not tokenizer.eog:
            raise ModelError("the vocabulary has no end-of-generation token, which a constrained answer requires")
        self.bos_token_id, self.eos_token_id = tokenizer.bos, min(tokenizer.eog)
        self.tokens = [tokenizer.piece(id, special=id in shown) for id in range(tokenizer.n_vocab)]
        for id in tokenizer.eog:
            self.tokens[id] = b""  # an end-of-generation token is never part of the text
        self.special_token_ids = [id for id, piece in enumerate(self.tokens) if not piece]


def _plain(schema: Any) -> Any:
    """Return the schema without what veto.py enforces."""
    if not isinstance(schema, dict):
        return schema
    return {key: value for key, value in mapped(rounded(schema), _plain).items() if key != "uniqueItems"}


def _error_line(error: str) -> str:
    """Reduce llguidance's error to one line with the keyword that caused it.

    at 3(9): failed to compile JSON schema: regex parse error:
        (
        ^
    error: unclosed group                                       -> format: pattern: unclosed group
    """
    error = re.sub(r"^at [0-9()]+: |failed to compile JSON schema: |failed to parse \"%json\": ", "", error)
    said = error.split("\n   1 | ")[0]
    keyword = next((keyword for sign, keyword in KEYWORD_OF_ERROR.items() if sign in said), "")
    for sign, words in WORDS_OF_ERROR.items():
        if sign.lower() in error.lower():
            return f"format: {words}"
    if unsatisfiable := re.search(r"Unsatisfiable schema: (.*)", error):
        return f"format: no answer matches the schema: {unsatisfiable[1]}"
    if "NoExtension" in said:
        said = "no answer is possible: a $ref refers to itself, or the vocabulary cannot spell an answer"
    lines = said.split("\n")
    last = next((line for line in lines if line.startswith("error: ")), lines[0]).removeprefix("error: ")
    return f"format: {keyword}: {last}" if keyword else f"format: {last}"
