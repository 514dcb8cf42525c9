"""Splitting an answer: pieces of raw text to pieces of thinking, text and tool calls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from ..parse import AnswerPart
from .piece import Piece


class AnswerReader(Protocol):
    """A parser of an answer: AnswerParser or TaggedParser."""

    def push(self, text: str) -> list[AnswerPart]: ...

    def flush(self) -> list[AnswerPart]: ...


@dataclass(eq=False)
class Split:
    """The parser of an answer.

    parser     None if the answer is text alone
    thoughts   the tags around the thinking, if it is split off
    is_open    the prompt already ended with the opening tag
    tags       the texts that the parser looks for, of which some may be control tokens
    texts      the text of every piece so far, tags included
    """

    parser: AnswerReader | None = None
    thoughts: tuple[str, str] | None = None
    is_open: bool = False
    tags: tuple[str, ...] = ()
    texts: list[str] = field(default_factory=list)

    def __call__(self, piece: Piece) -> Iterator[Piece]:
        """Yield the pieces that can be shown after `piece`; the last piece also releases the text held back."""
        self.texts.append(piece.text)
        if not self.parser:
            yield piece
            return
        parts = self.parser.push(piece.text)
        if piece.done_reason is not None:
            parts = parts + self.parser.flush()
        *earlier, last = _pieces(parts) or [Piece("")]
        yield from earlier
        yield replace(piece, text=last.text, thinking=last.thinking, tool_calls=last.tool_calls)


def _pieces(parts: list[AnswerPart]) -> list[Piece]:
    """Join parts where a piece can hold them: thinking before text, or calls."""
    pieces: list[Piece] = []
    for part in parts:
        last = pieces[-1] if pieces else Piece("")
        if part.call and pieces and last.tool_calls:
            pieces[-1] = replace(last, tool_calls=(*last.tool_calls, part.call))
        elif part.call:
            pieces.append(Piece("", tool_calls=(part.call,)))
        elif pieces and not last.tool_calls and not (part.thinking and last.text):
            pieces[-1] = replace(last, text=last.text + part.text, thinking=last.thinking + part.thinking)
        else:
            pieces.append(Piece(part.text, thinking=part.thinking))
    return pieces
