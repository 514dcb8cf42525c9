"""Durations as Go reads and prints them (`5m`, `1h30m`, `-1s`), in nanoseconds, and the values of `keep_alive`.

Clients match on the error texts, so they are those of time.ParseDuration in Go 1.26.
"""

from __future__ import annotations

import re

from ..errors import BadOptions

SECOND = 1_000_000_000
FOREVER = 2**63 - 1  # Go's largest Duration, 292 years, which Ollama stores for a negative keep_alive

_UNITS = {"ns": 1, "us": 1000, "µs": 1000, "μs": 1000, "ms": 10**6, "s": SECOND, "m": 60 * SECOND, "h": 3600 * SECOND}
_NOT_PRINTABLE = re.compile("[^ -\x7f]")
_TERM = re.compile(r"([0-9]*)(?:\.([0-9]*))?([^.0-9]*)")


def parse_duration(text: str) -> int:
    """Parse a Go duration into nanoseconds: an optional sign, then decimal numbers with units; or a bare "0".

    Raises: BadOptions with Go's text for a missing number or unit, an unknown unit, or more than 63 bits.
    """
    unsigned = text[1:] if text[:1] in ("+", "-") else text
    if unsigned == "0":
        return 0
    if not unsigned:
        raise _invalid(text)
    total = at = 0
    while at < len(unsigned):
        term = _TERM.match(unsigned, at)
        assert term, "the pattern matches an empty string, hence any"
        whole, fraction, unit = term.group(1).lstrip("0"), (term[2] or "")[:19], term[3]
        if (not term[1] and not term[2]) or len(whole) > 19:
            raise _invalid(text)
        if not unit:
            raise BadOptions("keep_alive", f"time: missing unit in duration {_quoted(text)}")
        if unit not in _UNITS:
            raise BadOptions("keep_alive", f"time: unknown unit {_quoted(unit)} in duration {_quoted(text)}")
        # as in Go: the fraction keeps 63 bits of digits, is multiplied in float64 and truncated to a nanosecond
        fraction = fraction[:18] if int(fraction or 0) > FOREVER else fraction
        total += int(whole or 0) * _UNITS[unit] + int(int(fraction or 0) * (_UNITS[unit] / 10 ** len(fraction)))
        if total > FOREVER + 1:  # the first overflow ends it, whatever follows
            raise _invalid(text)
        at = term.end()
    if total > FOREVER + text.startswith("-"):
        raise _invalid(text)
    return -total if text.startswith("-") else total


def _invalid(text: str) -> BadOptions:
    return BadOptions("keep_alive", f"time: invalid duration {_quoted(text)}")


def format_duration(nanoseconds: int) -> str:
    """Format nanoseconds as Go prints a duration: `1h30m0s`, `4m59.5s`, `1.5µs`, `0s`."""
    sign, n = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    if n < SECOND:
        unit = next(unit for unit in ("ms", "µs", "ns") if n >= _UNITS[unit] or unit == "ns")
        return f"{sign}{_decimal(n, _UNITS[unit])}{unit}" if n else "0s"
    minutes, n = divmod(n, 60 * SECOND)
    hours, minutes = divmod(minutes, 60)
    return (
        sign + (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{_decimal(n, SECOND)}s"
    )


def parse_keep_alive(value: object) -> int:
    """Return the nanoseconds that a model stays loaded after its last request; FOREVER for a negative `value`.

    `value` comes from JSON: a number of seconds, possibly fractional, or a Go duration.
    Raises: BadOptions with Go's and Ollama's texts.
    """
    if isinstance(value, str):
        nanoseconds = parse_duration(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        nanoseconds = int(min(value, FOREVER / SECOND) * SECOND) if value >= 0 else -1
    else:
        kinds = {bool: "bool", list: "[]interface {}", dict: "map[string]interface {}", type(None): "<nil>"}
        raise BadOptions("keep_alive", f"Unsupported type: '{kinds.get(type(value), type(value).__name__)}'")
    return min(nanoseconds, FOREVER) if nanoseconds >= 0 else FOREVER


def _decimal(n: int, unit: int) -> str:
    """Format n / unit exactly, without trailing zeros; `unit` is a power of ten."""
    whole, rest = divmod(n, unit)
    return f"{whole}.{rest:0{len(str(unit)) - 1}}".rstrip("0").rstrip(".") if rest else f"{whole}"


def _quoted(text: str) -> str:
    """Quote `text` as Go's time package does: every byte outside printable ASCII as \\x and two digits."""
    plain = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + _NOT_PRINTABLE.sub(lambda c: "".join(f"\\x{b:02x}" for b in c[0].encode()), plain) + '"'
