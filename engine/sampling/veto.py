r"""Tokens that a schema forbids and the grammar allows, as a grammar cannot remember what an answer has said.

    schema                                                answer so far
    {"items": {"type": "string"}, "uniqueItems": true}    ["a", "a     the closing quote is vetoed, a letter is not
    {"properties": {"a": ...}}, other keys allowed        {"\u0061     vetoed: it would be the key "a", as another key
    {"const": 1234567890123456789}                        12346        vetoed: llguidance knows 53 bits of an integer
    {"type": "number"}                                    1e309        vetoed: it is infinite to most readers

A reader follows the answer byte by byte, and is asked what each doubtful token would do.  By the grammar the text is
JSON, and but for such keys each scalar has one spelling.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from copy import copy
from math import isinf
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import BadGrammar
from .distinct_items import Items, check_sets, items_of, key_of, spelled
from .exact_number import is_exact
from .places import flat, item_schemas, member_schemas
from .schema_check import TYPES, Schema, walk
from .schema_part import types, values

WHITE_SPACE = b" \t\r\n"
NUMBER_START, DIGITS = b"-0123456789", b"0123456789"
DIGIT, EXPONENT = re.compile(rb"[0-9-]"), re.compile(rb"[0-9.][eE]|^[eE][0-9+-]")
ENDING = {bytes([byte]) for byte in b" \t\r\n,]}"} | {b""}  # first bytes of tokens after a number, and the end
MAX_SHORT = 300  # characters of a number that is below 1e309, unless it has an exponent
COMBINING = {"$ref", "anyOf", "allOf"}
NAMING = {"properties", "required", "patternProperties"}


class _Level(NamedTuple):
    """An array or object that is open.

    parts   schemas that may apply to it
    key     the current key; None before it and in an array
    items   of an array whose items must differ
    seen    its items so far
    """

    is_object: bool
    parts: tuple[Schema, ...]
    key: str | None = None
    n: int = 0
    items: Items | None = None
    seen: frozenset[tuple[str, str]] = frozenset()


class Reader:
    """The place in an answer.  A copy may read on without the original."""

    def __init__(self, schema: Schema):
        self._root = schema
        self.has_exact = any(_digits(part) for part in _all_parts(schema))
        self.numbers: tuple[bytes, ...] | None = (
            None  # the spellings of numbers that are permitted here, if not all are
        )
        self.levels: tuple[_Level, ...] = ()
        self.partial = b""  # the string or scalar that is being read
        self.in_string = False
        self.is_escaped = False
        self.is_over = False  # of an array or object, after which other text may follow

    @property
    def level(self) -> _Level | None:
        return self.levels[-1] if self.levels else None

    @property
    def in_key(self) -> bool:
        return self.in_string and self.level is not None and self.level.is_object and self.level.key is None

    def read(self, piece: bytes) -> bool:
        """Advance by `piece`.  -> whether that is permitted, and a permitted end is left"""
        return all(self._read_byte(byte) for byte in piece) and (not self.partial or self._can_go_on())

    def may_end(self) -> bool:
        """Return whether the answer may end here, by what it says of its last number."""
        return not self.partial or self.numbers is None or self.partial in self.numbers

    def may_repeat(self) -> bool:
        """Return whether the string that is being read begins as an earlier item of its array does."""
        if b"\\" in self.partial:
            return True
        said = self.partial[1:].decode(errors="ignore")
        return any(str(json.loads(text)).startswith(said) for _, text in self.levels[-1].seen)

    def _can_go_on(self) -> bool:
        """Return whether the string or scalar that is being read can be completed."""
        if not self.in_string and self.partial[0] in NUMBER_START:
            if self.numbers is not None and not any(text.startswith(self.partial) for text in self.numbers):
                return False
            if EXPONENT.search(self.partial) or len(self.partial) > MAX_SHORT:
                return not isinf(float(self.partial + b"0" * (self.partial[-1] not in DIGITS)))
        return self._can_differ()

    def _can_differ(self) -> bool:
        level = self.level
        return level is None or level.items is None or level.items.can_differ(self.partial, level.seen)

    def _read_byte(self, byte: int) -> bool:
        if self.is_over:
            return True
        if self.in_string:
            return self._in_string(byte)
        if byte in b'"':
            self.in_string, self.partial = True, b'"'
        elif byte in b"{[":
            self._open(byte == ord("{"))
        elif byte in b"}],:" or byte in WHITE_SPACE:
            if self.partial and not self._complete():
                return False
            if byte in b"}]":
                self.levels = self.levels[:-1]
                self.is_over = not self.levels
            elif byte in b",":
                self._replace(key=None, n=self.levels[-1].n + 1)
                return self._can_differ()
        else:
            if not self.partial and self.has_exact:
                self.numbers = _numbers(flat(self._below(), self._root))
            self.partial += bytes([byte])
        return True

    def _in_string(self, byte: int) -> bool:
        if self.in_key or (self.levels and self.levels[-1].items is not None):
            self.partial += bytes([byte])  # other strings are not needed
        if self.is_escaped:
            self.is_escaped = False
            return not (self.in_key and byte in b"u/")
        if byte in b"\\":
            self.is_escaped = True
        elif byte in b'"':
            if self.in_key:
                self._replace(key=json.loads(self.partial))
                self.in_string, self.partial = False, b""
                return True
            self.in_string = False
            return self._complete()
        return True

    def _complete(self) -> bool:
        """End the string or scalar."""
        text, self.partial = self.partial, b""
        level = self.level
        if text[0] in NUMBER_START and self.numbers is not None and text not in self.numbers:
            return False
        if level is None or level.items is None:
            return True
        key = key_of(text)
        self._replace(seen=level.seen | {key})
        return key not in level.seen

    def _replace(self, **changes: Any) -> None:
        self.levels = (*self.levels[:-1], self.levels[-1]._replace(**changes))

    def _open(self, is_object: bool) -> None:
        parts = tuple(flat(self._below(), self._root))
        unique = [] if is_object else [part for part in parts if part.get("uniqueItems")]
        items = items_of(unique[0], self._root) if unique else None
        self.levels = (*self.levels, _Level(is_object, parts, items=items))

    def _below(self) -> Iterator[Any]:
        """Yield the schemas that may apply to the value at this place."""
        level = self.level
        if level is None:
            yield self._root
            return
        yield from member_schemas(level.parts, level.key) if level.is_object else item_schemas(level.parts, level.n)


Head = re.Pattern[bytes] | None


def _all_parts(schema: Schema) -> Iterator[Schema]:
    return (part for _, part in walk(schema) if isinstance(part, dict))


def _digits(part: Schema) -> bool:
    """Return whether `part` lists integers of which llguidance would not keep all digits."""
    return not all(is_exact(value) for value in (values(part) or {}).values())


def _numbers(parts: Iterator[Schema]) -> tuple[bytes, ...] | None:
    """Return the spellings of the numbers that `parts` list, if llguidance does not keep all digits of them."""
    listed = [*parts]
    if not any(map(_digits, listed)):
        return None
    numbers = [value for part in listed for (type, _), value in (values(part) or {}).items() if type == "number"]
    return tuple(map(spelled, numbers))


class Veto:
    """The tokens that may not come next in an answer to a schema.

    choices  schemas, one of which applies, as they were rewritten for the grammar; each with the text before it, if any
    pieces   the vocabulary
    tags     the tags around thinking that may come before the answer
    is_open  the prompt already contains the opening tag
    """

    def __init__(
        self,
        choices: Sequence[tuple[Head, Schema]],
        pieces: Pieces,
        tags: tuple[str, str] | None = None,
        is_open: bool = False,
    ):
        self._choices, self._pieces = choices, pieces
        self._tags = tuple(tag.encode() for tag in tags) if tags else None
        self._is_open, self._before = is_open, b""
        self._reader = None if tags or choices[0][0] else Reader(choices[0][1])
        self._has_unique = any(part.get("uniqueItems") for _, schema in choices for part in _all_parts(schema))

    def apply(self, mask: NDArray[np.bool_]) -> None:
        """Clear the tokens in `mask` that are vetoed."""
        if (reader := self._reader) is not None:
            for token in self._doubtful(mask, reader):
                piece = self._pieces.bytes[token]
                mask[token] = copy(reader).read(piece) if piece else reader.may_end()

    def accept(self, token: int) -> None:
        """Advance by `token`."""
        if self._reader:
            self._reader.read(self._pieces.bytes[token])
        else:
            self._before += self._pieces.bytes[token]
            self._start(self._after_thinking())

    def _after_thinking(self) -> bytes:
        """Return the part of the text so far that belongs to the answer."""
        text = self._before.lstrip(WHITE_SPACE)
        if self._tags and (self._is_open or self._tags[0].startswith(text[: len(self._tags[0])])):
            text = text.partition(self._tags[1])[2].lstrip(WHITE_SPACE)
        return text

    def _start(self, text: bytes) -> None:
        """Begin to read where a schema begins to apply."""
        for head, schema in self._choices:
            if head is None:
                rest = text
            else:
                found = head.match(text)
                rest = text[found.end() :].lstrip(WHITE_SPACE) if found else b""
            if rest and (head is None or rest.startswith(b"{")):
                self._reader = Reader(schema)
                self._reader.read(rest)
                return

    def _doubtful(self, mask: NDArray[np.bool_], reader: Reader) -> list[int]:
        """Return the allowed tokens that may have to be vetoed."""
        level, pieces = reader.level, self._pieces
        items = level.items if level else None
        if reader.is_escaped and reader.in_key:
            return np.flatnonzero(mask).tolist()
        if items is not None and (items.texts is not None or items.low is not None or not reader.in_string):
            return np.flatnonzero(mask).tolist()
        if not reader.in_string and (EXPONENT.search(reader.partial) or len(reader.partial) > MAX_SHORT):
            return np.flatnonzero(mask).tolist()
        kinds = [pieces.with_escape]
        if items is not None and reader.may_repeat():
            kinds.append(pieces.with_quote)
        elif items is None and self._has_unique:
            kinds.append(pieces.with_array)
        if not reader.in_string:
            kinds.append(pieces.with_digit if reader.has_exact else pieces.with_exponent)
            kinds += [pieces.ending] if reader.has_exact and reader.partial else []
        return [token for tokens in kinds for token in tokens[mask[tokens]].tolist()]


def needs_veto(schema: Schema) -> bool:
    """Return whether the grammar of a rewritten schema allows too much.

    Raises: BadGrammar if that cannot be vetoed
    """
    parts = [*_all_parts(schema)]
    if any(part.get("uniqueItems") for part in parts):
        check_sets(schema)
    if any(map(_digits, parts)) and any("allOf" in part for part in parts):
        raise BadGrammar("format: enum: integers beyond 2^53 cannot be enforced beside allOf and conditions")
    return any(
        part.get("uniqueItems")
        or (part.keys() & NAMING and part.get("additionalProperties"))
        or "number" in types(part) - (set(TYPES) if part.keys() & COMBINING else set())
        for part in parts
    )


class Pieces:
    """A vocabulary as bytes, and the tokens that may need a veto."""

    def __init__(self, pieces: list[bytes]):
        self.bytes = pieces
        self.with_escape = _having(pieces, b"\\")
        self.with_quote = _having(pieces, b'"')
        self.with_digit = np.array([id for id, piece in enumerate(pieces) if DIGIT.search(piece)], np.intp)
        self.with_exponent = np.array([id for id, piece in enumerate(pieces) if EXPONENT.search(piece)], np.intp)
        self.ending = np.array([id for id, piece in enumerate(pieces) if piece[:1] in ENDING], np.intp)
        self.with_array = np.intersect1d(_having(pieces, b"["), _having(pieces, b","))


def _having(pieces: list[bytes], part: bytes) -> NDArray[np.intp]:
    return np.array([id for id, piece in enumerate(pieces) if part in piece], np.intp)
