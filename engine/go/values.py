"""Go's types in a template, represented by Python's.

    bool int float complex str   themselves; bytes of a string that are not UTF-8 are lone surrogates
    list dict                    JSON's types: []interface {} and map[string]interface {}
    Slice Map Struct             the same, and structs, with a named Go type
    Interface(x)                 x in an interface: an element of a list or map before it is unwrapped
    None                         no value: the content of an empty interface

Interface matters only to errors: `.a.b` of a string is "can't evaluate field b in type interface {}", but `$x.b` of the
same string is "... in type string", because a variable holds the unwrapped value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Interface:
    """The value in an interface; None for a nil interface."""

    value: Any


class uint8(int):
    """A byte of a string."""


class Slice(list[Any]):
    """A slice of a named type.

    is_nil    it is null as JSON
    as_text   its String method
    """

    def __init__(
        self, items: Iterable[Any], go_type: str, is_nil: bool = False, as_text: Callable[[Any], str] | None = None
    ):
        super().__init__(items)
        self.go_type, self.is_nil, self.as_text = go_type, is_nil, as_text


class Map(dict[str, Any]):
    """A map of a named type.

    is_nil    it is null as JSON
    as_text   its String method
    """

    def __init__(
        self,
        items: Mapping[str, Any],
        go_type: str,
        as_text: Callable[[Any], str] | None = None,
        *,
        is_nil: bool = False,
    ):
        super().__init__(items)
        self.go_type, self.as_text, self.is_nil = go_type, as_text, is_nil


@dataclass(frozen=True, eq=False)
class Struct:
    """A struct, or a pointer to one.

    fields      in Go's order, which printing keeps
    json_names  field -> key; a key that ends in "?" is omitted if the field is empty.  None: the fields' own names
    as_text     its String method
    """

    go_type: str
    fields: Mapping[str, Any]
    json_names: Mapping[str, str] | None = None
    as_text: Callable[[Any], str] | None = None
    methods: Mapping[str, Callable[[], Any]] = field(default_factory=dict)

    def for_json(self) -> dict[str, Any]:
        """Return its JSON keys and values, in order."""
        if self.json_names is None:
            return dict(self.fields)
        shown = {}
        for name, key in self.json_names.items():
            value = self.fields[name]
            is_empty = value is None or (isinstance(value, str | list | dict) and not value)
            if not (key.endswith("?") and is_empty):
                shown[key.removesuffix("?")] = value
        return shown


def type_name(value: Any) -> str:
    """Return the name of the Go type of `value`."""
    match value:
        case Interface():
            return "interface {}"
        case bool():
            return "bool"
        case uint8():
            return "uint8"
        case int():
            return "int"
        case float():
            return "float64"
        case complex():
            return "complex128"
        case str():
            return "string"
        case bytes():
            return "api.ImageData"
        case Slice() | Map() | Struct():
            return value.go_type
        case list():
            return "[]interface {}"
        case dict():
            return "map[string]interface {}"
    raise TypeError(f"a {type(value).__name__} has no place in a Go template")


def unwrapped(value: Any) -> Any:
    """Return the value inside an Interface, or `value` itself."""
    return value.value if isinstance(value, Interface) else value


def pointee(value: Any) -> Any:
    """Return the struct that a pointer refers to; any other value as it is."""
    held = unwrapped(value)
    if isinstance(held, Struct) and held.go_type.startswith("*"):
        return replace(held, go_type=held.go_type[1:])
    return value


def is_nil(value: Any) -> bool:
    """Return whether `value` is missing, a nil pointer, a nil slice or a nil map."""
    value = unwrapped(value)
    return value is None or (isinstance(value, Slice | Map) and value.is_nil)


def is_true(value: Any) -> bool:
    """Return whether `if` takes the branch: false, 0, nil and empty values do not."""
    value = unwrapped(value)
    return True if isinstance(value, Struct) else bool(value)


def element(container: Any, key: Any) -> Any:
    """Return an element of a list or map, in an Interface unless its type is known.  Raises: LookupError"""
    value = container[key]
    return value if isinstance(container, Slice) or isinstance(value, Struct) else Interface(value)


def go_value(value: Any) -> Any:
    """Convert `value` to Go's representation of decoded JSON, in which every number is a float64."""
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, dict):
        return {key: go_value(item) for key, item in value.items()}
    return [go_value(item) for item in value] if isinstance(value, list) else value
