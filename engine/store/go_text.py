"""Values as Go prints them: what Ollama writes into its store and shows to people is read back by its own clients.

json     temperature 1e-07 -> 1e-7, "<b>" -> "\\u003cb\\u003e", keys in sorted order, no blanks
plain    %v:   1e-07, 4096, 1e+06, text as it is
literal  %#v:  the same numbers, text in quotes
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

ESCAPED = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})
SHORT = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    "\\": "\\\\",
    '"': '\\"',
}


def json_text(value: Any) -> str:
    """Compact JSON as encoding/json writes it; keys in sorted order, as for a Go map."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json_text(str(key))}:{json_text(value[key])}" for key in sorted(value)) + "}"
    return ordered_json_text(value)


def ordered_json_text(value: Any) -> str:
    """The same, but the keys of `value` itself stay in their order, as for a Go struct."""
    match value:
        case dict():
            return "{" + ",".join(f"{json_text(str(key))}:{json_text(item)}" for key, item in value.items()) + "}"
        case list() | tuple():
            return "[" + ",".join(map(json_text, value)) + "]"
        case float():
            return _float(value, -6, 21).replace("e-0", "e-")
        case _:
            return json.dumps(value, ensure_ascii=False).translate(ESCAPED)


def plain(value: Any) -> str:
    """%v; every number is a float64, as in Go's values of a JSON text."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return _float(float(value), -4, 6)
        case str():
            return value
        case _:
            return json_text(value)


def literal(value: Any) -> str:
    """%#v."""
    if not isinstance(value, str):
        return plain(value)
    return '"' + "".join(SHORT.get(c) or (c if c.isprintable() else _escape(ord(c))) for c in value) + '"'


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _float(x: float, low: int, high: int) -> str:
    """The shortest digits that mean `x`, with an exponent where it would be below `low` or from `high` on."""
    number = Decimal(repr(x)).normalize()
    if not number.is_finite():
        raise ValueError(f"{x} is no JSON number")
    if not number or low <= number.adjusted() < high:
        return format(number, "f")
    sign, digits, _ = number.as_tuple()
    mantissa = "".join(map(str, digits))
    point = "." if mantissa[1:] else ""
    exponent = number.adjusted()
    return f"{'-' * sign}{mantissa[0]}{point}{mantissa[1:]}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"
