"""From a request to the prompt that the model continues: check, render, trim to the window, tokenize.

A prompt is rendered and tokenized once.  Only a conversation longer than the window is measured more often.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..errors import ConversationRefused, RequestError, UnsupportedArchitecture
from ..handle import RequestHandle
from ..model.model import Model
from ..options import RequestOptions
from ..parse import without_old_thoughts
from ..run.embed import refuse_far_too_long
from ..store import LocalModel
from ..template import (
    Message,
    Template,
    bare_prompt,
    chat_messages,
    for_jinja,
    generate_messages,
    images_of,
)
from ..template.messages import Tool
from ..tokenizer import Tokenizer
from .runner import Runner

N_CUTS = 256  # lengths to which a tool result may be cut, each 2 % below the one before for 250 times the window
IMAGE_TOKENS = 768  # an image's share of the window when a conversation is trimmed, as in Ollama


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt.

    images     the images that the marks [img-0], [img-1], ... in the text stand for
    ids        its tokens, if already known; else the text is tokenized
    bos_once   the template may write the BOS text itself: keep only one of two BOS tokens
    plain      the answer has no thinking or tool calls to split off
    n_whole    tokens before messages were dropped; 0 if none were
    said       (role, text) of each message in it
    """

    text: str
    images: Sequence[bytes] = ()
    ids: list[int] | None = None
    bos_once: bool = False
    plain: bool = False
    n_whole: int = 0
    said: Sequence[tuple[str, str]] = ()

    def encode(
        self, runner: Runner, handle: RequestHandle, truncate: bool = True
    ) -> tuple[list[int], Mapping[int, np.ndarray]]:
        """Return the tokens and, for those below 0, the image rows.

        Without `truncate`, a text that is certainly too long for the window is refused before it is tokenized.
        Raises: BadImage, Cancelled, ContextFull; UnsupportedArchitecture for images if the model's tower is unsupported
        """
        tokenizer, ids, embeds = runner.model.tokenizer, self.ids, dict[int, np.ndarray]()
        if ids is None and not truncate:
            refuse_far_too_long(self.text, tokenizer, runner.options.num_ctx)
        if self.images and not runner.images:
            family = runner.model.family.name
            raise UnsupportedArchitecture(family, f"unsupported vision tower in this {family} file; send text alone")
        if ids is None and self.images and runner.images:
            ids, embeds = runner.images.prompt(tokenizer, self.text, self.images, handle)
        elif ids is None:
            ids = tokenizer.encode(self.text, check=handle.check)
        twice = self.bos_once and tokenizer.add_bos and ids[:2] == [tokenizer.bos] * 2
        return (ids[1:] if twice else ids), embeds


def check_capabilities(
    name: str,
    model: LocalModel,
    capabilities: Sequence[str],
    verb: str,
    request: RequestOptions,
    *,
    images: bool,
    tools: bool,
    suffix: bool,
) -> RequestOptions:
    """Check the request against the model's capabilities, before loading it.  `think` defaults to True if it can.

    name   the model as the request named it
    verb   the verb in the message: "generate", "chat"
    Raises: RequestError in Ollama's words
    """
    if request.think and "thinking" not in capabilities:
        raise RequestError(f'"{name}" does not support thinking')
    if "completion" not in capabilities:
        raise RequestError(f'"{name}" does not support {verb}')
    for capability, used in (("tools", tools), ("insert", suffix)):
        if used and capability not in capabilities:
            raise RequestError(f"{model.name} does not support {capability}")
    if images and "vision" not in capabilities:
        raise RequestError(f'"{name}" does not support images')
    return replace(request, think=True) if request.think is None and "thinking" in capabilities else request


def generate_prompt(
    prompt: str | Sequence[int],
    request: RequestOptions,
    stored: LocalModel,
    model: Model,
    template: Template,
    *,
    suffix: str = "",
    system: str = "",
    context: Sequence[int] | None = None,
    raw: bool = False,
    images: Sequence[bytes] = (),
) -> Prompt:
    """Render the prompt of /api/generate; ids and a `raw` text are used unchanged.  Arguments as for Engine.generate.

    Raises: BadTemplate, RequestError for an id outside the vocabulary
    """
    if not isinstance(prompt, str):
        return Prompt(text_of_ids(model, prompt), ids=list(prompt), plain=True)
    if raw:
        return Prompt(prompt, images, plain=request.echo, said=[("user", prompt)])
    history = stored.messages if context is None else []
    messages = generate_messages(prompt, system or stored.system, history, images)
    seen, messages = images_of(messages), list(template.mark_images(messages))
    if suffix:
        text = template.fill(prompt, suffix, request.think)
    elif template.language == "chatml" and not template.renderer:
        text = bare_prompt(messages)
    else:
        text = render_prompt(template, messages, request)
    text = text_of_ids(model, context or ()) + text
    said = roles_and_texts(messages)
    return Prompt(text, seen, bos_once=template.writes_bos and context is None, said=said)


def chat_prompt(
    messages: Sequence[Message],
    request: RequestOptions,
    tokenizer: Tokenizer,
    template: Template,
    tools: Sequence[Tool] = (),
    *,
    n_ctx: int,
    has_vision: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Prompt:
    """Render a conversation; with `request.truncate`, drop old messages until it fits into `n_ctx` tokens.

    messages     the full history, see full_history()
    has_vision   the model takes images, which count towards the window
    check        called now and then while long texts are tokenized; what it raises ends the rendering
    Raises: BadTemplate
    """

    def measure(messages: Sequence[Message]) -> Measured:
        text = render_prompt(template, messages, request, tools)
        ids = tokenizer.encode(text, check=check)
        n_images = sum(len(message.get("images") or ()) for message in messages) if has_vision else 0
        return Measured(text, ids, len(ids) + n_images * IMAGE_TOKENS)

    bos_once = template.writes_bos or template.language == "chatml"
    images, n_whole = images_of(messages), 0
    if request.truncate:
        messages, measured, n_whole = trim_to_context(messages, measure, n_ctx)
        if not images:  # then no image marks change the text
            said = roles_and_texts(messages)
            return Prompt(measured.text, ids=measured.ids, bos_once=bos_once, n_whole=n_whole, said=said)
        images = images_of(messages)
    text = render_prompt(template, template.mark_images(messages), request, tools)
    return Prompt(text, images, bos_once=bos_once, n_whole=n_whole, said=roles_and_texts(messages))


def roles_and_texts(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """Return (role, content) of each message."""
    return [(message["role"], message.get("content") or "") for message in messages]


def with_last_question(messages: Sequence[Message], text: str) -> list[Message]:
    """Return the conversation with `text` in place of the user's last message."""
    asked = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)
    return [{**message, "content": text} if i == asked else message for i, message in enumerate(messages)]


def message_spans(text: str, said: Sequence[tuple[str, str]]) -> list[tuple[int, int, str]]:
    """Find each message in the rendered `text`, in order.  -> (start, end, role), in characters"""
    found, at = [], 0
    for role, content in said:
        start = text.find(content.strip(), at) if content.strip() else -1
        if start >= 0:
            at = start + len(content.strip())
            found.append((start, at, role))
    return found


def full_history(model: LocalModel, messages: Sequence[Message]) -> Sequence[Message]:
    """Return the Modelfile's messages, then `messages`.  Qwen 3 and DeepSeek R1 see only the latest turn's thinking."""
    history = chat_messages(messages, model.system, model.messages)
    forgets = model.config.model_family == "qwen3" or model.name.model == "deepseek-r1"
    return without_old_thoughts(history) if forgets else history


def render_prompt(
    template: Template, messages: Sequence[Message], request: RequestOptions, tools: Sequence[Tool] = ()
) -> str:
    """Render the conversation.  A last message of the assistant stays open, so that the model continues it."""
    continues = bool(messages) and messages[-1]["role"] == "assistant"
    if template.language != "jinja" or template.renderer:
        return template.render(messages, tools, add_generation_prompt=not continues, think=request.think)
    thinking: dict[str, Any] = {} if request.think is None else {"enable_thinking": bool(request.think)}
    if isinstance(request.think, str):
        thinking["reasoning_effort"] = template.effort(request.think)
    offered = [{key: value for key, value in tool.items() if value is not None} for tool in tools]
    return template.render(for_jinja(messages), offered or None, continue_final_message=continues, **thinking)


class Measured(NamedTuple):
    """A rendered conversation: its text, its tokens, and what it takes of the window, images included."""

    text: str
    ids: list[int]
    n_token: int


class ShortenedForms:
    """Shortened forms of a conversation, by degree up to `last`, each rendered and measured at most once.

    A degree that the template refuses, as its roles must alternate, stands for the next one that it accepts.
    """

    def __init__(
        self,
        shorten: Callable[[int], Sequence[Message]],
        measure: Callable[[Sequence[Message]], Measured],
        limit: int,
        last: int,
    ):
        self._shorten, self._measure, self._limit, self._last = shorten, measure, limit, last
        self._found: dict[int, tuple[Sequence[Message], Measured] | None] = {}

    def fits(self, degree: int) -> bool:
        return self.at(degree)[1].n_token <= self._limit

    def at(self, degree: int) -> tuple[Sequence[Message], Measured]:
        """Return the messages of `degree`, and their measure.  Raises: ConversationRefused if all later are, too"""
        while True:
            if degree not in self._found:
                messages = self._shorten(degree)
                try:
                    self._found[degree] = messages, self._measure(messages)
                except ConversationRefused:
                    if degree >= self._last:
                        raise
                    self._found[degree] = None
            if found := self._found[degree]:
                return found
            degree += 1


def trim_to_context(
    messages: Sequence[Message], measure: Callable[[Sequence[Message]], Measured], limit: int
) -> tuple[Sequence[Message], Measured, int]:
    """Drop the oldest messages until the prompt fits into `limit` tokens.

    System messages are kept.  The last message is always kept, even if it alone is too long.  Where tool results would
    push out the user's last message, which they help to answer, shorten_results() comes first.  Ollama loses it.
    -> the remaining messages, as measured, and the tokens of them all (0 if none was dropped)
    """
    whole = measure(messages)
    if len(messages) < 2 or whole.n_token <= limit:
        return messages, whole, 0
    dropped = ShortenedForms(partial(without_oldest, messages), measure, limit, len(messages) - 1)
    guess = dropped_for(whole.n_token - limit, messages, whole.n_token)
    asked = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=len(messages))
    if any(message["role"] == "tool" for message in messages[asked:]):
        turn = without_oldest(messages, asked)
        if not dropped.fits(asked) and (shortened := shorten_results(turn, measure, limit)):
            return *shortened, whole.n_token
    n = first_that_fits(dropped.fits, len(messages) - 1, guess)
    return *dropped.at(n), whole.n_token


def without_oldest(messages: Sequence[Message], n: int) -> Sequence[Message]:
    """Return the messages without the first `n`, of which system messages are kept."""
    return [*(message for message in messages[:n] if message["role"] == "system"), *messages[n:]]


def shorten_results(
    messages: Sequence[Message], measure: Callable[[Sequence[Message]], Measured], limit: int
) -> tuple[Sequence[Message], Measured] | None:
    """Shorten a turn with tool results, from the user's message on, until it fits; None if it cannot.

    1. The middle of results that take more than a quarter of the window is cut.
    2. The oldest calls with their results are dropped, but for the last.
    3. The results that are left are cut further.
    """
    results = [len(message["content"]) for message in messages if message["role"] == "tool"]
    if not results:
        return None
    n_char = sum(len(message["content"]) for message in messages)
    wanted = n_char * limit // max(measure(messages).n_token, 1)  # if characters and tokens are in proportion
    longest, floor = max(results), max(1, min(max(results), wanted // 4))
    calls = [i for i, message in enumerate(messages) if message["role"] == "assistant" and message.get("tool_calls")]
    ladder = [(round(longest * (floor / longest) ** (i / N_CUTS)), 0) for i in range(1, N_CUTS + 1) if floor < longest]
    ladder += [(floor, n) for n in range(1, len(calls))]
    ladder += [(floor - floor * i // N_CUTS, max(len(calls) - 1, 0)) for i in range(1, N_CUTS + 1)]

    def shorten(step: int) -> Sequence[Message]:
        length, n_call = ladder[step - 1]
        first, end = (calls[0], calls[n_call]) if n_call else (0, 0)
        kept = [message for i, message in enumerate(messages) if not first <= i < end or message["role"] == "system"]
        return [
            {**message, "content": without_middle(message["content"], length)} if message["role"] == "tool" else message
            for message in kept
        ]

    guess = next(
        (step for step in range(1, len(ladder)) if sum(len(message["content"]) for message in shorten(step)) <= wanted),
        len(ladder),
    )
    candidates = ShortenedForms(shorten, measure, limit, len(ladder))
    step = first_that_fits(candidates.fits, len(ladder), guess)
    return candidates.at(step) if candidates.fits(step) else None


def without_middle(text: str, n_char: int) -> str:
    """Return `n_char` characters of `text`, from its start and end, and a note of how many are missing between them."""
    n = len(text) - n_char
    note = f"\n[... {n} characters left out ...]\n"
    if n <= len(note):
        return text
    start = (n_char + 1) // 2
    return text[:start] + note + text[start + n :]


def dropped_for(excess: int, messages: Sequence[Message], n_token: int) -> int:
    """Estimate how many of the oldest messages hold `excess` tokens, if characters and tokens are in proportion."""
    lengths = [len(message["content"]) + 16 for message in messages]  # 16: about what a template adds
    remaining = excess * sum(lengths) / n_token
    for i, (message, length) in enumerate(zip(messages, lengths, strict=True), 1):
        remaining -= 0 if message["role"] == "system" else length
        if remaining <= 0:
            return i
    return len(messages)


def first_that_fits(fits: Callable[[int], bool], last: int, guess: int) -> int:
    """Return the least n in 1 .. last with fits(n).  `fits` is monotone and never called with `last`.

    The search starts at `guess`: a good guess takes two calls, a bad one about 2 log2(last).
    """
    low, high, step, at = 0, last, 1, min(max(guess, 1), last - 1)
    while high - low > 1:
        if fits(at):
            high, beside = at, at - step
        else:
            low, beside = at, at + step
        step *= 2
        at = beside if low < beside < high else (low + high) // 2
    return high


def check_ids(tokenizer: Tokenizer, ids: Sequence[int]) -> None:
    """Check that `ids` are in the vocabulary.  Raises: RequestError"""
    for id in (min(ids), max(ids)) if ids else ():
        if not 0 <= id < tokenizer.n_vocab:
            raise RequestError(f"unknown token {id}: the vocabulary ends at {tokenizer.n_vocab - 1}")


def text_of_ids(model: Model, ids: Sequence[int]) -> str:
    """Return the text of a request's ids, special tokens included.  Raises: RequestError"""
    check_ids(model.tokenizer, ids)
    pieces = {id: model.tokenizer.piece(id, special=True) for id in set(ids)}
    return b"".join(map(pieces.__getitem__, ids)).decode("utf-8", "replace")
