"""Printing of values as Go's packages fmt and encoding/json do it.

sprintf("%-5s|%5.1f|%q", ["ab", 2.5, "x"])   ab   |  2.5|"x"
sprint(["a", 1, 2, "b"])                     a1 2b
json_text({"b": 1.0, "a": "<"})              {"a":"\\u003c","b":1}
text_of_value(1000000)                       1e+06
literal_of_value("a")                        "a"

A value that a verb cannot print raises no error: `%d` of a string gives `%!d(string=ab)`.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from .text import JSON_ESCAPES, LONE_SURROGATE, is_print, quote
from .values import Map, Slice, Struct, go_value, type_name, uint8, unwrapped

MAX_WIDTH = 1_000_000  # the limit of a precision too; print.go tooLarge


def sprint(values: Sequence[Any], line: bool = False) -> str:
    """Print `values` by %v, with a space between neighbours of which neither is a string; in a `line`, between all."""
    printed = list[str]()
    for i, value in enumerate(values):
        if i and (line or not (isinstance(value, str) or isinstance(values[i - 1], str))):
            printed.append(" ")
        printed.append(_Verb("v").print(value))
    return "".join(printed) + "\n" * line


def sprintf(form: str, values: Sequence[Any], charge: Callable[[int], None] = lambda n: None) -> str:
    """Format `values` by the format string `form`.  `charge` is called with each part's length before it is made."""
    return _Format(form, values, charge).print()


@dataclass(eq=False)
class _Format:
    """One pass over a format string; print.go doPrintf.

    argument   index of the next argument
    jumped     an argument was selected by number, as in %[2]d; then unused arguments are no error
    is_good    the last number selected an existing argument
    """

    form: str
    values: Sequence[Any]
    charge: Callable[[int], None]
    at: int = 0
    argument: int = 0
    jumped: bool = False
    is_good: bool = True

    def print(self) -> str:
        printed = list[str]()
        while (percent := self.form.find("%", self.at)) >= 0:
            printed.append(self.form[self.at : percent])
            self.at = percent + 1
            printed.append(self._verb())
        printed.append(self.form[self.at :])
        if not self.jumped and self.argument < len(self.values):
            extra = ", ".join(_typed(value, _Verb("v")) for value in self.values[self.argument :])
            printed.append(f"%!(EXTRA {extra})")
        return "".join(printed)

    def _verb(self) -> str:
        complaint, self.is_good = "", True
        start = self.at
        while self._peek() in tuple("#0+- "):
            self.at += 1
        flags = set(self.form[start : self.at])
        indexed = self._index()
        width, is_star = self._number()
        if is_star:
            complaint += "" if width is not None else "%!(BADWIDTH)"
            if width is not None and width < 0:
                flags.add("-")
                width = -width
        elif indexed and width is not None:
            self.is_good = False  # %[3]2d
        indexed = indexed and not is_star
        precision: int | None = None
        if self._peek() == ".":
            self.at += 1
            self.is_good = self.is_good and not indexed
            indexed = self._index()
            precision, is_star = self._number()
            if is_star and (precision is None or precision < 0):
                precision = None
                complaint += "%!(BADPREC)"
            elif not is_star:
                precision = precision or 0
            indexed = indexed and not is_star
        if not indexed:
            self._index()
        if self.at >= len(self.form):
            return complaint + "%!(NOVERB)"
        verb = self.form[self.at]
        self.at += 1
        if verb == "%":
            return complaint + "%"
        if not self.is_good:
            return f"{complaint}%!{verb}(BADINDEX)"
        if self.argument >= len(self.values):
            return f"{complaint}%!{verb}(MISSING)"
        value = self.values[self.argument]
        self.argument += 1
        if verb == "v":  # %#v prints Go syntax, %+v prints field names
            flags = {{"#": "go", "+": "names"}.get(flag, flag) for flag in flags}
        return complaint + _Verb(verb, frozenset(flags), width, precision, self.charge).print(value)

    def _peek(self) -> str:
        return self.form[self.at : self.at + 1]

    def _index(self) -> bool:
        """Read %[n] if it stands here, and return whether it does."""
        if self._peek() != "[":
            return False
        self.jumped = True
        end = self.form.find("]", self.at)
        if end < 0 or self.at + 3 > len(self.form):
            self.at, self.is_good = self.at + 1, False
            return False
        digits = self.form[self.at + 1 : end]
        self.at = end + 1
        is_number = re.fullmatch("[0-9]{1,7}", digits) is not None and int(digits) <= MAX_WIDTH
        if is_number and 1 <= int(digits) <= len(self.values):
            self.argument = int(digits) - 1
        else:
            self.is_good = False
        return is_number

    def _number(self) -> tuple[int | None, bool]:
        """Read a width or precision; return it and whether it came from an argument."""
        if self._peek() == "*":
            self.at += 1
            value = self.values[self.argument] if self.argument < len(self.values) else None
            self.argument = min(self.argument + 1, len(self.values))
            if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_WIDTH:
                return value, True
            return None, True
        digits = re.compile("[0-9]*").match(self.form, self.at)[0]  # type: ignore[index]
        if len(digits.lstrip("0")) > 7 or int(digits or 0) > 10 * MAX_WIDTH + 9:  # Go checks before the last digit
            self.at = len(self.form)
            return None, False
        self.at += len(digits)
        return (int(digits) if digits else None), False


@dataclass(frozen=True)
class _Verb:
    """A verb with its flags: %-8.3f is verb f, flags {-}, width 8, precision 3."""

    verb: str
    flags: frozenset[str] = frozenset()
    width: int | None = None
    precision: int | None = None
    charge: Callable[[int], None] = field(default=lambda n: None)

    def print(self, value: Any, depth: int = 0) -> str:
        """Format one value; print.go printArg and printValue.

        depth  number of enclosing lists, maps and structs
        """
        value = unwrapped(value)
        verb, go_like = self.verb, "go" in self.flags
        if verb == "T" and not depth:
            return self._pad("<nil>" if value is None else type_name(value)[: self.precision])
        if value is None and (depth or verb == "v"):
            return self._pad("<nil>") if not depth else "interface {}(nil)" if go_like else "<nil>"
        match value:
            case None:
                return f"%!{verb}(<nil>)"
            case _ if verb in ("w", "p"):  # for errors and addresses, which no value here is
                return self._refuse(value)
            case bool():
                return self._pad(str(value).lower()) if verb in "tv" else self._refuse(value)
            case int():
                return self._int(value)
            case float():
                return self._float(value, verb) if verb in "vbgGxXfFeE" else self._refuse(value)
            case complex():
                if verb not in "vbgGxXfFeE":
                    return self._refuse(value)
                signed = _Verb(self.verb, self.flags | {"+"}, self.width, self.precision, self.charge)
                return f"({self._float(value.real, verb)}{signed._float(value.imag, verb)}i)"
            case str():
                return self._text(value)
            case Slice() | Map() | Struct() if value.as_text and verb in "vsxXq" and not go_like:
                return self._text(value.as_text(value))
            case bytes() if verb in "sxXq":
                return self._text(value.decode("utf-8", "surrogateescape"))
        name = type_name(value) if go_like else ""
        opening, comma, closing = ("{", ", ", "}") if go_like or isinstance(value, Struct) else ("[", " ", "]")
        if isinstance(value, Struct):
            address = "" if depth or not value.go_type.startswith("*") else "&"
            comma, name = comma if go_like else " ", address + name.removeprefix("*")
            named = go_like or "names" in self.flags
            inner = [(f"{key}:" if named else "") + self.print(item, depth + 1) for key, item in value.fields.items()]
        elif isinstance(value, dict):
            inner = [f"{self.print(key, depth + 1)}:{self.print(value[key], depth + 1)}" for key in sorted(value)]
            opening = opening if go_like else "map["
        else:
            inner = [self.print(item, depth + 1) for item in value]
        return name + opening + comma.join(inner) + closing

    def _refuse(self, value: Any) -> str:
        plain = _Verb("v", self.flags, self.width, self.precision, self.charge)
        return f"%!{self.verb}({_typed(value, plain)})"

    def _int(self, value: int) -> str:
        match self.verb:
            case "v" if "go" in self.flags and isinstance(value, uint8):
                return self._digits(value, "x", "0x")
            case "v" | "d":
                return self._digits(value, "d", "")
            case "b" | "o" | "x" | "X":
                prefix = {"b": "0b", "o": "0", "x": "0x", "X": "0X"}[self.verb] if "#" in self.flags else ""
                return self._digits(value, self.verb, prefix)
            case "O":
                return self._digits(value, "o", "0o0" if "#" in self.flags else "0o")
            case "c" | "q":
                rune = chr(value) if 0 <= value <= 0x10FFFF and not 0xD800 <= value < 0xE000 else "\ufffd"
                return self._pad(rune if self.verb == "c" else quote(rune, "'", "+" in self.flags))
            case "U":
                shown = f"U+{value % (1 << 64):0{max(self.precision or 0, 4)}X}"
                rune = chr(value) if 0 <= value <= 0x10FFFF else ""
                return self._pad(shown + (f" '{rune}'" if "#" in self.flags and rune and is_print(rune) else ""), " ")
        return self._refuse(value)

    def _digits(self, value: int, base: str, prefix: str) -> str:
        sign = "-" if value < 0 else "+" if "+" in self.flags else " " if " " in self.flags else ""
        if self.precision == 0 and value == 0:
            return self._pad("", " ")
        least = self.precision
        if least is None and "0" in self.flags and "-" not in self.flags and self.width is not None:
            least = self.width - len(sign)
        self.charge(least or 0)
        digits = format(abs(value), base).rjust(least or 0, "0")
        if base == "o" and digits[0] == "0":  # the flag # requires a leading zero, which is already there
            prefix = prefix.removesuffix("0")
        return self._pad(sign + prefix + digits, " ")

    def _float(self, value: float, verb: str) -> str:
        self.charge(self.precision or 0)
        shown = _float_text(value, "g" if verb == "v" else verb, self.precision)
        sign, digits = ("-", shown[1:]) if shown[0] == "-" else ("+", shown)
        if sign == "+" and " " in self.flags and "+" not in self.flags:
            sign = " "
        if not math.isfinite(value):
            wants_sign = "+" in self.flags or " " in self.flags or (sign == "-" and value == value)
            return self._pad((sign if wants_sign else "") + digits, " ")
        if "#" in self.flags and verb != "b":
            digits = _with_point(digits, verb, self.precision)
        if "+" in self.flags or sign != "+":
            if "0" in self.flags and "-" not in self.flags and self.width is not None:
                digits = digits.rjust(self.width - 1, "0")
            return self._pad(sign + digits)
        return self._pad(digits)

    def _text(self, value: str) -> str:
        match self.verb:
            case "v" if "go" in self.flags:
                return self._pad(quote(value[: self.precision]))
            case "v" | "s":
                return self._pad(value[: self.precision])
            case "q":
                cut = value[: self.precision]
                if "#" in self.flags and not re.search("[`\x00-\x08\x0a-\x1f\x7f\ufeff\udc80-\udcff]", cut):
                    return self._pad(f"`{cut}`")
                return self._pad(quote(cut, ascii_only="+" in self.flags))
            case "x" | "X":
                data = value.encode("utf-8", "surrogateescape")[: self.precision]
                prefix = "0x" if "#" in self.flags and data else ""
                between = f" {prefix}" if " " in self.flags else ""
                shown = prefix + between.join(f"{byte:02x}" for byte in data)
                return self._pad(shown.upper() if self.verb == "X" else shown)
        return self._refuse(value)

    def _pad(self, shown: str, fill: str = "") -> str:
        missing = (self.width or 0) - len(shown)
        if missing <= 0:
            return shown
        self.charge(missing)
        if "-" in self.flags:
            return shown + " " * missing
        return (fill or ("0" if "0" in self.flags else " ")) * missing + shown


def _typed(value: Any, verb: _Verb) -> str:
    return "<nil>" if value is None else f"{type_name(value)}={verb.print(value)}"


# --- numbers ---


def _float_text(value: float, verb: str, precision: int | None) -> str:
    """Format a float as strconv.FormatFloat does.  Without a precision: the shortest digits; six for e and f."""
    if not math.isfinite(value):
        return "NaN" if value != value else "-Inf" if value < 0 else "Inf"
    if verb in "eE" or verb in "fF":
        return format(value, f".{6 if precision is None else precision}{verb}")
    if verb in "gG" and precision is not None:
        return format(value, f".{precision}{verb}")
    if verb in "gG":
        shown = shortest(value, -4, 6)
        return shown.upper() if verb == "G" else shown
    if verb == "b":
        exponent = max(math.frexp(value)[1] - 53, -1074) if value else -1074
        return f"{int(math.ldexp(value, -exponent))}p{exponent:+d}"
    shown = _hexadecimal(value, precision)
    return shown.upper() if verb == "X" else shown


def shortest(value: float, low: int, high: int) -> str:
    """Format `value` in the fewest digits that identify it, with an exponent below 10**`low` and from 10**`high` on."""
    number = Decimal(repr(value)).normalize()
    if not number or low <= number.adjusted() < high:
        return format(number, "f") if number else "-0" if math.copysign(1, value) < 0 else "0"
    sign, digits, _ = number.as_tuple()
    mantissa = "".join(map(str, digits))
    exponent = number.adjusted()
    point = "." if mantissa[1:] else ""
    return f"{'-' * sign}{mantissa[0]}{point}{mantissa[1:]}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"


def _hexadecimal(value: float, precision: int | None) -> str:
    """Format as 0x1.8p+01: one digit before the point, `precision` digits after it, or as many as needed."""
    if not value:
        return (
            ("-" if math.copysign(1, value) < 0 else "") + "0x0" + ("." + "0" * precision if precision else "") + "p+00"
        )
    mantissa, exponent = math.frexp(abs(value))
    bits, exponent = int(mantissa * 2**53), exponent - 1  # 53 bits: one before the point, 52 after
    if precision is not None and precision < 13:
        drop = 52 - 4 * precision
        half, rest = 1 << (drop - 1), bits & ((1 << drop) - 1)
        bits >>= drop
        bits += rest > half or (rest == half and bits & 1)
        bits <<= drop
        if bits >> 53:
            bits, exponent = bits >> 1, exponent + 1
    after = f"{bits & (1 << 52) - 1:013x}"
    after = after.rstrip("0") if precision is None else after.ljust(precision, "0")[:precision]
    sign = "-" if value < 0 else ""
    return f"{sign}0x1{'.' if after else ''}{after}p{'-' if exponent < 0 else '+'}{abs(exponent):02d}"


def _with_point(digits: str, verb: str, precision: int | None) -> str:
    """Add the decimal point and the zeros that the flag # requests; format.go fmtFloat."""
    mantissa, tail = digits, ""
    if match := re.search("[pP]" if verb in "xX" else "[eE]", digits):
        mantissa, tail = digits[: match.start()], digits[match.start() :]
    wanted = (6 if precision is None else precision) if verb in "vgGx" else 0
    significant = mantissa.replace(".", "").lstrip("0")
    missing = wanted - len(significant)
    if "." not in mantissa:
        missing -= mantissa == "0"
        mantissa += "."
    return mantissa + "0" * missing + tail


# --- JSON ---

_ESCAPED = str.maketrans(JSON_ESCAPES)


def json_text(value: Any) -> str:
    """Write compact JSON as encoding/json does: sorted keys for a map, field order for a struct, `<>&` escaped."""
    match unwrapped(value):
        case Struct() as struct:
            return _object(struct.for_json().items())
        case Slice(go_type="api.PropertyType") as types if len(types) == 1:
            return json_text(types[0])
        case Slice(is_nil=True) | Map(is_nil=True):
            return "null"
        case dict() as map:
            return _object(sorted(map.items()))
        case list() as items:
            return "[" + ",".join(json_text(item) for item in items) + "]"
        case float() as number:
            if not math.isfinite(number):
                return ""  # Ollama drops the error
            return shortest(number, -6, 21).replace("e-0", "e-")
        case bytes() as image:
            return json.dumps(base64.b64encode(image).decode())
        case str() as text:
            return LONE_SURROGATE.sub(r"\\ufffd", json.dumps(text, ensure_ascii=False).translate(_ESCAPED))
        case complex():
            return ""
        case plain:
            return json.dumps(plain)


def _object(items: Any) -> str:
    return "{" + ",".join(f"{json_text(str(key))}:{json_text(value)}" for key, value in items) + "}"


def ordered_json_text(value: Any) -> str:
    """Write compact JSON that keeps the order of `value`'s own keys, as for a Go struct; nested maps are sorted."""
    return json_text(Struct("", value) if isinstance(value, dict) else value)


def text_of_value(value: Any) -> str:
    """Format by %v; every number is a float64, as in a value that Go decoded from JSON."""
    return json_text(value) if isinstance(value, dict | list) else sprint([go_value(value)])


def literal_of_value(value: Any) -> str:
    """Format by %#v: like %v, but a string is quoted."""
    return quote(value) if isinstance(value, str) else text_of_value(value)
