"""Bounds of numbers, written so that llguidance keeps to them.

{"type": "integer", "exclusiveMinimum": 2.5}     minimum 3
{"type": "integer", "maximum": 2**63 - 1}        maximum 2**63 - 1024: llguidance reads bounds as float64
{"minimum": -3.4e38}                             minimum -9.2e18: it compares the digits of 64-bit integers
{"minimum": -0.5, "exclusiveMaximum": 0}         maximum -1e-9: it would allow -0, as 1 for 1 < x < 1.5
"""

from __future__ import annotations

from math import ceil, copysign, floor, inf, nextafter

from ..errors import BadGrammar
from .schema_check import Schema

BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
MAX_INTEGER = 2**63 - 1024  # the largest float64 below 2^63; -2^63 makes llguidance recurse without end
MAX_NUMBER = 9.2e18  # of which llguidance can compare the digits
MAX_ALONE = 1e17  # a bound without the opposite one; llguidance also needs the next power of ten
NEAR = 1e-9  # how near numbers come to an exclusive bound; llguidance does not compare more digits correctly
NEAR_RELATIVE = 2**-44


def bounded_numbers(part: Schema, root: Schema) -> Schema:
    """Rewrite the bounds in `part`.  Raises: BadGrammar if they lie beyond what can be compared"""
    if not part.keys() & set(BOUNDS):
        return part
    kept = {keyword: value for keyword, value in part.items() if keyword not in BOUNDS}
    return kept | (_integers(part) if part.get("type") == "integer" else _numbers(part))


def _integers(part: Schema) -> Schema:
    low = max(_up(part.get("minimum", -inf)), _up(part.get("exclusiveMinimum", -inf), strict=1))
    high = -max(_up(-part.get("maximum", inf)), _up(-part.get("exclusiveMaximum", inf), strict=1))
    if low > MAX_INTEGER or high < -MAX_INTEGER:
        raise BadGrammar("format: minimum: integers beyond 2^63 cannot be compared")
    bounds = {"minimum": _exact(low, inf), "maximum": _exact(high, -inf)}
    if low <= high and bounds["minimum"] > bounds["maximum"]:
        raise BadGrammar("format: minimum: integers so large cannot be told apart")
    return {keyword: int(bound) for keyword, bound in bounds.items() if abs(bound) < inf}


def _up(bound: float, strict: int = 0) -> float:
    """Return the least integer that is at least `bound`, or above it if `strict`."""
    return bound if abs(bound) == inf else floor(bound) + 1 if strict else ceil(bound)


def _exact(bound: float, towards: float) -> float:
    """Return the nearest integer `towards` a side that is a float64 and within 64 bits."""
    if abs(bound) == inf:
        return bound
    bound = min(max(bound, -MAX_INTEGER), MAX_INTEGER)
    rounded = float(bound)
    return rounded if (rounded >= bound if towards > 0 else rounded <= bound) else nextafter(rounded, towards)


def _numbers(part: Schema) -> Schema:
    low = max(part.get("minimum", -inf), _beyond(part.get("exclusiveMinimum", -inf), inf))
    high = min(part.get("maximum", inf), _beyond(part.get("exclusiveMaximum", inf), -inf))
    if low > MAX_NUMBER or high < -MAX_NUMBER:
        raise BadGrammar("format: minimum: numbers beyond 2^63 cannot be compared")
    has_low, has_high = (bool(part.keys() & {side, f"exclusive{side.capitalize()}"}) for side in ("minimum", "maximum"))
    low = max(low, -MAX_NUMBER) if has_low or high < -MAX_ALONE else low
    high = min(high, MAX_NUMBER) if has_high or low > MAX_ALONE else high
    return ({"minimum": low} if low > -inf else {}) | ({"maximum": high} if high < inf else {})


def _beyond(bound: float, towards: float) -> float:
    """Return a number next to an exclusive bound, which is then an inclusive one."""
    return bound + copysign(max(NEAR, abs(bound) * NEAR_RELATIVE), towards)
