"""Where a model's thoughts end and its answer begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from ..go.text import WHITE_SPACE


class ThinkingState(Enum):
    BEFORE, OPENED, THINKING, CLOSED, CONTENT = range(5)


class ThinkingParser:
    """Splits an answer into thinking, between the tags `open` and `close`, and content, after them.

        "<think>\\nTwo and two.</th" -> ("Two and two.", "")      "ink>\\n\\nFour." -> ("", "Four.")

    Only a tag that comes before everything but blanks opens thinking; else all is content as it stands.  Blanks after
    either tag are dropped.  What may be the beginning of a tag is held back until it is one or is none.

    is_open  the prompt ended with the opening tag already
    """

    def __init__(self, open: str, close: str, is_open: bool = False):
        self.open, self.close, self.is_open = open, close, is_open
        self._state = ThinkingState.OPENED if is_open else ThinkingState.BEFORE
        self._blanks: list[str] = []  # before an opening tag; content if none comes
        self._held = ""

    def push(self, text: str) -> tuple[str, str]:
        """What `text` adds to thinking and content."""
        text, self._held = self._held + text, ""
        if self._state is ThinkingState.BEFORE:
            text = self._before(text)
        if self._state is ThinkingState.OPENED:
            text = text.lstrip(WHITE_SPACE)
            if text:
                self._state = ThinkingState.THINKING
        thinking = ""
        if self._state is ThinkingState.THINKING:
            thinking, tag, text = text.partition(self.close)
            if tag:
                self._state = ThinkingState.CLOSED
            else:
                shown = len(thinking) - overlap(thinking, self.close)
                thinking, self._held = thinking[:shown], thinking[shown:]
        if self._state is ThinkingState.CLOSED:
            text = text.lstrip(WHITE_SPACE)
            if text:
                self._state = ThinkingState.CONTENT
        return thinking, text

    def flush(self) -> tuple[str, str]:
        """What was held back, when the answer is over: thinking, if no closing tag came, or content."""
        held = "".join([*self._blanks, self._held])
        self._blanks, self._held = [], ""
        return (held, "") if self._state is ThinkingState.THINKING else ("", held)

    def _before(self, text: str) -> str:
        """What follows the opening tag or, if none can come any more, everything so far."""
        rest = text.lstrip(WHITE_SPACE)
        self._blanks.append(text[: len(text) - len(rest)])
        if rest.startswith(self.open):
            self._state = ThinkingState.OPENED
            self._blanks.clear()
            return rest[len(self.open) :]
        if self.open.startswith(rest):
            self._held = rest
            return ""
        self._state = ThinkingState.CONTENT
        rest = "".join([*self._blanks, rest])
        self._blanks.clear()
        return rest


def overlap(text: str, tag: str) -> int:
    """How many characters at the end of `text` may be the beginning of `tag`; less than all of it."""
    return next((n for n in range(min(len(text), len(tag) - 1), 0, -1) if text.endswith(tag[:n])), 0)


def without_old_thoughts(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """`messages` without what the assistant thought, in <think> tags before its content, before the user spoke last.

    Models trained so, qwen3 and deepseek-r1, never saw their earlier thoughts again.
    """
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=0)
    old = [message if message["role"] != "assistant" else _thoughtless(message) for message in messages[:last]]
    return [*old, *messages[last:]]


def _thoughtless(message: Mapping[str, Any]) -> Mapping[str, Any]:
    parser = ThinkingParser("<think>", "</think>")
    content = [parser.push(message.get("content") or "")[1], parser.flush()[1]]
    return {**message, "content": "".join(content)}
