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
from ..parse import AnswerParser, TaggedParser, ThinkingParser, ToolParser
from ..parse.found import shape_of
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


def answer_splitter(
    template: Template,
    prompt: str,
    request: RequestOptions,
    tools: Sequence[Tool] = (),
    is_continued: bool = False,
) -> Split:
    """Make the splitter for the answer to `prompt`: thinking, tool calls and text.

    is_continued   the prompt ends within an answer
    """
    forced = request.format if isinstance(request.format, ForcedCall) else None
    offered = tools if forced or request.format in (None, "") else ()  # JSON for `format` is not a call
    schemas = {tool["function"].get("name") or "": tool["function"].get("parameters") or {} for tool in offered}
    shape = template.answer_shape(prompt, request.think, bool(offered), is_continued)
    thoughts = template.thoughts if request.think else None
    is_open = thoughts is not None and prompt.rstrip(WHITE_SPACE).endswith(thoughts.open)
    tags = (thoughts.open, thoughts.close) if thoughts else None
    if forced:
        shape = shape_of(forced.form, thoughts, is_open)
    if shape:
        return Split(AnswerParser(shape, schemas), tags, is_open, shape.tags)
    tool_tag = template.tool_tag if offered else None
    parser = TaggedParser(
        ThinkingParser(*tags, is_open=is_open) if tags else None,
        ToolParser(tool_tag, list(schemas)) if tool_tag else None,
    )
    return Split(parser, tags, is_open, (*(tags or ()), *([tool_tag] if tool_tag else [])))


def splitting(split: Split, deliver: Deliver) -> Deliver:
    """Wrap `deliver` so that each piece passes through `split` first."""

    def deliver_parts(piece: Piece | Exception) -> None:
        for part in [piece] if isinstance(piece, Exception) else split(piece):
            deliver(part)

    return deliver_parts


def grammar_for(
    grammars: Grammars,
    format: Any,
    tags: tuple[str, str] | None = None,
    is_open: bool = False,
    shown: frozenset[int] = frozenset(),
    handle: RequestHandle | None = None,
) -> Grammar | None:
    """Make the grammar that enforces `format`; it applies after the thinking, which is between `tags`.

    Raises: BadGrammar
    """
    if format is None or format == "":
        return None
    if format != "json" and not isinstance(format, dict | ForcedCall):
        quoted = literal_of_value(json_text(format))
        raise BadGrammar(f'invalid format: {quoted}; expected "json" or a valid JSON Schema object')
    try:
        return grammars.grammar(format, tags, is_open, shown, handle)
    except BadGrammar as error:
        if not isinstance(format, ForcedCall):
            raise
        raise BadGrammar(f"tools: {str(error).removeprefix('format: ')}") from None
