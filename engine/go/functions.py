"""The functions that a template may call: Go's built-in ones and four that Ollama adds.

The kind of a parameter says how its argument arrives: "value" as it is (possibly an Interface or None), "any"
unwrapped, "string" checked to be text.  Error texts are Go's; the evaluator adds the position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote_plus

from .fmt import json_text, sprint, sprintf
from .text import is_print
from .values import Interface, Slice, Struct, element, is_nil, is_true, pointee, type_name, uint8, unwrapped


class FunctionError(Exception):
    """An error that a function reports about its arguments."""


@dataclass(frozen=True)
class GoFunction:
    """A function that a template may call.

    takes     the kinds of its parameters; if `variadic`, the last one may repeat
    call      receives all arguments as one list; if `sized`, also a callback for the length of its output
    """

    takes: tuple[str, ...]
    call: Callable[..., Any]
    variadic: bool = False
    sized: bool = False


# --- comparison ---


def _kind(value: Any) -> str:
    """Classify as bool, int, float, complex, string or uint; "" for values that cannot be ordered."""
    name = "" if value is None else type_name(value)
    kinds = {"bool": "bool", "int": "int", "uint8": "uint", "float64": "float", "complex128": "complex"}
    return "string" if isinstance(value, str) else kinds.get(name, "")


def _differ(a: Any, b: Any) -> FunctionError:
    return FunctionError(f"incompatible types for comparison: {type_name(a)} and {type_name(b)}")


def _eq(args: Sequence[Any]) -> bool:
    """Return whether the first argument equals any of the others."""
    first, *others = map(unwrapped, args)
    if not others:
        raise FunctionError("missing argument for comparison")
    return any(_equal(first, other) for other in others)


def _equal(a: Any, b: Any) -> bool:
    kinds = {_kind(a), _kind(b)}
    if len(kinds) > 1 and kinds != {"int", "uint"}:
        if a is None or b is None:
            return False
        raise _differ(a, b)
    if kinds != {""}:
        return bool(a == b)
    if is_nil(a) or is_nil(b):
        return is_nil(a) == is_nil(b)
    if type_name(a) != type_name(b) and isinstance(a, dict) != isinstance(b, dict):
        raise FunctionError(f"non-comparable types {_shown(a)}: {type_name(a)}, {type_name(b)}: {_shown(b)}")
    if isinstance(a, Struct) and isinstance(b, Struct):
        return a is b
    raise FunctionError(f"non-comparable type {_shown(b)}: {type_name(b)}")


def _shown(value: Any) -> str:
    return sprint([value])


def _ne(args: Sequence[Any]) -> bool:
    return not _equal(*map(unwrapped, args))


def _less(args: Sequence[Any]) -> bool:
    a, b = map(unwrapped, args)
    for value in (a, b):
        if not _kind(value):
            raise FunctionError("invalid type for comparison")
    kinds = {_kind(a), _kind(b)}
    if len(kinds) > 1 and kinds != {"int", "uint"}:
        raise _differ(a, b)
    if kinds & {"bool", "complex"}:
        raise FunctionError("invalid type for comparison")
    return bool(a < b)


def _less_or_equal(args: Sequence[Any]) -> bool:
    return _less(args) or _eq(args)


# --- indexing of lists, maps and text ---


def _position(index: Any, size: int) -> int:
    if index is None:
        raise FunctionError("cannot index slice/array with nil")
    if not isinstance(index, int) or isinstance(index, bool):
        raise FunctionError(f"cannot index slice/array with type {type_name(index)}")
    if not 0 <= index <= size:
        raise FunctionError(f"index out of range: {index}")
    return index


def _index(args: Sequence[Any]) -> Any:
    """Return x[1]["a"] for `index x 1 "a"`."""
    item, *indices = args
    item = unwrapped(item)
    if item is None:
        raise FunctionError("index of untyped nil")
    for index in map(unwrapped, indices):
        item = unwrapped(item)
        if item is None:
            raise FunctionError("index of nil pointer")
        if isinstance(item, dict):
            if not isinstance(index, str):
                raise FunctionError(
                    "value is nil; should be of type string"
                    if index is None
                    else f"value has type {type_name(index)}; should be string"
                )
            item = element(item, index) if index in item else Interface(None)
        elif isinstance(item, list | str | bytes):
            data = _bytes(item)
            at = _position(index, len(data))
            if at == len(data):
                raise FunctionError(f"reflect: {'string' if isinstance(item, str) else 'slice'} index out of range")
            item = element(item, at) if isinstance(item, list) else uint8(data[at])
        else:
            raise FunctionError(f"can't index item of type {type_name(item)}")
    return item


def _bytes(item: Any) -> Any:
    """Return the sequence that an index counts: the bytes of a string, the elements of a list."""
    return item.encode("utf-8", "surrogateescape") if isinstance(item, str) else item


def _slice(args: Sequence[Any]) -> Any:
    """Return x[1:2] for `slice x 1 2`."""
    item, *indices = args
    item = unwrapped(item)
    if item is None:
        raise FunctionError("slice of untyped nil")
    if len(indices) > 3:
        raise FunctionError(f"too many slice indexes: {len(indices)}")
    if not isinstance(item, list | str | bytes):
        raise FunctionError(f"can't slice item of type {type_name(item)}")
    if isinstance(item, str) and len(indices) == 3:
        raise FunctionError("cannot 3-index slice a string")
    data = _bytes(item)
    bounds = [_position(index, len(data)) for index in indices]
    start, end, *_ = [*bounds, *[0, len(data)][len(bounds) :]]
    for low, high in zip([start, end], [end, *bounds[2:]], strict=False):
        if low > high:
            raise FunctionError(f"invalid slice index: {low} > {high}")
    if isinstance(item, Slice):
        return Slice(item[start:end], item.go_type, item.is_nil, item.as_text)
    return data[start:end].decode("utf-8", "surrogateescape") if isinstance(item, str) else data[start:end]


def _len(args: Sequence[Any]) -> int:
    item = unwrapped(args[0])
    if item is None:
        is_pointer = isinstance(args[0], Interface)
        raise FunctionError("len of nil pointer" if is_pointer else "reflect: call of reflect.Value.Type on zero Value")
    if not isinstance(item, list | dict | str | bytes):
        raise FunctionError(f"len of type {type_name(item)}")
    return len(_bytes(item))


# --- text ---

ESCAPED_CHARS = 1 << 14  # at once: a list of the pieces of a character each takes ten times its text
_HTML = str.maketrans({"\0": "\ufffd", '"': "&#34;", "'": "&#39;", "&": "&amp;", "<": "&lt;", ">": "&gt;"})
_JS = {"\\": "\\\\", "'": "\\'", '"': '\\"', "<": "\\u003C", ">": "\\u003E", "&": "\\u0026", "=": "\\u003D"}


def _printed(args: Sequence[Any]) -> str:
    """Print the arguments of html, js and urlquery; a missing value and a pointer print as in an action."""
    return sprint(["<no value>" if arg is None else pointee(arg) for arg in args])


def _escaped(args: Sequence[Any], charge: Callable[[int], None], escape: Callable[[str], str]) -> str:
    """Print the arguments and `escape` them piece by piece, each charged before the next is made."""
    text, made = _printed(args), []
    for start in range(0, len(text), ESCAPED_CHARS):
        made.append(escape(text[start : start + ESCAPED_CHARS]))
        charge(len(made[-1]))
    return "".join(made)


def _html(text: str) -> str:
    return text.translate(_HTML)


def _js(text: str) -> str:
    return "".join(_JS.get(c) or (c if c >= " " and (is_print(c) or c == "\x7f") else _u(c)) for c in text)


def _u(c: str) -> str:
    return "\\uFFFD" if "\udc80" <= c <= "\udcff" else f"\\u{ord(c):04X}"


def _urlquery(text: str) -> str:
    return quote_plus(text.encode("utf-8", "surrogateescape"), safe="-_.~")


def _call(args: Sequence[Any]) -> Any:
    """Raise FunctionError: no value in a template is a function."""
    name, function = args[0], unwrapped(args[1])
    if function is None:
        raise FunctionError("call of nil")
    raise FunctionError(f"non-function {name} of type {type_name(function)}")


# --- Ollama's ---


def _date(days_ago: int) -> str:
    return (datetime.now() - timedelta(days=days_ago)).strftime("%Y-%m-%d")


def _typescript(args: Sequence[Any]) -> str:
    """Return the TypeScript type of a tool's parameter."""
    methods = args[0].methods if isinstance(args[0], Struct) else {}
    return methods["ToTypeScriptType"]() if "ToTypeScriptType" in methods else "any"


FUNCTIONS: dict[str, GoFunction] = {
    "and": GoFunction(("value", "value"), lambda args: None, variadic=True),  # `and`, `or`: done by the evaluator
    "or": GoFunction(("value", "value"), lambda args: None, variadic=True),
    "not": GoFunction(("value",), lambda args: not is_true(args[0])),
    "eq": GoFunction(("value", "value"), _eq, variadic=True),
    "ne": GoFunction(("value", "value"), _ne),
    "lt": GoFunction(("value", "value"), _less),
    "le": GoFunction(("value", "value"), _less_or_equal),
    "gt": GoFunction(("value", "value"), lambda args: not _less_or_equal(args)),
    "ge": GoFunction(("value", "value"), lambda args: not _less(args)),
    "index": GoFunction(("value", "value"), _index, variadic=True),
    "slice": GoFunction(("value", "value"), _slice, variadic=True),
    "len": GoFunction(("value",), _len),
    "print": GoFunction(("any",), sprint, variadic=True),
    "println": GoFunction(("any",), lambda args: sprint(args, line=True), variadic=True),
    "printf": GoFunction(("string", "any"), lambda args, charge: sprintf(args[0], args[1:], charge), True, sized=True),
    "html": GoFunction(("any",), lambda args, charge: _escaped(args, charge, _html), True, sized=True),
    "js": GoFunction(("any",), lambda args, charge: _escaped(args, charge, _js), True, sized=True),
    "urlquery": GoFunction(("any",), lambda args, charge: _escaped(args, charge, _urlquery), True, sized=True),
    "call": GoFunction(("value", "value"), _call, variadic=True),
    "json": GoFunction(("any",), lambda args: json_text(args[0])),
    "currentDate": GoFunction(("string",), lambda args: _date(0), variadic=True),
    "yesterdayDate": GoFunction(("string",), lambda args: _date(1), variadic=True),
    "toTypeScriptType": GoFunction(("any",), _typescript),
}
