"""What a Go template sees: Go's types, told by Python's.

    bool int float complex str   themselves; a string's bytes that are no UTF-8 are lone surrogates
    list dict                    what JSON holds: []interface {} and map[string]interface {}
    Slice Map Struct             the same, and structs, with a type's name of their own
    Interface(x)                 x in an interface: an element of a list or map, before it is looked into
    None                         no value at all: what looking into an empty interface gives

Interface matters to errors only: `.a.b` of a text is "can't evaluate field b in type interface {}", `$x.b` of the same
text is "... in type string", because a variable holds what was in the interface.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Interface:
    """What an interface holds; None: nothing, a nil interface."""

    value: Any


class uint8(int):
    """A byte of a string."""


class Slice(list):
    """A slice of a named type.

    is_nil    as JSON it is null
    as_text   its method String
    """

    def __init__(
        self, items: Iterable[Any], go_type: str, is_nil: bool = False, as_text: Callable[[Any], str] | None = None
    ):
        super().__init__(items)
        self.go_type, self.is_nil, self.as_text = go_type, is_nil, as_text


class Map(dict):
    """A map of a named type; `as_text` is its method String."""

    def __init__(self, items: Mapping[str, Any], go_type: str, as_text: Callable[[Any], str] | None = None):
        super().__init__(items)
        self.go_type, self.as_text = go_type, as_text


@dataclass(frozen=True, eq=False)
class Struct:
    """A struct, or a pointer to one.

    fields      in Go's order, which printing keeps
    json_names  field -> key; a key that ends in "?" is left out where the field is empty.  None: the fields' own names
    as_text     its method String
    """

    go_type: str
    fields: Mapping[str, Any]
    json_names: Mapping[str, str] | None = None
    as_text: Callable[[Any], str] | None = None
    methods: Mapping[str, Callable[[], Any]] = field(default_factory=dict)

    def for_json(self) -> dict[str, Any]:
        """Its keys and values, in order."""
        if self.json_names is None:
            return dict(self.fields)
        told = {}
        for name, key in self.json_names.items():
            value = self.fields[name]
            is_empty = value is None or (isinstance(value, str | list | dict) and not value)
            if not (key.endswith("?") and is_empty):
                told[key.removesuffix("?")] = value
        return told


def type_name(value: Any) -> str:
    """The Go type of a value that is one."""
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
    """What is in the interface, if `value` is one."""
    return value.value if isinstance(value, Interface) else value


def is_nil(value: Any) -> bool:
    """Whether `value` is nothing, or a pointer or slice to nothing."""
    value = unwrapped(value)
    return value is None or (isinstance(value, Slice) and value.is_nil)


def is_true(value: Any) -> bool:
    """What `if` makes of a value: false, 0, nil and what is empty are false."""
    value = unwrapped(value)
    return True if isinstance(value, Struct) else bool(value)


def element(container: Any, key: Any) -> Any:
    """An element of a list or a map, in an interface unless the container's type says better.  Raises: LookupError"""
    value = container[key]
    return value if isinstance(container, Slice) or isinstance(value, Struct) else Interface(value)


def go_value(value: Any) -> Any:
    """`value` as Go reads JSON into `any`: every number a float64."""
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, dict):
        return {key: go_value(item) for key, item in value.items()}
    return [go_value(item) for item in value] if isinstance(value, list) else value
