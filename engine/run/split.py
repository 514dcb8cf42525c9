"""Splitting an answer: pieces of raw text to pieces of thinking, text and tool calls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ..parse import ParsedCall, ThinkingParser, ToolParser
from .piece import Piece


@dataclass(eq=False)
class Split:
    """The parsers of an answer.

    thinking, tools   None if the answer has none to split off
    tags              the tags that the parsers look for
    texts             the text of every piece so far, tags included
    """

    thinking: ThinkingParser | None = None
    tools: ToolParser | None = None
    tags: tuple[str, ...] = ()
    texts: list[str] = field(default_factory=list)

    def __call__(self, piece: Piece) -> Iterator[Piece]:
        """Yield the pieces that can be shown after `piece`; the last piece also releases the text held back."""
        self.texts.append(piece.text)
        is_last = piece.done_reason is not None
        thinking, text = self._split_thinking(piece.text, is_last)
        text, calls = self._split_calls(text, is_last)
        if calls and (thinking or text):
            yield Piece(text, thinking=thinking)
            thinking = text = ""
        yield replace(piece, text=text, thinking=thinking, tool_calls=tuple(calls))

    def _split_thinking(self, text: str, is_last: bool) -> tuple[str, str]:
        if not self.thinking:
            return "", text
        thinking, text = self.thinking.push(text)
        rest = self.thinking.flush() if is_last else ("", "")
        return thinking + rest[0], text + rest[1]

    def _split_calls(self, text: str, is_last: bool) -> tuple[str, list[ParsedCall]]:
        if not self.tools:
            return text, []
        text, calls = self.tools.push(text)
        rest = self.tools.flush() if is_last else ("", [])
        return text + rest[0], calls + rest[1]
