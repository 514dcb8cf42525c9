r"""The form of a call, read off the text that a template renders for calls with known names and arguments.

<tool_call>\n<function=probe_one>\n<parameter=a_text>\nfirst value\n</parameter>\n ... </function>\n</tool_call>
head                  NAME       pre        KEY    mid              post                 tail
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from ..go.text import WHITE_SPACE
from ..parse.form import ARGUMENTS as PLACE
from ..parse.form import ID, INDEX, KEY, NAME, TYPE, CallForm

ONE, TWO = "probe_one", "probe_two"
ARGUMENTS: dict[str, Any] = {  # in the order of the alphabet, as some templates sort them
    "a_text": "first value",
    "b_text": "second\nvalue",
    "c_whole": 37,
    "d_flag": True,
    "e_list": ["item one", 7],
    "f_object": {"inner_key": "inner text", "other_key": 8},
}

Found = tuple[CallForm, int, int]
"""A form, with the places in the region where its arguments begin and end."""


def form_of(region: str, both: str) -> CallForm | None:
    """Find the form of the call in `region`; `both` is the text of that call and another, or ""."""
    found = _analyse(region)
    return _surroundings(found[0], region, found[1], found[2], both) if found else None


def _analyse(region: str) -> Found | None:
    for look in (_json_form, _parameter_form):
        if found := look(region):
            return found
    return None


def _json_form(region: str) -> Found | None:
    """Find the arguments as one value in JSON, alone or in the object of the call."""
    decoder = json.JSONDecoder()
    for start in (found.start() for found in re.finditer(r"\{", region)):
        try:
            value, end = decoder.raw_decode(region.replace(ID, "i"), start)
        except ValueError:
            continue
        if value == ARGUMENTS:
            return CallForm("named"), start, end
        path = next(_paths(value, _is_arguments), None)
        if path is None:
            continue
        if path[-1:] == (ONE,):
            body = _body(region[start:end])
            return CallForm("object", body=body, name_path=(*path[:-1], NAME), arguments_path=path), start, end
        name = next(_paths(value, lambda item: isinstance(item, str) and item.endswith(ONE)), None)
        if name is None:
            continue
        as_text = isinstance(_at(value, path), str)
        body = "" if as_text else _body(region[start:end])
        return CallForm("object", body=body, name_path=name, arguments_path=path, as_text=as_text), start, end
    if quoted := re.search(r'"(?:\\.|[^"\\])*a_text(?:\\.|[^"\\])*"', region):
        if _is_arguments(json.loads(quoted[0])):
            return CallForm("named", as_text=True), quoted.start(), quoted.end()
    return None


def _body(call: str) -> str:
    """Put places into the text of a call: for its arguments, its name, and a number that counts calls."""
    decoder = json.JSONDecoder()
    for start in (found.start() for found in re.finditer(r"\{", call)):
        value, end = decoder.raw_decode(call.replace(ID, "i"), start)
        if value == ARGUMENTS:
            before, after = _indexed(call[:start]), _indexed(call[end:])
            return (before + PLACE + after).replace(ONE, NAME)
    return ""


def _is_arguments(value: Any) -> bool:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return False
    return bool(value == ARGUMENTS)


def _paths(value: Any, wanted: Callable[[Any], bool], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if path and wanted(value):
        yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _paths(item, wanted, (*path, key))


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def shared_prefix(a: str, b: str) -> str:
    n = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:n]


def shared_suffix(a: str, b: str) -> str:
    return shared_prefix(a[::-1], b[::-1])[::-1]


# --- arguments apart ---


def _parameter_form(region: str) -> Found | None:
    """Find the text around each argument, by those of the first two, which are strings, and a number."""
    name = region.find(ONE)
    places = [region.find(key, max(name, 0)) for key in ARGUMENTS]
    if name < 0 or -1 in places or places != sorted(places):
        return None
    a, b, c = places[:3]
    first, whole = region.find("first value", a), region.find("37", c)
    if first < 0 or whole < 0:
        return None
    mid_text, mid_whole = region[a + len("a_text") : first], region[c + len("c_whole") : whole]
    between = region[first + len("first value") : b].replace("a_text", KEY)  # from a string to the next key
    after_whole = region[whole + len("37") : places[3]].replace("c_whole", KEY)  # from a number to the next key
    pre = _pre(region[name + len(ONE) : a], between)
    mid, types, quotes = mid_whole, dict[str, bool](), ("", "")
    if mid_text.startswith(mid_whole):
        quotes = mid_text.removeprefix(mid_whole), between.removesuffix(after_whole)
    else:
        start, end = shared_prefix(mid_text, mid_whole), shared_suffix(mid_text, mid_whole)
        start, end = re.sub(r"\w+\Z", "", start), re.sub(r"\A\w+", "", end)
        mid = start + TYPE + end
        types = {text[len(start) : len(text) - len(end)]: text is mid_text for text in (mid_text, mid_whole)}
    post = after_whole.removesuffix(pre)
    last = region.rfind("8") + 1  # of other_key
    listed = region[places[4] + len("e_list") : places[5]]
    form = CallForm("parameters", pre=pre, mid=mid, post=post, quotes=quotes, types=types)
    return _kind(form, region, listed, a - len(pre), last)


def _pre(before: str, between: str) -> str:
    """Return the text before a key: the common end of what stands before the first and before the second."""
    pre = shared_suffix(before, between)
    return from_tag(pre, len(pre) < max(len(before), len(between))) if pre.strip(WHITE_SPACE) else ""


def _kind(form: CallForm, region: str, listed: str, begin: int, last: int) -> Found:
    """Tell Python's calls, braces and tags apart; the arguments go from `begin` to behind the `last` value."""
    opening = region[:begin].rstrip(WHITE_SPACE)[-1:]
    if opening == "(" and not form.pre:
        end = region.find(")", last)
        return CallForm("python", quotes=form.quotes), begin - 1, end + 1
    if opening == "{" and not form.pre:
        end = region.find("}", region.find("}", last) + 1)
        return CallForm("braces", quotes=form.quotes), begin - 1, end + 1
    nested = ""
    if form.pre and form.pre.strip(WHITE_SPACE) in listed:
        item = listed[listed.find(form.pre.strip(WHITE_SPACE)) + len(form.pre.strip(WHITE_SPACE)) :]
        nested = item.partition(form.mid.strip(WHITE_SPACE))[0]
    closing = form.post.replace(KEY, "f_object").strip(WHITE_SPACE)
    end = region.find(closing, last)
    return replace(form, nested=nested), begin, (end + len(closing) if end >= 0 else last)


# --- around the arguments ---


class Around(NamedTuple):
    """The texts around calls: `head` before a name or object, `tail` after its arguments."""

    open: str
    head: str
    tail: str
    between: str
    close: str


def _surroundings(form: CallForm, region: str, begin: int, end: int, both: str) -> CallForm | None:
    """Add head, tail, and what stands before, between and after calls."""
    is_object = form.kind == "object"
    start = begin if is_object else region.rfind(ONE, 0, begin)
    if start < 0:
        return None
    around = _around(region[:start], region[start:end], region[end:], both, "{" if is_object else TWO)
    head, middle = around.head, "" if is_object else NAME + _indexed(region[start + len(ONE) : begin])
    tail = around.tail if is_object else _indexed(around.tail.replace(ONE, NAME))
    return replace(
        form,
        head=head + middle if is_object else _indexed(head) + middle,
        tail=tail,
        open=around.open,
        between=around.between,
        close=around.close,
    )


def _around(before: str, call: str, after: str, both: str, next_call: str) -> Around:
    """Split the texts before and after a call by those of two calls, of which the second begins with `next_call`."""
    at = both.find(call)
    rest = both[at + len(call) :] if at >= 0 else ""
    if TWO not in rest or next_call not in rest:
        return Around("", before, after, "", "")
    joint = rest[: rest.find(next_call)]
    head, same = _aligned(before, joint)
    joined = joint[: len(joint) - len(same)]
    tail = shared_prefix(joined, after)
    return Around(before[: len(before) - len(head)], head, tail, joined[len(tail) :], after[len(tail) :])


def _aligned(a: str, b: str) -> tuple[str, str]:
    """Return the common end of two texts, in which numbers may differ, as it stands in each; it begins with a tag."""
    digits = re.compile(r"\d+\Z")
    i, j = len(a), len(b)
    while i and j:
        x, y = digits.search(a[:i]), digits.search(b[:j])
        if x and y:
            i, j = x.start(), y.start()
        elif a[i - 1] == b[j - 1]:
            i, j = i - 1, j - 1
        else:
            break
    n = len(a[i:]) - len(from_tag(a[i:], i > 0))
    return a[i + n :], b[j + n :]


def from_tag(text: str, is_cut: bool = True) -> str:
    """Drop the end of a tag that `text`, if it was cut off, may begin with, and white space and commas."""
    closing = re.match(r"[^<>\[\]]*>", text) if is_cut else None
    return text[closing.end() if closing else 0 :].lstrip(WHITE_SPACE + ",;")


def _indexed(text: str) -> str:
    """Put INDEX in the place of a number that counts calls."""
    return re.sub(r'(?<=[:"=])\d+(?=["<\W]|\Z)', INDEX, text)
