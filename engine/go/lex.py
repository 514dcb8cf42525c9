"""Lexer for Go templates, as in text/template/parse.

    Hi {{- .Name | printf "%q" }}    text "Hi", {{, .Name, space, |, space, printf, space, "%q", }}

A dash beside a blank inside the braces trims the white space outside them.  Blanks inside an action are tokens too,
because `.A.B` is a field of a field, but `.A .B` are two operands.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from .text import code_point, quote

BLANKS = " \t\r\n"
DIGIT_OR_END = ("", *"0123456789")
KEYWORDS = frozenset("block break continue define else end if nil range template with .".split())


@dataclass(frozen=True, slots=True)
class Lexeme:
    """A token.

    kind   text {{ }} space | ( ) := = variable field identifier bool char number complex string raw error EOF, or a
           keyword; any other character is "character"
    value  the token's text, or the error message
    start  offset in the template
    """

    kind: str
    value: str
    start: int

    def __str__(self) -> str:
        if self.kind in ("EOF", "error"):
            return self.value
        if self.kind in KEYWORDS:
            return f"<{self.value}>"
        return f"{quote(self.value[:10])}..." if len(self.value.encode()) > 10 else quote(self.value)  # Go counts bytes


class _LexError(Exception):
    """An error message, and the offset of the token that caused it."""


def tokens(text: str) -> Iterator[Lexeme]:
    """Split `text` into tokens; the last one is EOF or an error."""
    at = 0
    while (opening := text.find("{{", at)) >= 0:
        trims = _trims_left(text, opening + 2)
        before = text[at:opening].rstrip(BLANKS) if trims else text[at:opening]
        if before:
            yield Lexeme("text", before, at)
        inside = opening + 4 if trims else opening + 2
        try:
            if text.startswith("/*", inside):
                at = _after_comment(text, inside)
                continue
            yield Lexeme("{{", "{{", opening)
            at = yield from _action(text, inside)
        except _LexError as bad:
            yield Lexeme("error", *bad.args)
            return
    if at < len(text):
        yield Lexeme("text", text[at:], at)
    yield Lexeme("EOF", "EOF", len(text))


def _action(text: str, at: int) -> Generator[Lexeme, None, int]:
    """Yield the tokens of an action including its closing braces; return the offset after it."""
    depth = 0
    while True:
        closing = _closing(text, at)
        if closing and depth:
            raise _LexError("unclosed left paren", at)
        if closing:
            end = at + closing
            yield Lexeme("}}", "}}", end - 2)
            return _skip_blanks(text, end) if closing == 4 else end
        token = _word(text, at)
        depth += (token.kind == "(") - (token.kind == ")")
        if depth < 0:
            raise _LexError("unexpected right paren", at)
        yield token
        at += len(token.value)


def _word(text: str, at: int) -> Lexeme:
    """Return the token at `at`, which is inside an action and not at its end."""
    c = text[at : at + 1]
    if not c:
        raise _LexError("unclosed action", at)
    if c in BLANKS:
        end = _skip_blanks(text, at)
        return Lexeme("space", text[at : end - 1 if end - at > 1 and _closing(text, end - 1) == 4 else end], at)
    if c == ":" and text[at + 1 : at + 2] != "=":
        raise _LexError("expected :=", at)
    for sign in (":=", "=", "|", "(", ")"):
        if text.startswith(sign, at):
            return Lexeme(sign, sign, at)
    if c in QUOTED:
        kind, pattern, name = QUOTED[c]
        if not (match := pattern.match(text, at)):
            raise _LexError(f"unterminated {name}", at)
        return Lexeme(kind, match[0], at)
    if c in "+-0123456789" or (c == "." and text[at + 1 : at + 2] in DIGIT_OR_END):
        return _number(text, at)
    if c in ".$" or _is_alphanumeric(c):
        end = at + (c in ".$")
        while end < len(text) and _is_alphanumeric(text[end]):
            end += 1
        if end < len(text) and text[end] not in BLANKS + ".,|:()" and not text.startswith("}}", end):
            raise _LexError(f"bad character {code_point(text[end])}", at)
        return Lexeme(_kind(text[at:end]), text[at:end], at)
    if c.isascii() and c.isprintable():
        return Lexeme("character", c, at)
    raise _LexError(f"unrecognized character in action: {code_point(c)}", at)


def _kind(word: str) -> str:
    if word in KEYWORDS:
        return word
    if word in ("true", "false"):
        return "bool"
    return {"$": "variable", ".": "field"}.get(word[0], "identifier")


QUOTED = {
    '"': ("string", re.compile(r'"(?:[^"\\\n]|\\[^\n])*+"'), "quoted string"),
    "`": ("raw", re.compile(r"`[^`]*+`"), "raw quoted string"),
    "'": ("char", re.compile(r"'(?:[^'\\\n]|\\[^\n])*+'"), "character constant"),
}
_DECIMAL = r"(?:[0-9_]*(?:\.[0-9_]*)?(?:[eE][+-]?[0-9_]*)?)"
_HEXADECIMAL = r"(?:0[xX][0-9a-fA-F_]*(?:\.[0-9a-fA-F_]*)?(?:[pP][+-]?[0-9_]*)?)"
_NUMBER = re.compile(rf"[+-]?(?:{_HEXADECIMAL}|0[oO][0-7_]*(?:\.[0-7_]*)?|0[bB][01_]*(?:\.[01_]*)?|{_DECIMAL})i?")


def _number(text: str, at: int) -> Lexeme:
    """Return a token that looks like a number; the parser checks that it is valid."""
    end = _NUMBER.match(text, at).end()  # type: ignore[union-attr]
    kind = "number"
    if not _is_alphanumeric(text[end : end + 1]) and text[end : end + 1] in ("+", "-"):  # 1+2i
        kind, end = "complex", _NUMBER.match(text, end).end()  # type: ignore[union-attr]
        if text[end - 1] != "i":
            end += _is_alphanumeric(text[end : end + 1])
            raise _LexError(f"bad number syntax: {quote(text[at:end])}", at)
    if _is_alphanumeric(text[end : end + 1]):
        raise _LexError(f"bad number syntax: {quote(text[at : end + 1])}", at)
    return Lexeme(kind, text[at:end], at)


def _after_comment(text: str, at: int) -> int:
    end = text.find("*/", at + 2)
    if end < 0:
        raise _LexError("unclosed comment", at)
    closing = _closing(text, end + 2)
    if not closing:
        raise _LexError("comment ends before closing delimiter", at)
    return _skip_blanks(text, end + 2 + closing) if closing == 4 else end + 2 + closing


def _trims_left(text: str, at: int) -> bool:
    return text[at : at + 1] == "-" and text[at + 1 : at + 2] in tuple(BLANKS)


def _closing(text: str, at: int) -> int:
    """Return the length of the delimiter that ends an action at `at`: 2 for `}}`, 4 for ` -}}`, else 0."""
    if text.startswith("}}", at):
        return 2
    return 4 if text.startswith("-}}", at + 1) and text[at] in BLANKS else 0


def _skip_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at] in BLANKS:
        at += 1
    return at


def _is_alphanumeric(c: str) -> bool:
    return c == "_" or c.isalpha() or c.isdecimal()
