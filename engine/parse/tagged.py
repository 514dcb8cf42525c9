"""An answer read by the tags of a Go template, as Ollama does: thinking first, then calls in JSON after a tag."""

from __future__ import annotations

from dataclasses import dataclass

from .answer import AnswerPart
from .thinking import ThinkingParser
from .tools import ToolParser


@dataclass(eq=False)
class TaggedParser:
    """The parsers of an answer; None for what it has none of."""

    thinking: ThinkingParser | None = None
    tools: ToolParser | None = None

    def push(self, text: str) -> list[AnswerPart]:
        """Add a piece of text; return the parts that it completes."""
        thinking, text = self.thinking.push(text) if self.thinking else ("", text)
        return self._parts(thinking, text)

    def flush(self) -> list[AnswerPart]:
        """Return the rest at the end of the answer."""
        thinking, text = self.thinking.flush() if self.thinking else ("", "")
        return self._parts(thinking, text, is_last=True)

    def _parts(self, thinking: str, text: str, is_last: bool = False) -> list[AnswerPart]:
        text, calls = self.tools.push(text) if self.tools else (text, [])
        if self.tools and is_last:
            rest, more = self.tools.flush()
            text, calls = text + rest, calls + more
        parts = [AnswerPart(thinking=thinking)] if thinking else []
        return [*parts, *([AnswerPart(text=text)] if text else []), *(AnswerPart(call=call) for call in calls)]
