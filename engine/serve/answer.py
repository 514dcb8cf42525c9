"""An answer as it comes, and what its pieces pass on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from time import perf_counter_ns
from typing import Any

from ..errors import BadGrammar
from ..go import text as go_text
from ..handle import RequestHandle
from ..model.model import Model
from ..options import RequestOptions
from ..parse import ThinkingParser, ToolParser
from ..parse.thinking import BLANKS
from ..run.piece import Piece
from ..run.split import Split
from ..sampling.grammar import Grammar, Grammars
from ..template import (
    Template,
)
from ..template.messages import Tool

Deliver = Callable[[Piece | Exception], None]


@dataclass(eq=False)
class Answer:
    """What came of a question: a model only loaded or unloaded, a prompt only rendered, or pieces to come.

    done_reason     "load" or "unload", else None: the last piece says it
    load_duration   nanoseconds from the call to a model that is ready
    prompt          as rendered
    n_images        that it shows
    n_prompt        its tokens, as far as the window holds them
    is_over         no piece will come
    call            who waits for it
    split           what the pieces pass before they come out
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
        """The pieces, for a caller who let nothing else take them.  Closing it ends the answer.

        Raises what went wrong.
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

    @property
    def total_duration(self) -> int:
        """Nanoseconds since the call."""
        return perf_counter_ns() - self.handle.began

    def context(self) -> list[int]:
        """The conversation up to the last piece as tokens, to be handed back with the next prompt."""
        assert self.model
        text = self.prompt + "".join(self.split.said)
        return self.model.tokenizer.encode(text, add_special=False, parse_special=True)


def answer_splitter(template: Template, prompt: str, request: RequestOptions, tools: Sequence[Tool] = ()) -> Split:
    """How the answer to `prompt` is to be told apart, by the tags that the template shows."""
    thoughts = template.thinking_tags if request.think else None
    calls = template.tool_tag if tools and request.format in (None, "") else None  # JSON that was asked for is no call
    names = [tool["function"].get("name", "") for tool in tools]
    return Split(
        ThinkingParser(*thoughts, is_open=prompt.rstrip(BLANKS).endswith(thoughts[0])) if thoughts else None,
        ToolParser(calls, names) if calls else None,
        (*(thoughts or ()), *([calls] if calls else [])),
    )


def splitting(split: Split, deliver: Deliver) -> Deliver:
    """`deliver`, for pieces that have not been told apart yet."""

    def deliver_parts(piece: Piece | Exception) -> None:
        for part in [piece] if isinstance(piece, Exception) else split(piece):
            deliver(part)

    return deliver_parts


def grammar_for(
    grammars: Grammars, format: Any, thinking: ThinkingParser | None = None, shown: frozenset[int] = frozenset()
) -> Grammar | None:
    """What holds an answer to `format`, once the model has thought.  Raises: BadGrammar"""
    if format is None or format == "":
        return None
    if format != "json" and not isinstance(format, dict):
        quoted = go_text.literal_of_value(go_text.json_text(format))
        raise BadGrammar(f'invalid format: {quoted}; expected "json" or a valid JSON Schema object')
    tags, is_open = ((thinking.open, thinking.close), thinking.is_open) if thinking else (None, False)
    return grammars.grammar(format, tags, is_open, shown)
