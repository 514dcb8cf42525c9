"""An answer as it is generated: its pieces, how they are split, and the grammar they follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from time import perf_counter_ns
from typing import Any

from ..errors import BadGrammar
from ..go.fmt import json_text, literal_of_value
from ..go.text import WHITE_SPACE
from ..handle import RequestHandle
from ..model.model import Model
from ..options import RequestOptions
from ..parse import ThinkingParser, ToolParser
from ..run.piece import Piece
from ..run.split import Split
from ..sampling.forced_call import ForcedCall
from ..sampling.grammar import Grammar, Grammars
from ..template import (
    Template,
)
from ..template.messages import Tool

Deliver = Callable[[Piece | Exception], None]


@dataclass(eq=False)
class Answer:
    """The answer to a request: a stream of pieces, or only that a model was loaded or unloaded, or a prompt rendered.

    done_reason     "load" or "unload"; None for a stream, whose last piece has it
    load_duration   nanoseconds from the request until the model was ready
    prompt          the rendered text
    n_images        images in the prompt
    n_prompt        tokens of the prompt, at most the window; all of them if they are only counted
    is_over         there will be no pieces
    handle          the request's handle, which cancels it
    split           the splitter of its pieces
    """

    done_reason: str | None = None
    prompt: str = ""
    n_images: int = 0
    n_prompt: int = 0
    is_over: bool = False
    load_duration: int = 0
    model: Model | None = None
    handle: RequestHandle = field(default_factory=RequestHandle)
    split: Split = field(default_factory=Split)
    _pieces: SimpleQueue[Piece | Exception] = field(default_factory=SimpleQueue)

    def __iter__(self) -> Iterator[Piece]:
        """Yield the pieces, if no other `deliver` was given.  Closing the iterator cancels the answer.

        Raises the error that ended the answer.
        """
        try:
            while True:
                piece = self._pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if piece.done_reason:
                    return
        finally:
            self.handle.cancel()

    def put(self, piece: Piece | Exception) -> None:
        """Deliver a piece to the iterator."""
        self._pieces.put(piece)

    @property
    def total_duration(self) -> int:
        """Nanoseconds since the request."""
        return perf_counter_ns() - self.handle.began

    def context(self, check: Callable[[], None] = lambda: None) -> list[int]:
        """Return the prompt and the answer so far as ids, for the next request's `context`.

        check   called between chunks of a long text; what it raises ends it
        """
        assert self.model
        text = self.prompt + "".join(self.split.texts)
        return self.model.tokenizer.encode(text, add_special=False, parse_special=True, check=check)


def answer_splitter(template: Template, prompt: str, request: RequestOptions, tools: Sequence[Tool] = ()) -> Split:
    """Make the splitter for the answer to `prompt`: thinking, tool calls and text, by the template's tags."""
    thoughts = template.thinking_tags if request.think else None
    forced = request.format if isinstance(request.format, ForcedCall) else None
    calls = None  # JSON for `format` is not a call
    if forced:
        calls = forced.form.tag
    elif tools and request.format in (None, ""):
        calls = template.tool_tag
    names = [tool["function"].get("name") or "" for tool in tools]
    return Split(
        ThinkingParser(*thoughts, is_open=prompt.rstrip(WHITE_SPACE).endswith(thoughts[0])) if thoughts else None,
        ToolParser(calls, names) if calls else None,
        (*(thoughts or ()), *(forced.texts if forced else [calls] if calls else [])),
    )


def splitting(split: Split, deliver: Deliver) -> Deliver:
    """Wrap `deliver` so that each piece passes through `split` first."""

    def deliver_parts(piece: Piece | Exception) -> None:
        for part in [piece] if isinstance(piece, Exception) else split(piece):
            deliver(part)

    return deliver_parts


def grammar_for(
    grammars: Grammars,
    format: Any,
    thinking: ThinkingParser | None = None,
    shown: frozenset[int] = frozenset(),
    handle: RequestHandle | None = None,
) -> Grammar | None:
    """Make the grammar that enforces `format`; it applies after the thinking.  Raises: BadGrammar"""
    if format is None or format == "":
        return None
    if format != "json" and not isinstance(format, dict | ForcedCall):
        quoted = literal_of_value(json_text(format))
        raise BadGrammar(f'invalid format: {quoted}; expected "json" or a valid JSON Schema object')
    tags, is_open = ((thinking.open, thinking.close), thinking.is_open) if thinking else (None, False)
    try:
        return grammars.grammar(format, tags, is_open, shown, handle)
    except BadGrammar as error:
        if not isinstance(format, ForcedCall):
            raise
        raise BadGrammar(f"tools: {str(error).removeprefix('format: ')}") from None
