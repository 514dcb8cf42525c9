"""The shape of a model's answers: where thinking, text and tool calls begin and end, and how calls are written.

A shape is a value, a small automaton.  For Qwen 3:

    mode       shows      text at which it ends, and the mode that follows
    thinking   thinking   </think> content     <tool_call> call
    content    content    <tool_call> call
    call       calls      </tool_call> content

answer.py reads an answer by any shape.  Shapes come from a template, by what it renders (template/probe.py), or from
the name of a parser (named.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from .form import CallForm
from .values import Call, Tools

Read = Callable[[str, Tools, str], Sequence[Call] | None]
"""A function that reads the calls in a text, with the header before it; None if the text is something else."""
Shows = Literal["content", "thinking", "calls", "nothing"]


@dataclass(frozen=True)
class Mode:
    """A part of an answer.

    shows        kind of its text: "nothing" is dropped
    marks        a mark -> the mode that follows it.  The first mark ends the mode; at one place, the longest
    first        marks that count only at the beginning, after white space; without one, the mode `otherwise` follows
    is_tight     `first` counts without white space only
    lines        of `marks`, those that count only at the beginning of a line
    kept         of `marks` and `first`, those that belong to the text that follows
    skip_blanks  white space at the beginning is dropped
    hold_blanks  white space at the end is dropped
    spaced       of `marks`, those before which white space is kept nevertheless
    read         for "calls": reads the text of the mode; read_unfinished, if given, a text without an end
    brackets     for "calls": the text ends where its brackets are closed, and `otherwise` follows
    broken       for "calls": what cannot be read is shown as content, and this mode follows; "" drops it
    quotes       for "calls": the characters around strings, in which no mark and no bracket counts
    opens        for "calls": the brackets of which the first begins the value
    unfinished   for "calls": what becomes of the text when the answer ends.  It may be read as it is, or without the
                 beginning of a mark; what cannot be read is broken.  For headers: whether it is shown
    choose       for a header: returns the mode that follows from the text of this mode, in place of the one in `marks`
    """

    shows: Shows
    marks: Mapping[str, str] = field(default_factory=dict)
    first: Mapping[str, str] = field(default_factory=dict)
    otherwise: str = ""
    is_tight: bool = False
    lines: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()
    skip_blanks: bool = False
    hold_blanks: bool = False
    spaced: frozenset[str] = frozenset()
    read: Read | None = None
    read_unfinished: Read | None = None
    brackets: bool = False
    broken: str = ""
    unfinished: Literal["drop", "show", "read", "read without mark"] = "drop"
    quotes: str = '"'
    opens: str = "{[("
    choose: Callable[[str, Tools], str] | None = None

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """A pattern that finds the mode's marks."""
        marks = sorted(self.marks, key=len, reverse=True)
        found = [rf"(?:^|(?<=\n)){re.escape(mark)}" if mark in self.lines else re.escape(mark) for mark in marks]
        return re.compile("|".join(found) if found else "(?!)")


@dataclass(frozen=True)
class Shape:
    """The shape of an answer.

    modes      by name; an answer begins in the mode `start`
    tags       marks that must arrive as text, although they may be control tokens
    form       the form of a call, for a call that a grammar enforces; None if it has none
    end        which of the texts held back when the answer ends, possible beginnings of marks, are shown
    thoughts   the tags around the thinking
    """

    modes: Mapping[str, Mode]
    start: str
    tags: tuple[str, ...] = ()
    form: CallForm | None = None
    end: Literal["none", "content", "all"] = "all"
    thoughts: tuple[str, str] | None = None
