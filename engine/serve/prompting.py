"""From a request to the prompt that the model is to go on from."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import RequestError
from ..handle import RequestHandle
from ..model.model import Model
from ..options import RequestOptions
from ..parse import without_old_thoughts
from ..run.split import Split
from ..store import LocalModel
from ..template import (
    Message,
    Template,
    chat_messages,
    for_jinja,
)
from ..template.messages import Tool
from ..tokenizer import Tokenizer
from .runner import Runner


@dataclass(frozen=True)
class Prompt:
    """What the model is to go on from.

    bos_once   a template may have written the BOS text: then the tokenizer does not put another one in front
    split      how what comes is to be told apart
    images     what the marks [img-0], [img-1], ... in the text stand for
    ids        in place of those that the tokenizer makes of the text
    n_whole    tokens before messages were left out; 0 where none were
    """

    text: str
    bos_once: bool = False
    split: Split = field(default_factory=Split)
    ids: list[int] | None = None
    n_whole: int = 0
    images: Sequence[bytes] = ()

    def encode(self, runner: Runner, handle: RequestHandle) -> tuple[list[int], dict[int, np.ndarray]]:
        """The tokens, and what stands in for those below 0.  Raises: BadImage, Cancelled"""
        if self.ids is not None:
            return self.ids, {}
        tokenizer, rows = runner.model.tokenizer, dict[int, np.ndarray]()
        if self.images and runner.images:
            ids, rows = runner.images.prompt(tokenizer, self.text, self.images, handle)
        else:
            ids = tokenizer.encode(self.text, add_special=True, parse_special=True)
        twice = self.bos_once and tokenizer.add_bos and ids[:2] == [tokenizer.bos] * 2
        return (ids[1:] if twice else ids), rows


def check_capabilities(
    name: str,
    model: LocalModel,
    able: Sequence[str],
    verb: str,
    request: RequestOptions,
    *,
    images: bool,
    tools: bool,
    suffix: bool,
) -> RequestOptions:
    """`wanted`, if the model can do it, before it is loaded; one that can think does unless it is told not to.

    name  what the request called the model
    able  the model's capabilities
    Raises: RequestError in Ollama's words
    """
    if request.think and "thinking" not in able:
        raise RequestError(f'"{name}" does not support thinking')
    if "completion" not in able:
        raise RequestError(f'"{name}" does not support {verb}')
    for capability, used in (("tools", tools), ("insert", suffix)):
        if used and capability not in able:
            raise RequestError(f"{model.name} does not support {capability}")
    if images and "vision" not in able:
        raise RequestError(f'"{name}" does not support images')
    return replace(request, think=True) if request.think is None and "thinking" in able else request


def full_history(model: LocalModel, messages: Sequence[Message]) -> Sequence[Message]:
    """What the model hears when `messages` are said to it: its own first; some hear no thoughts but the newest."""
    everything = chat_messages(messages, model.system, model.messages)
    forgets = model.config.model_family == "qwen3" or model.name.model == "deepseek-r1"
    return without_old_thoughts(everything) if forgets else everything


def render_prompt(
    template: Template, messages: Sequence[Message], request: RequestOptions, tools: Sequence[Tool] = ()
) -> str:
    """The conversation as text.  A last message of the assistant stays open, so that the model goes on with it."""
    continues = bool(messages) and messages[-1]["role"] == "assistant"
    if template.language != "jinja":
        return template.render(messages, tools, add_generation_prompt=not continues, think=request.think)
    thinking: dict[str, Any] = {} if request.think is None else {"enable_thinking": bool(request.think)}
    if isinstance(request.think, str):
        thinking["reasoning_effort"] = request.think
    offered = [{key: value for key, value in tool.items() if value is not None} for tool in tools]
    return template.render(for_jinja(messages), offered or None, continue_final_message=continues, **thinking)


def trim_to_context(
    messages: Sequence[Message], size: Callable[[Sequence[Message]], int], most: int
) -> Sequence[Message]:
    """The conversation without as many of its oldest messages as it takes for its `size` to be at most `most`.

    System messages are kept, and the last message always is, even if it alone is too long.  The place is found by
    halving, not one by one: a message less never makes a prompt longer.
    """

    def without(n: int) -> list[Message]:
        return [*(message for message in messages[:n] if message["role"] == "system"), *messages[n:]]

    if len(messages) < 2 or size(messages) <= most:
        return messages
    return without(bisect_left(range(len(messages) - 1), True, lo=1, key=lambda n: size(without(n)) <= most))


def check_ids(tokenizer: Tokenizer, ids: Sequence[int]) -> None:
    for id in ids:
        if not 0 <= id < tokenizer.n_vocab:
            raise RequestError(f"there is no token {id}: the vocabulary ends at {tokenizer.n_vocab - 1}")


def text_of_ids(model: Model, ids: Sequence[int]) -> str:
    """The text of tokens that a request brings, special ones included."""
    check_ids(model.tokenizer, ids)
    return b"".join(model.tokenizer.piece(id, special=True) for id in ids).decode("utf-8", "replace")
