"""What a model said, taken apart while it speaks.

    text -> ThinkingParser -> thinking
                           -> content -> ToolParser -> content
                                                    -> tool calls

Tags are never shown, not even the beginning of one; where the text is cut into pieces changes nothing.
"""

from .thinking import ThinkingParser, without_old_thoughts
from .tools import ParsedCall, ToolParser

__all__ = ["ParsedCall", "ThinkingParser", "ToolParser", "without_old_thoughts"]
