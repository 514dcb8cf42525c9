"""Limits on the work of a chat template, which comes with a model file and so from an untrusted source.

jinja2's sandbox keeps a template away from the machine, but not from its memory (`{{ 'x' * 10**10 }}`) or its time (two
nested loops).  So a rendering has a budget.  Every operation that makes text or a list is charged for the result
*before* it makes it.  The clock is checked wherever the template loops, calls, filters or writes.

Memory  a character costs 1, an element of a list 8
Time    processor time of the rendering thread, so that a busy machine refuses nothing that an idle one allows
Both grow with the conversation, so that a long conversation is not refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, ItemsView, KeysView, Mapping, Sized, ValuesView
from time import thread_time
from typing import Any

MAX_TEXT = 1 << 16  # characters of a template; the longest of 42 published ones has 16,714
MAX_TOKENS = 20_000
MAX_NODES = 4_000  # of the syntax tree; compiling takes 0.1 ms for each, the largest published one has 1,286
BASE_CHARS = 2_000_000  # allowed for an empty conversation
CHARS_PER_CHAR = 128  # allowed in addition for each character of the conversation,
LARGE_CHARS = 1 << 16  # but from here on
CHARS_PER_LARGE_CHAR = 16  # only so many: the hungriest of 18 published templates takes 6 of a long conversation
BASE_SECONDS = 0.5
SECONDS_PER_CHAR = 1e-5
MAX_BITS = 4096  # of an integer
CHARS_PER_ELEMENT = 8

_LARGE_WIDTH = re.compile(r"%(\([^)]*\))?[^a-zA-Z%]*(\d{5,}|\*)")


class BudgetExceeded(Exception):
    """The template exceeds its budget."""


class Budget:
    """The remaining budget of one rendering; `given` are the values that the template sees."""

    def __init__(self, given: Any):
        self.left = 1 << 40
        n_given = self.weight(given)
        n_large = max(n_given - LARGE_CHARS, 0)
        self.left = BASE_CHARS + CHARS_PER_CHAR * (n_given - n_large) + CHARS_PER_LARGE_CHAR * n_large
        self.seconds = BASE_SECONDS + SECONDS_PER_CHAR * n_given
        self.deadline = thread_time() + self.seconds

    def tick(self) -> None:
        if thread_time() > self.deadline:
            raise BudgetExceeded(f"the template takes longer than {self.seconds:.1f} seconds")

    def charge(self, n: int) -> None:
        self.left -= n
        if self.left < 0:
            raise BudgetExceeded("the template makes far more text than the conversation has")

    def weight(self, value: Any) -> int:
        """Estimate how many characters `value` prints as; a value that occurs several times counts each time."""
        total, stack = 0, [value]
        while stack:
            match item := stack.pop():
                case str() | bytes():
                    total += len(item)
                case Mapping():
                    total += 8 * len(item)
                    stack += [*item.keys(), *item.values()]
                case list() | tuple() | set() | frozenset() | KeysView() | ValuesView() | ItemsView():
                    total += 4 * len(item)
                    stack += item
                case range():
                    total += 8 * len(item)
                case _ if type(item).__module__ == "jinja2.utils":  # a namespace, a cycler, a joiner
                    total += 8
                    stack += object.__getattribute__(item, "__dict__").values()
                case _:
                    total += 8
            if total > self.left:
                self.charge(total)
        return total

    def charge_for(self, made: Any) -> Any:
        """Charge for `made` and return it; it exists already, so it must be small or partly paid for."""
        if isinstance(made, str | bytes):
            self.charge(len(made))
        elif isinstance(made, list | tuple | set | dict):
            self.charge(CHARS_PER_ELEMENT * len(made))
        return made

    # charges before an operator, a method, a filter

    def operator(self, operator: str, left: Any, right: Any) -> None:
        """Charge for one of + * ** % before it is applied."""
        if operator == "+":
            self.charge(_size(left) + _size(right))
        elif operator == "*" and isinstance(left, int) and isinstance(right, int):
            self._check_bits(left.bit_length() + right.bit_length())
        elif operator == "*":
            self.charge(_size(left) * _count(right) + _size(right) * _count(left))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self._check_bits(left.bit_length() * abs(right))
        elif operator == "%" and isinstance(left, str):
            self.format(left, right)

    def format(self, form: str, *values: Any) -> None:
        if _LARGE_WIDTH.search(form):
            raise BudgetExceeded(f"a width in the format {form[:40]!r} is too large or taken from a value")
        self.charge(len(form) + self.weight(values))

    def method(self, owner: Any, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Charge for a built-in method of a string or number; return its arguments."""
        if isinstance(owner, int | float):
            self.charge(sum(_count(arg) for arg in args))  # int.to_bytes
        if not isinstance(owner, str | bytes) or name.startswith(("is", "find", "rfind", "index", "rindex", "count")):
            return args
        if name in ("startswith", "endswith"):
            return args
        match name, args:
            case "replace", (old, new, *_) if isinstance(old, type(owner)) and isinstance(new, type(owner)):
                self.charge(len(owner) + owner.count(old) * len(new))  # type: ignore[arg-type]
            case "join", (parts,):
                parts = list(parts)
                self.charge(self.weight(parts) + len(owner) * len(parts))
                return (parts,)
            case "expandtabs", (width, *_):
                self.charge(len(owner) * max(_count(width), 1))
            case "translate", _:
                raise BudgetExceeded("translate() is not allowed in a template")
            case (("split" | "rsplit"), (separator, *_)) if isinstance(separator, str) and separator:
                self.charge(len(owner) + CHARS_PER_ELEMENT * owner.count(separator))  # type: ignore[arg-type]
            case (("split" | "rsplit" | "splitlines"), _):
                self.charge(CHARS_PER_ELEMENT // 2 * len(owner))
            case _:
                self.charge(len(owner) + sum(_count(arg) for arg in args))  # ljust, center, zfill
        return args

    def filter(self, name: str, args: tuple[Any, ...], more: Mapping[str, Any]) -> tuple[Any, ...]:
        """Charge for the filter `name` and return its arguments, of which the first is the filtered value."""
        check = FILTERS.get(name)
        if check:
            return check(self, args, more) or args
        if args and isinstance(args[0], str):
            self.charge(len(args[0]) * (CHARS_PER_ELEMENT if name in ITERATING_FILTERS else 1))
        elif name in ITERATING_FILTERS and isinstance(args[0], Sized):
            self.charge(CHARS_PER_ELEMENT * len(args[0]))
        return args

    def _check_bits(self, n: int) -> None:
        if n > MAX_BITS:
            raise BudgetExceeded(f"an integer has more than {MAX_BITS} bits")


ITERATING_FILTERS = (
    "list",
    "sort",
    "unique",
    "groupby",
    "dictsort",
    "reverse",
)  # filters that iterate over the characters of a string


def _size(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    return CHARS_PER_ELEMENT * len(value) if isinstance(value, list | tuple) else 0


def _count(value: Any) -> int:
    return max(value, 0) if isinstance(value, int) else 0


def _text(args: tuple[Any, ...]) -> str:
    return args[0] if args and isinstance(args[0], str) else ""


def _argument(args: tuple[Any, ...], more: Mapping[str, Any], place: int, name: str, default: Any = 0) -> Any:
    """Return an argument of a filter, given by position (the filtered value is 0) or by name."""
    return args[place] if len(args) > place else more.get(name, default)


def _charge_printed(budget: Budget, args: tuple[Any, ...], more: Mapping[str, Any]) -> None:
    budget.charge(budget.weight(args))


def _check_compared(budget: Budget, args: tuple[Any, ...], more: Mapping[str, Any]) -> None:
    budget.weight(args)


def _require_short(budget: Budget, args: tuple[Any, ...], more: Mapping[str, Any]) -> None:
    """Limit the input of filters that take quadratic time."""
    if budget.weight([*args, *more.values()]) > 20_000:
        raise BudgetExceeded("a filter's text is longer than 20000 characters")


def _require_at_most(most: int, place: int, name: str) -> Callable[..., None]:
    def check(budget: Budget, args: tuple[Any, ...], more: Mapping[str, Any]) -> None:
        n = _argument(args, more, place, name)
        if isinstance(n, int) and abs(n) > most:
            raise BudgetExceeded(f"a filter's {name} is {str(n)[:20]}, at most {most} is allowed")
        if args and isinstance(args[0], str | Mapping | list | tuple):
            budget.charge(budget.weight(args[0]))

    return check


def _replace(budget: Budget, args: tuple[Any, ...], more: Mapping[str, Any]) -> None:
    old, new = _argument(args, more, 1, "old"), _argument(args, more, 2, "new")
    budget.charge(budget.weight(args))
    if isinstance(old, str) and isinstance(new, str):
        text = args[0] if isinstance(args[0], str) else str(args[0])
        budget.charge(text.count(old) * len(new))


def _join(budget: Budget, args: tuple[Any, ...], more: Mapping[str, Any]) -> tuple[Any, ...]:
    parts = list(args[0])
    separator = _argument(args, more, 1, "d", "")
    budget.charge(budget.weight(parts) + budget.weight(separator) * len(parts))
    return (parts, *args[1:])


def _indent(budget: Budget, args: tuple[Any, ...], more: Mapping[str, Any]) -> None:
    width = _argument(args, more, 1, "width", 4)
    width = len(width) if isinstance(width, str) else _count(width)
    budget.charge(len(_text(args)) + width)
    budget.charge((len(_text(args).splitlines()) + 1) * width)


def _sum(budget: Budget, args: tuple[Any, ...], more: Mapping[str, Any]) -> tuple[Any, ...]:
    """Limit sums of lists: adding them one by one copies the sum each time."""
    parts = list(args[0])
    if len(parts) > 1000 and not isinstance(_argument(args, more, 2, "start"), int | float):
        raise BudgetExceeded("a sum has more than 1000 lists")
    return (parts, *args[1:])


def _json(budget: Budget, args: tuple[Any, ...], more: Mapping[str, Any]) -> None:
    indent, separators = _argument(args, more, 2, "indent"), _argument(args, more, 3, "separators", ())
    if _count(indent) > 16 or budget.weight([indent, separators]) > 50:
        raise BudgetExceeded("tojson has an indent or separators longer than 16 characters")
    budget.charge(budget.weight(args[0]) * (1 + _count(indent)))


def _format(budget: Budget, args: tuple[Any, ...], more: Mapping[str, Any]) -> None:
    budget.format(str(args[0]), *args[1:], *more.values())


FILTERS: dict[str, Callable[[Budget, tuple[Any, ...], Mapping[str, Any]], tuple[Any, ...] | None]] = {
    **dict.fromkeys(
        ("string", "upper", "lower", "capitalize", "title", "trim", "e", "escape", "forceescape"), _charge_printed
    ),
    **dict.fromkeys(("truncate", "wordcount", "urlencode"), _charge_printed),
    **dict.fromkeys(("sort", "unique", "groupby", "min", "max"), _check_compared),
    **dict.fromkeys(("striptags", "urlize", "wordwrap", "xmlattr", "pprint"), _require_short),
    "tojson": _json,
    "batch": _require_at_most(10_000, 1, "linecount"),
    "slice": _require_at_most(10_000, 1, "slices"),
    "round": _require_at_most(50, 1, "precision"),
    "center": _require_at_most(10_000, 1, "width"),
    "replace": _replace,
    "join": _join,
    "indent": _indent,
    "sum": _sum,
    "format": _format,
}
