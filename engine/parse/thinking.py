"""Separation of a model's thinking from its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from ..go.text import WHITE_SPACE


class ThinkingState(Enum):
    BEFORE, OPENED, THINKING, CLOSED, CONTENT = range(5)


class ThinkingParser:
    """A parser that splits an answer into thinking, between the tags `open` and `close`, and content, after them.

        "<think>\\nTwo and two.</th" -> ("Two and two.", "")      "ink>\\n\\nFour." -> ("", "Four.")

    The opening tag counts only at the beginning, possibly after white space; otherwise the whole answer is content.
    White space after either tag is dropped.  Text that may be the beginning of a tag is held back until that is
    decided.

    is_open  the prompt already ended with the opening tag
    """

    def __init__(self, open: str, close: str, is_open: bool = False):
        self.open, self.close, self.is_open = open, close, is_open
        self._state = ThinkingState.OPENED if is_open else ThinkingState.BEFORE
        self._blanks: list[str] = []  # white space before the opening tag; content without a tag
        self._held = ""

    def push(self, text: str) -> tuple[str, str]:
        """Add a piece of text; return the new thinking and the new content."""
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
        """Return the text held back, at the end of the answer: thinking if the tag was never closed, else content."""
        held = "".join([*self._blanks, self._held])
        self._blanks, self._held = [], ""
        return (held, "") if self._state is ThinkingState.THINKING else ("", held)

    def _before(self, text: str) -> str:
        """Look for the opening tag; return the text after it, or the whole text if the tag can no longer occur."""
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
    """Return how many characters at the end of `text` are a proper prefix of `tag`."""
    return next((n for n in range(min(len(text), len(tag) - 1), 0, -1) if text.endswith(tag[:n])), 0)


def without_old_thoughts(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Remove the thinking, in <think> tags before the content, from assistant messages before the last user message.

    Models such as qwen3 and deepseek-r1 are trained without their earlier thinking.
    """
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=0)
    old = [message if message["role"] != "assistant" else _without_thinking(message) for message in messages[:last]]
    return [*old, *messages[last:]]


def _without_thinking(message: Mapping[str, Any]) -> Mapping[str, Any]:
    parser = ThinkingParser("<think>", "</think>")
    content = [parser.push(message.get("content") or "")[1], parser.flush()[1]]
    return {**message, "content": "".join(content)}
