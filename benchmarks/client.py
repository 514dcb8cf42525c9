"""A client that takes the time of every chunk: one request, one TimedAnswer.

The clock is read when bytes arrive, before they are parsed.  Every request has a connection of its own, so that none
fails because a server closed an idle one; its set-up counts, as it does for a first request.

A server may send anything: bytes without a text, a stream without an end, values that no reader can hold.  Each is a
failed request with one line.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from time import perf_counter
from typing import Any

import httpx

from .figures import ServerCounts, TimedAnswer
from .wires import Contender, Prompted, error_message, terminal_line

REFUSED_STATUSES = (429, 503)
GRACE_S = 2.0  # a stream that is still open so long after its last line has ended
MAX_TEXTS, MAX_MORE_TEXTS = 4, 64  # texts for each token that was asked for, and in addition: some servers split tokens
MAX_LINE = 1 << 26  # characters


class LineSplitter:
    """Bytes in, complete lines out."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self.rest = ""

    def push(self, data: bytes) -> Iterator[str]:
        *lines, self.rest = (self.rest + self._decode(data)).split("\n")
        yield from lines


async def answer_lines(answer: httpx.Response) -> AsyncIterator[str]:
    """Yield the lines of a stream, split at newlines only: httpx also splits at U+2028 and others within a text."""
    splitter = LineSplitter()
    async for data in answer.aiter_bytes():
        for line in splitter.push(data):
            yield line.removesuffix("\r")
    if splitter.rest:
        yield splitter.rest


def new_client(contender: Contender, transport: httpx.AsyncBaseTransport | None = None) -> httpx.AsyncClient:
    """Return an HTTP client for a contender; `transport` replaces the network in tests."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    timeout = httpx.Timeout(contender.timeout_s, connect=min(30.0, contender.timeout_s))
    more: dict[str, Any] = {"verify": ssl_context()} if transport is None else {"transport": transport}
    return httpx.AsyncClient(timeout=timeout, limits=limits, headers=dict(contender.headers), **more)


@cache
def ssl_context() -> ssl.SSLContext:
    """Return the context of all clients; loading its certificates takes longer than a request."""
    return httpx.create_ssl_context()


async def send_request(
    http: httpx.AsyncClient,
    contender: Contender,
    asked: Prompted,
    *,
    due: float = 0.0,
    clock: Callable[[], float] | None = None,
) -> TimedAnswer:
    """Send one request, read its stream to the end, and return what arrived when; failures are outcomes, not errors."""
    body, clock = json.dumps(contender.write(asked)).encode(), clock or perf_counter
    answer = TimedAnswer(clock(), due, wanted=asked.n)
    posted = http.stream("POST", contender.path(asked.kind), content=body, headers=JSON_HEADERS)
    try:
        async with asyncio.timeout(contender.timeout_s) as limit, posted as response:
            if response.status_code != 200:
                text = status_text(await response.aread()).removeprefix(f"{response.status_code} ")
                answer.error = f"{response.status_code} {text}"
                answer.outcome = "refused" if response.status_code in REFUSED_STATUSES else "failed"
            else:
                await read_stream(response, contender, answer, clock, limit)
    except (httpx.TimeoutException, TimeoutError):
        if not answer.is_complete:
            fail(answer, f"no text for {contender.timeout_s:g} s")
    except httpx.HTTPError as error:
        fail(answer, connection_text(error))
    answer.ended = answer.ended or clock()
    has_text = answer.chunks or asked.kind == "embed" or (asked.n == 1 and answer.counts.answer)  # half a character
    if answer.outcome == "answered" and not has_text:
        fail(answer, "the answer has no text")
    if answer.chunks and all(n is not None for _, _, n in answer.chunks):
        answer.carried = sum(n or 0 for _, _, n in answer.chunks)
    return answer


JSON_HEADERS = {"Content-Type": "application/json"}


async def read_stream(
    response: httpx.Response,
    contender: Contender,
    answer: TimedAnswer,
    clock: Callable[[], float],
    limit: asyncio.Timeout,
) -> None:
    """Read the lines of a stream into `answer`; `limit` moves with every text, and ends soon after the last line."""
    splitter, head, now = LineSplitter(), "", asyncio.get_running_loop().time
    async for data in response.aiter_bytes():
        at, n_text, was_complete = clock(), len(answer.chunks), answer.is_complete
        for line in splitter.push(data):
            head = head or line.strip()
            take_line(line, at, contender, answer)
        if (n := len(answer.chunks)) > MAX_TEXTS * answer.wanted + MAX_MORE_TEXTS:
            return fail(answer, f"it does not stop: {n} texts where {answer.wanted} tokens were asked for")
        if len(splitter.rest) > MAX_LINE:
            return fail(answer, f"a line has more than {MAX_LINE} characters")
        if answer.is_complete and not was_complete:
            limit.reschedule(now() + GRACE_S)
        elif len(answer.chunks) > n_text:
            limit.reschedule(now() + contender.timeout_s)
    head = head or splitter.rest.strip()
    take_line(splitter.rest, clock(), contender, answer)
    if answer.outcome == "answered" and not answer.is_complete:
        is_other = head and not answer.chunks and not head.startswith(("{", "data:", "event:", "id:", "retry:", ":"))
        fail(answer, f"the answer is not JSON: {head[:60]!r}" if is_other else "the stream ended before the answer did")


def take_line(line: str, at: float, contender: Contender, answer: TimedAnswer) -> None:
    """Add a line's text, counts or error to `answer`, and whether it shows that the answer is complete."""
    line = line.strip()
    if line.startswith("data:"):
        line = line[5:].strip()
    elif not line.startswith("{"):
        return  # a comment, or another field of a server-sent event
    answer.ended = at if line else answer.ended
    if line == "[DONE]":
        answer.is_complete = True
    if line in ("", "[DONE]"):
        return
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        return fail(answer, f"a line is not JSON: {line[:60]!r}")
    try:
        part = contender.wire.parse(value)
        text = part.text.encode(errors="replace").decode()  # without halves of surrogate pairs
    except (AttributeError, TypeError, KeyError, ValueError, OverflowError):
        return fail(answer, f"a line has an unexpected form: {line[:60]!r}")
    if part.error:
        fail(answer, part.error)
    if text:
        answer.chunks.append((at, text, part.n_token))
    elif part.n_token and answer.chunks:  # tokens without text belong to the chunk before
        before, text, n = answer.chunks[-1]
        answer.chunks[-1] = before, text, (n or 0) + part.n_token
    if part.counts:
        answer.counts = merge_counts(answer.counts, part.counts)
    answer.is_complete |= part.is_last or bool(part.counts and part.counts.reason) or value.get("object") == "list"


def merge_counts(before: ServerCounts, after: ServerCounts) -> ServerCounts:
    """Return `after`, with the values of `before` where it has none."""
    known = {name: value for name, value in vars(after).items() if value not in (None, "")}
    return replace(before, **known)


def fail(answer: TimedAnswer, error: str) -> None:
    answer.outcome, answer.error = "failed", error


def status_text(body: bytes) -> str:
    """Return the message in the body of an error response."""
    text = body.decode(errors="replace")
    with suppress(ValueError, RecursionError):
        value = json.loads(text)
        if isinstance(value, dict):
            return error_message(value.get("error") or value.get("message") or value.get("detail") or value)
    return terminal_line(text)


def connection_text(error: httpx.HTTPError) -> str:
    """Return one line for a failed connection."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused"
        if isinstance(cause, socket.gaierror):
            return "unknown host"
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(error).split()) or type(error).__name__
    return "connection refused" if "All connection attempts failed" in text else text
