"""What a model says, told apart: pieces go in with text, and come out with thinking, text and tool calls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ..parse import ParsedCall, ThinkingParser, ToolParser
from .piece import Piece


@dataclass(eq=False)
class Split:
    """The parsers that an answer passes; None where there is nothing to tell apart.

    tags  that they look for
    said  what went in, tags included
    """

    thinking: ThinkingParser | None = None
    tools: ToolParser | None = None
    tags: tuple[str, ...] = ()
    said: list[str] = field(default_factory=list)

    def __call__(self, piece: Piece) -> Iterator[Piece]:
        """What can be shown of `piece` and of what was held back before it; the last piece brings the rest."""
        self.said.append(piece.text)
        is_last = piece.done_reason is not None
        thinking, text = self._thought(piece.text, is_last)
        text, calls = self._called(text, is_last)
        if calls and (thinking or text):
            yield Piece(text, thinking=thinking)
            thinking = text = ""
        yield replace(piece, text=text, thinking=thinking, tool_calls=tuple(calls))

    def _thought(self, text: str, is_last: bool) -> tuple[str, str]:
        if not self.thinking:
            return "", text
        thinking, text = self.thinking.push(text)
        rest = self.thinking.flush() if is_last else ("", "")
        return thinking + rest[0], text + rest[1]

    def _called(self, text: str, is_last: bool) -> tuple[str, list[ParsedCall]]:
        if not self.tools:
            return text, []
        text, calls = self.tools.push(text)
        rest = self.tools.flush() if is_last else ("", [])
        return text + rest[0], calls + rest[1]
