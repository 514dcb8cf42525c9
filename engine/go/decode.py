"""Decoding of a JSON body into a dataclass, by the rules of Go's encoding/json.

Names match in any case, unknown names are ignored, and null counts as absent.  A value of the wrong type does not stop
decoding: the first such error is kept and raised at the end.  A class with a `from_json` of its own may raise at once.
So the error that the client sees is the one that Go would report.
"""

from __future__ import annotations

import binascii
import math
import string
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from .json import DecodeError, kind, loads

T = TypeVar("T")

_GO_NAMES = {
    str: "string",
    bool: "bool",
    int: "int",
    float: "float64",
    Any: "interface {}",
    bytes: "api.ImageData",
}


def decode_json(cls: type[T], body: bytes) -> T:
    """Decode `body` into an instance of the dataclass `cls`.  Raises: DecodeError with Go's text"""
    value = loads(body)
    if value is None:
        return cls()
    decoding = _Decoding()
    if not isinstance(value, dict):
        raise DecodeError(f"json: cannot unmarshal {kind(value)} into Go value of type {go_name(cls)}")
    request = decoding.struct(cls, value, go_name(cls).rpartition(".")[2], ())
    if decoding.wrong:
        raise DecodeError(decoding.wrong)
    return request


def go_name(hint: Any) -> str:
    """Return Go's name for the type that `hint` stands for."""
    hint = _without_optional(hint)
    if hint in _GO_NAMES:
        return _GO_NAMES[hint]
    if get_origin(hint) is list:
        return "[]" + go_name(get_args(hint)[0])
    if get_origin(hint) is dict:
        return f"map[string]{go_name(get_args(hint)[1])}"
    return getattr(hint, "go_name", f"api.{hint.__name__}")


@cache
def _hints(cls: type) -> dict[str, tuple[str, Any]]:
    """Map each lower-case JSON name of `cls` to (attribute, type)."""
    hints = get_type_hints(cls)
    return {f.metadata.get("json", f.name).lower(): (f.name, hints[f.name]) for f in fields(cls)}


def _without_optional(hint: Any) -> Any:
    """Return `T` for the hint `T | None`."""
    if get_origin(hint) in (Union, UnionType):
        return next(a for a in get_args(hint) if a is not type(None))
    return hint


class _Decoding:
    """The decoding of one body; `wrong` is the first type error."""

    def __init__(self) -> None:
        self.wrong: str | None = None

    def struct(self, cls: type[T], value: dict[str, Any], owner: str, path: tuple[str, ...]) -> T:
        hints = _hints(cls)  # type: ignore[arg-type]
        found = {}
        for key, item in value.items():
            if item is not None and key.lower() in hints:
                attribute, hint = hints[key.lower()]
                found[attribute] = self.value(hint, item, owner, (*path, key.lower()))
        return cls(**{k: v for k, v in found.items() if v is not _WRONG})

    def value(self, hint: Any, value: Any, owner: str, path: tuple[str, ...]) -> Any:
        """Convert `value` to `hint`; record a mismatch and return _WRONG if it has another type."""
        hint = _without_optional(hint)
        own: Callable[[Any], Any] | None = getattr(hint, "from_json", None)
        if own:
            return own(value)
        if hint is Any:
            return self.free(value, owner, path)
        if is_dataclass(hint) and isinstance(value, dict):
            return self.struct(hint, value, owner, path)  # type: ignore[arg-type]
        if get_origin(hint) is list or getattr(hint, "item", None):
            return self.items(hint, value, owner, path)
        if getattr(hint, "texts", None) and isinstance(value, dict):
            return self.open_object(hint, value, owner, path)
        if get_origin(hint) is dict and isinstance(value, dict):
            item = get_args(hint)[1]
            pairs = {k: self.value(item, v, owner, path) for k, v in value.items() if v is not None or item is Any}
            return {k: v for k, v in pairs.items() if v is not _WRONG}
        if hint is bytes and isinstance(value, str):
            return self.base64(value)
        if hint is int and isinstance(value, float):
            return self.mismatch(f"number {value:g}", hint, owner, path)
        if hint is int and type(value) is int and not -(2**63) <= value < 2**63:
            return self.mismatch(f"number {value}", hint, owner, path)
        if hint is float and type(value) is int:
            return self.mismatch("number", hint, owner, path) if _is_beyond_float64(value) else float(value)
        return value if type(value) is hint else self.mismatch(kind(value), hint, owner, path)

    def open_object(self, hint: Any, value: dict[str, Any], owner: str, path: tuple[str, ...]) -> Any:
        """Accept an object with any members of which `hint.texts` must be strings; null counts as absent there."""
        kept = hint()
        for key, item in value.items():
            name = key.lower() if key.lower() in hint.texts else key
            if name not in hint.texts:
                kept[name] = self.value(Any, item, owner, (*path, name))
            elif item is not None and (text := self.value(str, item, owner, (*path, name))) is not _WRONG:
                kept[name] = text
        return kept

    def items(self, hint: Any, value: Any, owner: str, path: tuple[str, ...]) -> Any:
        item = getattr(hint, "item", None) or get_args(hint)[0]
        if not isinstance(value, list):
            return self.mismatch(kind(value), hint, owner, path)
        if (
            item is int
            and all(type(v) is int for v in value)
            and (not value or -(2**63) <= min(value) <= max(value) < 2**63)
        ):
            return value
        got = [item() if v is None else self.value(item, v, owner, path) for v in value]
        return [v for v in got if v is not _WRONG]

    def base64(self, value: str) -> Any:
        text = value.replace("\n", "").replace("\r", "")
        try:
            return binascii.a2b_base64(text if len(text) % 4 == 0 else "=", strict_mode=True)
        except ValueError:
            self.wrong = self.wrong or f"illegal base64 data at input byte {_bad_base64(value)}"
            return _WRONG

    def free(self, value: Any, owner: str, path: tuple[str, ...]) -> Any:
        """Accept any JSON value; record a mismatch for a number that does not fit a float64."""
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        for v in inner:
            self.free(v, owner, path)
        if isinstance(value, int | float) and _is_beyond_float64(value):
            self.mismatch("number", float, owner, path)
        return value

    def mismatch(self, what: str, hint: Any, owner: str, path: tuple[str, ...]) -> Any:
        if self.wrong:
            return _WRONG
        field = ".".join((owner, *path))
        name = getattr(hint, "go_alias", None) or go_name(hint)
        self.wrong = f"json: cannot unmarshal {what} into Go struct field {field} of type {name}"
        return _WRONG


_WRONG = object()


def _is_beyond_float64(value: float) -> bool:
    """Return whether a number, of any digits, is infinite as a float64."""
    try:
        return math.isinf(float(value))
    except OverflowError:  # an integer
        return True


def _bad_base64(text: str) -> int:
    """Return the index where Go's decoder stops: the first invalid character, else the end of the last whole group."""
    alphabet = frozenset(string.ascii_letters + string.digits + "+/\r\n")
    wrong = (i for i, c in enumerate(text) if c not in alphabet and not (c == "=" and i % 4 > 1))
    return next(wrong, len(text) // 4 * 4)
