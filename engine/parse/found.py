"""The shape of answers whose calls have a form that was found, and whose thinking is between tags."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ..go.text import WHITE_SPACE
from .form import ID, INDEX, KEY, NAME, TYPE, CallForm
from .shape import Mode, Shape

PLACES = f"[{NAME}{ID}{INDEX}{KEY}{TYPE}]"
TAG = re.compile(r"<[^<>\s]*>|\[/?[A-Z_]+\]")  # <tool_call>, [TOOL_CALLS], <|tool_call|>


@dataclass(frozen=True)
class Thoughts:
    """The tags around the thinking, which comes first, and those around the text after it, if it has any."""

    open: str
    close: str
    text_open: str = ""
    text_close: str = ""


def shape_of(form: CallForm | None, thoughts: Thoughts | None = None, is_open: bool = False) -> Shape:
    """Make the shape of an answer.

    form      of its calls; None if there are no tools
    is_open   the prompt already ended with the opening tag of the thinking
    """
    if form and thoughts and thoughts.text_close:
        form = replace(form, open=form.open.removeprefix(thoughts.text_close))
    modes = _call_modes(form) if form else {"content": Mode("content")}
    first = modes.get("calls first", modes["content"])
    modes["answer"] = replace(first, skip_blanks=True)
    start = "calls first" if "calls first" in modes else "content"
    if thoughts:
        before, after, text_open, text_close = thoughts.open, thoughts.close, thoughts.text_open, thoughts.text_close
        if text_open:
            marks = {text_close: "between"} if text_close else {}
            modes["text"] = replace(modes["content"], marks={**modes["content"].marks, **marks})
            opens = {text_open: "text"}
            modes["answer"] = replace(first, first={**first.first, **opens}, otherwise=first.otherwise or "loose")
            modes["loose"] = replace(modes["content"], skip_blanks=True)
            modes["between"] = replace(modes["answer"], otherwise="content", skip_blanks=False)
            modes[start] = modes[start] if modes[start].first else replace(modes["between"], otherwise="plain")
            modes["plain"] = modes["content"] if start != "content" else replace(first)
        called = _calls_within(modes, after) if form else {}
        modes["thinking"] = Mode("thinking", {after: "answer"} | called, skip_blanks=True, kept=modes["content"].kept)
        modes["still thinking"] = replace(modes["thinking"], skip_blanks=False)
        tag = {before: "thinking"} if before else {}
        modes["opened"] = Mode("thinking", first=tag | {after: "answer"}, otherwise="thinking")
        modes["begin"] = Mode("content", first=tag | {after: "answer"}, otherwise=start)
        start = "opened" if is_open else "begin"
    return Shape(
        modes, start, _tags(form, thoughts), form, thoughts=(thoughts.open, thoughts.close) if thoughts else None
    )


def _calls_within(modes: dict[str, Mode], close: str) -> dict[str, str]:
    """Add modes for calls within the thinking, which end it; return the marks that lead to them."""
    marks = {mark: f"{name} within" for mark, name in modes["content"].marks.items() if mark[:1] in ("<", "[")}
    if marks:
        modes["after"] = replace(modes["after"], first={**modes["after"].first, close: "answer"})
        call = modes["call"]
        modes["call within"] = replace(
            call, marks={**call.marks, close: "answer"}, kept=call.kept | _set(close), broken="still thinking"
        )
        section = modes["section"]
        begins = {mark: f"{name} within" for mark, name in section.first.items()}
        modes["section within"] = replace(section, first=begins, broken="still thinking", otherwise="still thinking")
    return marks


def _tags(form: CallForm | None, thoughts: Thoughts | None) -> tuple[str, ...]:
    """List the fixed texts of the shape, of which some may be control tokens."""
    texts = [thoughts.open, thoughts.close, thoughts.text_open, thoughts.text_close] if thoughts else []
    if form:
        texts += [
            form.open,
            form.head,
            form.tail,
            form.between,
            form.close,
            form.pre,
            form.mid,
            form.post,
            *form.quotes,
        ]
    parts = [part for text in texts for part in re.split(PLACES, text) if part.strip(WHITE_SPACE)]
    return tuple(dict.fromkeys(parts))


@dataclass(frozen=True)
class Opening:
    """How calls begin.

    mark     the text by which they are recognized; "" if they begin with their bracket
    words    texts that may stand between the mark and the first call
    call     text with which each call begins after that; "" if the mark is the beginning of a call
    """

    mark: str
    words: tuple[str, ...]
    call: str


def opening_of(form: CallForm) -> Opening:
    """Find how calls begin.

    <tool_call>\\n{       mark <tool_call>, call {
    [TOOL_CALLS] [{      mark [TOOL_CALLS], word [, call {
    <function=NAME       mark <function=
    """
    before = re.split(PLACES, form.head)[0]
    bracket = "{" if form.kind == "object" else ""
    mark = mark_of(form.open or before)
    rest = (form.open or before).strip(WHITE_SPACE)[len(mark) :]
    call = bracket or (mark_of(before) if form.open else "")
    is_split = (form.open or bracket) and form.kind != "python"
    words = re.findall(r"\[|[^\s\[{]+", rest) if is_split else []
    return Opening(mark, tuple(words), call)


def _call_modes(form: CallForm) -> dict[str, Mode]:
    """Make the modes of text and calls."""
    opening = opening_of(form)
    is_list = form.kind == "object" and "[" in form.open + form.head
    begins = dict.fromkeys(opening.words, "section") | ({opening.call: "call"} if opening.call else {})
    goes = "section" if begins else "call"
    kept = _set(opening.call) | _set("" if begins else opening.mark)  # a call's text begins with these
    closing = dict.fromkeys(
        [*tags_of(form.tail + form.close), *_bare(form.tail), *_bare(form.close), *tags_of(form.between)]
    )
    after = {mark: "after" for mark in closing} | ({opening.mark: goes} if opening.mark else {}) | begins
    after |= {"]": "after", ",": "after"} if is_list else {}
    if not is_list:
        after.pop("[", None)
    is_word = re.fullmatch(r"\w+:", opening.mark)  # such as Action:, which may stand within text too
    modes = {
        "content": Mode(
            "content",
            {mark: goes for mark in (opening.mark, form.lead + opening.mark) if opening.mark},
            lines=_set(opening.mark if is_word else ""),
            kept=_set("" if begins else opening.mark),
        ),
        "section": Mode("nothing", first=begins, otherwise="content", kept=kept, broken="content"),
        "call": _call_mode(form, closing),
        "after": Mode("content", first=after, otherwise="content", kept=kept),
    }
    if not opening.mark:  # calls begin with their bracket, at the beginning of the answer or of a line
        bracket = "[" if form.kind == "python" else "{"
        head = re.split(PLACES, form.open + form.head + form.body)[0].strip(WHITE_SPACE)
        first = {bracket: "call"} | ({"[": "section"} if is_list else {})
        lines = _set(head if len(head) > 1 else "")
        modes["content"] = Mode("content", dict.fromkeys(lines, "calls first"), lines=lines, kept=lines)
        modes["calls first"] = Mode("content", first=first, otherwise="content", kept=_set(bracket))
        modes["after"] = replace(modes["after"], first=after | first, kept=kept | _set(bracket))
    return modes


def _set(text: str) -> frozenset[str]:
    return frozenset({text} if text else ())


def _call_mode(form: CallForm, closing: dict[str, None]) -> Mode:
    """Make the mode of a call.  JSON ends with its last bracket, all else with a tag if it has one."""
    ends = {mark: "after" for mark in closing if re.match(r"[^\]}]", mark)}
    last = re.search(r"<[^<>\s]*>[^<>\s]*\s*\Z", form.tail) if form.kind == "parameters" else None
    end = last[0].strip(WHITE_SPACE) if last else ""
    ends = {end: "after"} if end else ends
    is_python = form.kind == "python"
    return Mode(
        "calls",
        ends,
        otherwise="after",
        read=lambda text, tools, header: form.read(text + end, tools),
        read_unfinished=lambda text, tools, header: form.read(text, tools),
        brackets=form.is_json or not ends,
        opens="[(" if is_python else "{",
        quotes="\"'" if is_python else '"',
        broken="content",
        unfinished="read without mark",
    )


def mark_of(text: str) -> str:
    """Return the text by which a call is recognized: the tags that `text` begins with, or its first words."""
    text = text.strip(WHITE_SPACE)
    for pattern in (
        rf"(?:{TAG.pattern})+",
        r"[^\s{]*<[^\s{]*",
        r"[^\n<{]*<[^<>\s]*>",
        r"[^\s{]*?(?=\s|\{|\[\s*(?:\{|\Z)|\Z)",
    ):
        if (found := re.match(pattern, text)) and found[0]:
            return found[0]
    return ""


def tags_of(text: str) -> list[str]:
    """Return the tags in the text after a call."""
    return list(dict.fromkeys(TAG.findall(text)))


def _bare(text: str) -> list[str]:
    """Return the text after a call, also without brackets before it; nothing if there is a place in it."""
    text = text.strip(WHITE_SPACE)
    return [] if re.search(PLACES, text) else [part for part in (text, text.lstrip("}]" + WHITE_SPACE)) if part]
