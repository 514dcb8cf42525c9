"""Parsers for a model's answer, fed with pieces of text while it is generated.

    text -> ThinkingParser -> thinking
                           -> content -> ToolParser -> content
                                                    -> tool calls

Tags are never shown, not even the beginning of one.  The result does not depend on how the text is cut into pieces.
"""

from .thinking import ThinkingParser, without_old_thoughts
from .tools import ParsedCall, ToolParser

__all__ = ["ParsedCall", "ThinkingParser", "ToolParser", "without_old_thoughts"]
