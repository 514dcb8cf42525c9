"""Parsers for a model's answer, fed with pieces of text while it is generated.

    text -> AnswerParser, by the shape of the answer -> thinking, content, tool calls
    text -> TaggedParser, by the tags of a Go template -> the same

Tags are never shown, not even the beginning of one.  The result does not depend on how the text is cut into pieces.
"""

from .answer import AnswerParser, AnswerPart
from .tagged import TaggedParser
from .thinking import ThinkingParser, without_old_thoughts
from .tools import ParsedCall, ToolParser

__all__ = [
    "AnswerParser",
    "AnswerPart",
    "ParsedCall",
    "TaggedParser",
    "ThinkingParser",
    "ToolParser",
    "without_old_thoughts",
]
