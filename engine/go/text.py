"""Go's rules for text: white space, quoted literals, bytes that are not UTF-8, escapes in JSON.

A Go string holds bytes.  Here a byte that is not part of valid UTF-8 is a lone surrogate (errors="surrogateescape").
"""

from __future__ import annotations

import re
import unicodedata

# unicode.IsSpace: str.isspace() without the four separators U+001C to U+001F
WHITE_SPACE = " \t\n\v\f\r\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# encoding/json writes these escaped, so that its output is safe inside HTML and JavaScript
JSON_ESCAPES = {c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def valid_text(text: str) -> str:
    """Replace every lone surrogate, that is every byte that is not UTF-8, with U+FFFD."""
    return LONE_SURROGATE.sub("\ufffd", text)


def is_print(c: str) -> bool:
    """Return whether `c` is printable by unicode.IsPrint: a letter, mark, number, punctuation, symbol, or U+0020.

    Characters that this Python's Unicode tables do not know yet count as printable, except noncharacters.
    """
    return c.isprintable() or (
        unicodedata.category(c) == "Cn" and ord(c) & 0xFFFE != 0xFFFE and not 0xFDD0 <= ord(c) <= 0xFDEF
    )


# --- quoted literals, as package strconv writes and reads them ---

_ESCAPES = {"\a": "a", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t", "\v": "v", "\\": "\\"}
_NAMED = {name: c for c, name in _ESCAPES.items()}
_ESCAPED = re.compile(r"\\(?:([abfnrtv\\'\"])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3}))")


def quote(text: str, mark: str = '"', ascii_only: bool = False) -> str:
    """Write `text` as a Go literal; a lone surrogate, which is a byte that is not UTF-8, becomes \\xNN."""
    return mark + "".join(_quoted(c, mark, ascii_only) for c in text) + mark


def _quoted(c: str, mark: str, ascii_only: bool) -> str:
    if c == mark:
        return "\\" + c
    if c in _ESCAPES:
        return "\\" + _ESCAPES[c]
    code = ord(c)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if is_print(c) and (code < 0x80 or not ascii_only):
        return c
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def unquote(literal: str) -> str:
    """Return the text of a quoted literal.  Raises: ValueError with Go's text"""
    if literal[0] == "`":
        return literal[1:-1].replace("\r", "")
    other = {'"': "'", "'": '"'}[literal[0]]
    made, at, end = bytearray(), 1, len(literal) - 1
    while at < end:
        if literal[at] != "\\":
            made += literal[at].encode("utf-8", "surrogateescape")
            at += 1
            continue
        match = _ESCAPED.match(literal, at, end)
        if not match or match[1] == other:
            raise ValueError("invalid syntax")
        named, x, u, wide, octal = match.groups()
        code = int(x or u or wide or "0", 16) if not octal else int(octal, 8)
        if code > 0x10FFFF or 0xD800 <= code < 0xE000 or (octal and code > 255):
            raise ValueError("invalid syntax")
        if named:
            made += _NAMED.get(named, named).encode()
        else:
            made += bytes([code]) if x or octal else chr(code).encode()
        at = match.end()
    return made.decode("utf-8", "surrogateescape")


def code_point(c: str) -> str:
    """Format a character as Go names it in errors: U+2764 '❤'"""
    return f"U+{ord(c):04X}" + (f" '{c}'" if is_print(c) else "")


# --- text of others on a terminal or in a log ---

# Control characters, separators of lines, and controls of direction, which can hide or forge what is shown.
# Joiners and variation selectors are left: letters and emoji consist of them.
_DIRECTION_AND_LINES = "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_UNSAFE = re.compile(f"[\0-\x1f\x7f-\x9f{_DIRECTION_AND_LINES}]")
_UNSAFE_BUT_LAYOUT = re.compile(f"[\0-\x08\x0b-\x1f\x7f-\x9f{_DIRECTION_AND_LINES}]")


def one_line(text: str) -> str:
    """Write characters that a terminal or a log must not see as escapes, newlines and tabs included."""
    return _UNSAFE.sub(lambda match: _quoted(match[0], "", False), text)


def several_lines(text: str) -> str:
    """Do the same for a text of several lines: keep newlines and tabs, and count CR LF as a newline."""
    return _UNSAFE_BUT_LAYOUT.sub(lambda match: _quoted(match[0], "", False), text.replace("\r\n", "\n"))
