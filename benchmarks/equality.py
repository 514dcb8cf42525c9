"""Equal work, or no comparison: the check of all servers before anything is timed.

Every contender gets the same greedy requests.  Compared are the tokens of the prompt (ids where servers tell them),
the tokens of the answer, the tokens that the stream carried against those that the server tells, the context, and the
text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import numpy as np

from ..engine.errors import RequestError
from .client import new_client, send_request
from .doubts import Doubt, clock_doubts, stream_doubts
from .figures import TimedAnswer
from .wires import Contender, Prompted, terminal_line, whole
from .workload import draw_words

FORCING = ("ignore_eos", "logit_bias", "")  # tried in this order, until an answer has the tokens that were asked for
UNCOUNTED = "and nothing else counts them"
SHRINKS = 0.7  # of the chunks, and of the text, that a token had in the check
TOLD_S = 20.0  # longest wait for what a server tells about itself
CountTokens = Callable[[str], int]


@dataclass
class Examined:
    """A contender's answers to the check.

    forced     how it is made to generate exactly n tokens
    answers    to the long prompt, to the short one
    counted    whether `carried` of the answers is the client's own count
    exact      whether that count is exact; a text that is tokenized again may have a few tokens more or less
    """

    contender: Contender
    forced: str = ""
    answers: list[TimedAnswer] = field(default_factory=list)
    n_ctx: int | None = None
    ids: list[int] | None = None
    counted: bool = False
    exact: bool = False
    version: str = ""
    notes: list[str] = field(default_factory=list)
    doubts: list[Doubt] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.contender.name

    @property
    def splits(self) -> bool:
        """Whether it was found to send a token in several chunks."""
        first = self.answers[0]
        return bool(self.counted and first.carried and first.carried < len(first.chunks))

    def count_again(self, a: TimedAnswer, count: CountTokens | None) -> None:
        """Count the tokens of a timed answer as the check did, where the server's own count is missing or was wrong."""
        first = self.answers[0]
        told = first.counts.answer
        if a.carried is not None or not (a.chunks and self.counted and first.carried):
            return
        if told is None or off(told, first.carried, self):
            n = count(a.text) if count else round(first.carried * len(a.chunks) / len(first.chunks))
            a.carried = a.wanted if is_about(n, a.wanted) else n

    def stream_shrinks(self, answers: Sequence[TimedAnswer]) -> str:
        """Return a line if timed answers have fewer chunks and less text for a token than in the check; else ""."""

        def rates(found: Sequence[TimedAnswer]) -> tuple[float, float]:
            told = max(1, sum(a.counts.answer or 0 for a in found))
            return sum(len(a.chunks) for a in found) / told, sum(len(a.text.encode()) for a in found) / told

        if not answers or not all(a.counts.answer for a in (*answers, *self.answers)):
            return ""
        now, before = rates(answers), rates(self.answers)
        if now[0] >= SHRINKS * before[0] or now[1] >= SHRINKS * before[1]:
            return ""
        n, told = sum(len(a.chunks) for a in answers), sum(a.counts.answer or 0 for a in answers)
        return f"{self.name} tells {told} tokens, its stream carried {n} chunks, and less text than in the check"


def check_prompts(n_word: int, seed: int) -> list[str]:
    """Return a long and a short prompt, other ones than those that are timed."""
    rng = np.random.default_rng([seed, 77])
    return [" ".join(draw_words(rng, n)) for n in (n_word, max(1, n_word // 2))]


async def examine(
    contender: Contender, prompts: Sequence[str], like: Prompted, count: CountTokens | None = None
) -> Examined:
    """Send the check's requests to one contender.  Raises: RequestError if they are not answered"""
    found = Examined(contender)
    async with new_client(contender) as http:
        if like.kind == "embed":
            found.answers = [await require_answer(http, contender, replace(like, texts=tuple(prompts)))]
            return found
        for forced in FORCING:
            if forced == "logit_bias" and not like.end_ids:
                continue
            asked = replace(like, prompt=prompts[0], forced=forced, logprobs=False)
            try:
                answer = await require_answer(http, contender, asked)
            except RequestError:
                if not forced or forced == FORCING[-1]:
                    raise
                continue  # some servers refuse a field that they do not know
            found.forced = forced
            if answer.counts.answer == like.n or (answer.counts.answer is None and len(answer.chunks) >= like.n):
                break
        asked = replace(like, forced=found.forced)
        found.answers = [answer, await require_answer(http, contender, replace(asked, prompt=prompts[1]))]
        await count_carried(http, contender, found, replace(asked, prompt=prompts[0]), prompts, count)
        found.doubts = clock_doubts(found.name, found.answers) + stream_doubts(found.name, found.answers[0])
        found.n_ctx = await told_context(http, contender)
        found.version = await told_version(http, contender)
        if like.kind == "completion":
            found.ids = await told_ids(http, contender, prompts[0])
    return found


async def require_answer(http: httpx.AsyncClient, contender: Contender, asked: Prompted) -> TimedAnswer:
    """Send one request that must be answered.  Raises: RequestError"""
    answer = await send_request(http, contender, asked)
    if answer.outcome != "answered":
        if answer.error in ("connection refused", "unknown host"):
            raise RequestError(f"{contender.name}: no server at {contender.url}: {answer.error}")
        names_model = contender.model and contender.model in answer.error
        is_unknown = answer.error.startswith(("404", "405")) and not names_model
        hint = f"; is '{contender.wire.name}' its wire?" if is_unknown or "is not JSON" in answer.error else ""
        raise RequestError(f"{contender.name}: {contender.path(asked.kind)}: {answer.error}{hint}")
    return answer


async def count_carried(
    http: httpx.AsyncClient,
    contender: Contender,
    found: Examined,
    asked: Prompted,
    prompts: Sequence[str],
    count: CountTokens | None,
) -> None:
    """Count the tokens that the stream carried: by a tokenizer, or by log-probabilities if chunks hold several."""
    for answer, prompt in zip(found.answers, prompts, strict=True):
        if count and answer.carried is None:
            answer.carried, found.counted = count(answer.text), True
        if count and answer.counts.prompt is None and asked.kind == "completion":
            answer.prompt = count(prompt)
            found.notes.append(f"{contender.name} tells no tokens of prompts; they are counted here")
    first = found.answers[0]
    if first.carried is not None and not found.counted:
        found.counted = found.exact = True
    if first.carried is None and len(first.chunks) != first.counts.answer:
        with suppress(RequestError):
            again = await require_answer(http, contender, replace(asked, logprobs=True))
            if again.carried is not None and again.text == first.text:
                first.carried, found.counted, found.exact = again.carried, True, True


# --- what servers tell about themselves


async def told(http: httpx.AsyncClient, contender: Contender, path: str, body: Any = None) -> Any:
    """Return the JSON at a path of the server, or None."""
    parts = urlsplit(contender.url)
    url = urlunsplit((parts.scheme, parts.netloc, parts.path.removesuffix("/v1") + path, "", ""))
    with suppress(httpx.HTTPError, ValueError, RecursionError, TimeoutError):
        async with asyncio.timeout(TOLD_S):
            answer = await (http.get(url) if body is None else http.post(url, json=body))
        if answer.status_code == 200:
            return answer.json()
    return None


async def told_context(http: httpx.AsyncClient, contender: Contender) -> int | None:
    """Return the context size in tokens, as Ollama, llama-server or vLLM tell it; None if it is not told."""
    for model in entries(await told(http, contender, "/api/ps"), "models"):
        if contender.model in (model.get("name"), model.get("model"), str(model.get("name")).split(":")[0]):
            return whole(model.get("context_length"))
    props = await told(http, contender, "/props")
    if isinstance(props, dict) and isinstance(settings := props.get("default_generation_settings"), dict):
        return whole(settings.get("n_ctx"))
    for model in entries(await told(http, contender, "/v1/models"), "data"):
        if model.get("id") == contender.model and whole(model.get("max_model_len")):
            return whole(model["max_model_len"])
    return None


def entries(found: Any, key: str) -> list[dict[str, Any]]:
    """Return the objects in a list of an answer; [] if it has another form."""
    listed = found.get(key) if isinstance(found, dict) else None
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


async def told_version(http: httpx.AsyncClient, contender: Contender) -> str:
    """Return what the server says it is."""
    props = await told(http, contender, "/props")
    if isinstance(props, dict) and props.get("build_info"):
        return terminal_line(f"llama.cpp {props['build_info']}")
    for path in ("/api/version", "/version"):
        version = await told(http, contender, path)
        if isinstance(version, dict) and version.get("version"):
            return terminal_line(f"{version['version']} at {path}")
    return ""


async def told_ids(http: httpx.AsyncClient, contender: Contender, prompt: str) -> list[int] | None:
    """Return the token ids of a prompt, as numllama, llama-server or vLLM tell them; None if they are not told."""
    bodies: Mapping[str, Any] = {
        "/api/tokenize": {"model": contender.model, "content": prompt, "add_special": True},
        "/tokenize": {"content": prompt, "prompt": prompt, "model": contender.model, "add_special": True},
    }
    for path, body in bodies.items():
        found = await told(http, contender, path, body)
        ids = found.get("tokens") if isinstance(found, dict) else None
        if isinstance(ids, list) and ids and all(isinstance(id, int) for id in ids):
            return ids
    return None


# --- comparisons


def differences(found: Sequence[Examined], like: Prompted) -> list[str]:
    """Return a line for each thing that is not equal, with how to make it equal."""
    complaints = [answer_differences(one, like) for one in found]
    counted = {one.answers[0].text for one, lines in zip(found, complaints, strict=True) if not lines}
    lines: list[str] = []
    for one, own in zip(found, complaints, strict=True):
        is_counted = one.answers[0].text in counted  # the same text as of a server whose count is right
        lines += [line for line in own if not (is_counted and UNCOUNTED in line)]
    base, *others = found
    for other in others:
        lines += prompt_differences(base, other, like)
        if base.n_ctx and other.n_ctx and base.n_ctx != other.n_ctx:
            larger, smaller = (base, other) if base.n_ctx > other.n_ctx else (other, base)
            lines.append(
                f"context: {larger.name} has {larger.n_ctx} tokens and {smaller.name} {smaller.n_ctx}; "
                f"--ctx {smaller.n_ctx} sets it on Ollama's wire, -c {smaller.n_ctx} for llama-server"
            )
    return lines


def answer_differences(one: Examined, like: Prompted) -> list[str]:
    """Return the complaints about the number of tokens in a contender's answers."""
    if like.kind == "embed":
        return []
    first = one.answers[0]
    told, chunks = first.counts.answer, len(first.chunks)
    if told is None and first.carried is None:
        return [f"{one.name} does not tell how many tokens it generated; --tokenizer FILE.gguf counts them here"]
    if told is None and not one.exact:
        if is_about(first.carried or 0, like.n):
            return []
        return [f"{one.name} answered {first.carried} of {like.n} tokens, by the count of --tokenizer"]
    n = first.carried if told is None else told
    if told is not None and one.counted and first.carried is not None and off(told, first.carried, one):
        return [f"{one.name} tells {told} tokens, its stream carried {first.carried}: its count is wrong"]
    if told is not None and not one.counted and told < chunks:
        why = "its count is wrong, or it splits tokens; --tokenizer FILE.gguf counts them"
        return [f"{one.name} tells {told} tokens, its stream carried {chunks} chunks: {why}"]
    if n is not None and n > like.n:
        carried = "" if n == chunks else f", in {chunks} chunks"
        return [f"{one.name} tells {n} tokens{carried}, where {like.n} were asked for: it does not obey the limit"]
    if n != like.n:
        by = {"ignore_eos": "although ignore_eos is set", "logit_bias": "although its end tokens are banned"}
        why = by.get(one.forced, "it ended its answer")
        how = "" if like.end_ids else ", or --end-tokens IDS for a server that knows logit_bias"
        return [f"{one.name} answered {n} of {like.n} tokens, {why}; --answer {n} makes it equal{how}"]
    if told is not None and not one.counted and chunks + parts_of_characters(first.text) < 0.9 * told:
        return [
            f"{one.name} tells {told} tokens, its stream carried {chunks} chunks, {UNCOUNTED}; "
            "--tokenizer FILE.gguf does"
        ]
    return []


def off(told: int, carried: int, one: Examined) -> bool:
    """Return whether a count is wrong.

    The token that ends an answer has no text, and one that ends within a character has no log-probability:
    both may be missing in a stream.
    """
    first = one.answers[0]
    if not one.exact:
        return not is_about(carried, told)
    hidden = int(first.counts.reason in ("stop", "eos")) + parts_of_characters(first.text)
    return not carried <= told <= carried + hidden


def is_about(counted: int, told: int) -> bool:
    """Return whether a text that was tokenized again may have had `told` tokens."""
    return abs(told - counted) <= max(2, 0.1 * told)


def parts_of_characters(text: str) -> int:
    """Return how many tokens of a text may have ended within a character: its bytes more than its characters."""
    return len(text.encode()) - len(text)


def prompt_differences(base: Examined, other: Examined, like: Prompted) -> list[str]:
    """Return the complaint about the tokens of the same prompts on two servers."""
    if base.answers[0].prompt or other.answers[0].prompt:
        return []  # counted here, by one tokenizer
    counts = [[a.counts.prompt for a in one.answers] for one in (base, other)]
    for one, told in zip((base, other), counts, strict=True):
        if None in told:
            return [f"{one.name} does not tell how many tokens a prompt has; --tokenizer FILE.gguf counts them here"]
    pairs = list(zip(*counts, strict=True))
    by = {int(b) - int(a) for a, b in pairs if a is not None and b is not None}
    if by == {0}:
        ids = [one.ids for one in (base, other) if one.ids and len(one.ids) == one.answers[0].counts.prompt]
        if len(ids) == 2 and ids[0] != ids[1]:  # of as many tokens as the server counted, so these are the prompt's
            at = next(i for i, (x, y) in enumerate(zip(*ids, strict=True)) if x != y)
            return [
                f"prompt: {base.name} and {other.name} have different token ids from position {at} on: not one model"
            ]
        return []
    (a, b), *_ = pairs
    if len(by) == 1:
        (more,) = by
        one = other.name if more > 0 else base.name
        sign = "a template or a start token; compare --chat with --chat, or use a wire that adds none"
        return [f"prompt: {base.name} counts {a} tokens, {other.name} {b}: {one} adds {abs(more)} to each ({sign})"]
    return [f"prompt: {base.name} counts {a} tokens, {other.name} {b}: not one tokenizer"]


def remarks(found: Sequence[Examined]) -> list[str]:
    """Return what a reader should know about the contenders, though it prevents no comparison."""
    lines = []
    for one in found:
        first = one.answers[0]
        if first.counts.answer and first.chunks and first.counts.answer != len(first.chunks) and first.text != "vector":
            counted = f", {first.carried} tokens by the client's count" if one.counted else ""
            lines.append(f"{one.name} tells {first.counts.answer} tokens in {len(first.chunks)} chunks{counted}")
        lines += [*(doubt.text for doubt in one.doubts), *dict.fromkeys(one.notes)]
    silent = [one.name for one in found if one.n_ctx is None and one.answers[0].text != "vector"]
    if silent:
        lines.append(f"context size not told by {', '.join(silent)}")
    return lines


def outputs_line(base: Examined, other: Examined) -> str:
    """Return how the greedy answers of two contenders compare: "outputs: equal", "equal to token 41" or "differ"."""
    names = f"outputs of {base.name} and {other.name}"
    least = None
    for a, b in zip(base.answers, other.answers, strict=True):
        if a.text == b.text:
            continue
        n = 0
        for (_, x, _), (_, y, _) in zip(a.chunks, b.chunks, strict=False):
            if x != y:
                break
            n += 1
        least = n if least is None else min(least, n)
    if least is None:
        return f"{names}: equal"
    return f"{names}: equal to token {least}" if least else f"{names}: differ"


def examine_all(
    contenders: Sequence[Contender], prompts: Sequence[str], like: Prompted, count: CountTokens | None = None
) -> list[Examined]:
    """Examine the contenders one after the other.  Raises: RequestError"""

    async def one_by_one() -> list[Examined]:
        return [await examine(contender, prompts, like, count) for contender in contenders]

    return asyncio.run(one_by_one())
