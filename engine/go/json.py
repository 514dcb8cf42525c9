"""JSON as Go's encoding/json reads and writes it, so that clients see the error texts they know.

Reading uses Python's parser.  If that refuses the text, `syntax_error` scans the bytes as Go's scanner.go does and
returns Go's message.  Writing uses orjson and adds Go's escapes for HTML.
"""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import Any

import orjson

from .text import JSON_ESCAPES, quote, valid_text

# Of arrays and objects in one another; scanner.go allows 10,000.  What works on a decoded value does so recursively,
# and templates that print it need four of Python's 1,000 frames a level.
MAX_DEPTH = 200
MAX_VALUES = 1 << 21  # of one text; an empty list of three bytes takes 64 in memory
MAX_SCANNED_BYTES = 1 << 20  # scanned for Go's message; a sound text is read 20 times faster than a broken one scanned


class DecodeError(Exception):
    """A request body that cannot be decoded; the text is the whole answer, with status 400."""


class BodyTooLarge(DecodeError):
    """A request body above the size limit."""


class NoBody(DecodeError):
    """A request body that is empty or all white space."""


def loads(body: bytes) -> Any:
    """Decode the first JSON value in `body`; later text is ignored, and each byte that is not UTF-8 becomes U+FFFD.

    Raises: DecodeError with Go's text, also beyond MAX_DEPTH; BodyTooLarge for more than MAX_VALUES values
    """
    if _has_too_many_values(body):
        raise BodyTooLarge(f"request body exceeds the limit of {MAX_VALUES} JSON values")
    text = valid_text(body.decode("utf-8", "surrogateescape"))
    start = len(text) - len(text.lstrip(" \t\r\n"))
    if start == len(text):
        raise NoBody("missing request body")
    try:
        value, _ = _decoder.raw_decode(text, start)
    except RecursionError:
        raise DecodeError("exceeded max depth") from None
    except ValueError as error:
        if len(body) > MAX_SCANNED_BYTES:
            raise DecodeError(_short_syntax_error(text, error)) from None
        raise DecodeError(syntax_error(body) or "invalid number") from None
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _is_too_deep(value):
        raise DecodeError("exceeded max depth")
    return _replace_surrogates(value) if r"\u" in text else value


_SEPARATORS = (b",", b"[", b"{")
_STRING_OR_SEPARATOR = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[,\[{]', re.DOTALL)


def _has_too_many_values(body: bytes) -> bool:
    """Return whether `body` has more than MAX_VALUES values, told by the separators outside of strings."""
    if sum(map(body.count, _SEPARATORS)) < MAX_VALUES:
        return False
    separators = (token for token in _STRING_OR_SEPARATOR.finditer(body) if token[0] in _SEPARATORS)
    return next(islice(separators, MAX_VALUES, None), None) is not None


def _is_too_deep(value: Any) -> bool:
    """Return whether `value` has more than MAX_DEPTH levels of arrays and objects."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        nested = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [one for values in nested for one in values]
        if not nested:
            return False
    return True


def _short_syntax_error(text: str, error: ValueError) -> str:
    """Return a message for a syntax error far inside a long text, without a scan that knows what surrounds it."""
    at = error.pos if isinstance(error, json.JSONDecodeError) else -1
    if at >= len(text.rstrip()) or "Unterminated string" in str(error):
        return "unexpected EOF"
    if at < 0:
        return f"invalid value {error}"  # NaN, Infinity, or a number that Python refuses
    shown = quote(text[at], "'")
    return f"invalid character {shown} at position {at}"


def _no_constant(name: str) -> Any:
    raise ValueError(name)  # NaN and Infinity, which Python would accept


_decoder = json.JSONDecoder(parse_constant=_no_constant)


def _replace_surrogates(value: Any) -> Any:
    r"""Replace lone surrogates, which "\ud800" decodes to, with U+FFFD in all strings of `value`."""
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, list):
        return [_replace_surrogates(v) for v in value]
    if isinstance(value, dict):
        return {_replace_surrogates(k): _replace_surrogates(v) for k, v in value.items()}
    return value


def kind(value: Any) -> str:
    """Return Go's word for the type of a JSON value."""
    words = {bool: "bool", int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return words[type(value)] if value is not None else "null"


# --- Go's error messages for invalid JSON ---

_SPACE = re.compile(rb"[ \t\r\n]*")
# Single characters come last: before 3.11.5 a possessive group keeps what its last alternative consumed (gh-106052).
_STRING = re.compile(rb'(?:\\u[0-9a-fA-F]{4}|\\["\\/bfnrt]|[^"\\\x00-\x1f]++)*+')
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*+)?(?:(?<=[0-9])\.[0-9]*+)?(?:(?<=[0-9])[eE][+-]?[0-9]*+)?")


class _ScanError(Exception):
    """The position and reason at which the scanner stopped."""


def syntax_error(body: bytes) -> str | None:
    """Return Go's message for the first syntax error in `body`, or None if its first value is valid."""
    try:
        _walk(body)
    except _ScanError as stop:
        return str(stop)
    return None


def _walk(body: bytes) -> None:
    """Scan one value without recursion; `closing` is the stack of closing brackets that are still expected."""
    closing: list[bytes] = []
    at, want = 0, "value"  # value, value or ], key, key or }, after value
    while True:
        at = _skip(body, at)
        c = body[at : at + 1]
        if want in ("value", "value or ]") and not (want == "value or ]" and c == b"]"):
            if c in (b"{", b"["):
                closing.append(b"}" if c == b"{" else b"]")
                if len(closing) > MAX_DEPTH:
                    raise _ScanError("exceeded max depth")
                at, want = at + 1, "key or }" if c == b"{" else "value or ]"
                continue
            at, want = _scalar(body, at), "after value"
        elif want == "key" or (want == "key or }" and c != b"}"):
            if c != b'"':
                raise _scan_error(body, at, "looking for beginning of object key string")
            at = _skip(body, _string(body, at))
            if body[at : at + 1] != b":":
                raise _scan_error(body, at, "after object key")
            at, want = at + 1, "value"
            continue
        elif c == closing[-1]:
            closing.pop()
            at, want = at + 1, "after value"
        elif c == b"," and want == "after value":
            at, want = at + 1, "key" if closing[-1] == b"}" else "value"
            continue
        else:
            raise _scan_error(body, at, "after object key:value pair" if closing[-1] == b"}" else "after array element")
        if not closing:
            return


def _skip(body: bytes, at: int) -> int:
    return _SPACE.match(body, at).end()  # type: ignore[union-attr]


def _scan_error(body: bytes, at: int, where: str) -> _ScanError:
    if at >= len(body):
        return _ScanError("unexpected EOF")
    shown = quote(chr(body[at]), "'")  # scanner.go takes a byte for a Latin-1 character
    return _ScanError(f"invalid character {shown} {where}")


def _scalar(body: bytes, at: int) -> int:
    """Return the end of the string, number or literal that begins at `at`."""
    c = body[at : at + 1]
    if c == b'"':
        return _string(body, at)
    if c == b"-" or c.isdigit():
        return _number(body, at)
    for literal in (b"true", b"false", b"null"):
        if c == literal[:1]:
            for i, expected in enumerate(literal):
                if body[at + i : at + i + 1] != literal[i : i + 1]:
                    raise _scan_error(body, at + i, f"in literal {literal.decode()} (expecting '{chr(expected)}')")
            return at + len(literal)
    raise _scan_error(body, at, "looking for beginning of value")


def _string(body: bytes, at: int) -> int:
    end = _STRING.match(body, at + 1).end()  # type: ignore[union-attr]
    c = body[end : end + 1]
    if c == b'"':
        return end + 1
    if c != b"\\":
        raise _scan_error(body, end, "in string literal")
    if body[end + 1 : end + 2] != b"u":
        raise _scan_error(body, end + 1, "in string escape code")
    digits = re.compile(rb"[0-9a-fA-F]*").match(body, end + 2)
    raise _scan_error(body, digits.end(), r"in \u hexadecimal character escape")  # type: ignore[union-attr]


def _number(body: bytes, at: int) -> int:
    end = _NUMBER.match(body, at).end()  # type: ignore[union-attr]
    last = body[end - 1 : end]
    if last == b"-" and end == at + 1:
        raise _scan_error(body, end, "in numeric literal")
    if last == b".":
        raise _scan_error(body, end, "after decimal point in numeric literal")
    if last in (b"e", b"E", b"+", b"-"):
        raise _scan_error(body, end, "in exponent of numeric literal")
    return end


# --- writing ---

_ESCAPED = {c.encode(): escape.encode() for c, escape in JSON_ESCAPES.items()}


def dumps(value: Any) -> bytes:
    """Write compact JSON in the order of the keys, `<`, `>` and `&` escaped.  Lone surrogates become U+FFFD."""
    try:
        text = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:  # a lone surrogate, an integer beyond 64 bits, or more than 254 levels
        plain = _replace_surrogates(value)
        text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"), default=_python_value).encode()
    for character, escape in _ESCAPED.items():
        text = text.replace(character, escape)
    return text


def _python_value(value: Any) -> Any:
    """Return the Python value of an array or number of NumPy."""
    return value.tolist()
