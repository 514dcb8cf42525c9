"""A client that takes the time of every chunk: one request, one TimedAnswer.

The clock is read when bytes arrive, before they are parsed.  Every request has a connection of its own, so that none
fails because a server closed an idle one; its set-up counts, as it does for a first request.
"""

from __future__ import annotations

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
from .wires import Contender, Prompted, error_message

REFUSED_STATUSES = (429, 503)


class LineSplitter:
    """Bytes in, complete lines out."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._rest = ""

    def push(self, data: bytes) -> Iterator[str]:
        *lines, self._rest = (self._rest + self._decode(data)).split("\n")
        yield from lines

    def finish(self) -> str:
        return self._rest


async def answer_lines(answer: httpx.Response) -> AsyncIterator[str]:
    """Yield the lines of a stream, split at newlines only: httpx also splits at U+2028 and others within a text."""
    splitter = LineSplitter()
    async for data in answer.aiter_bytes():
        for line in splitter.push(data):
            yield line.removesuffix("\r")
    if rest := splitter.finish():
        yield rest


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
    clock: Callable[[], float] = perf_counter,
) -> TimedAnswer:
    """Send one request, read its stream to the end, and return what arrived when; failures are outcomes, not errors."""
    body = json.dumps(contender.write(asked)).encode()
    answer = TimedAnswer(clock(), due, wanted=asked.n)
    try:
        async with http.stream("POST", contender.path(asked.kind), content=body, headers=JSON_HEADERS) as response:
            if response.status_code != 200:
                answer.error = f"{response.status_code} {status_text(await response.aread())}"
                answer.outcome = "refused" if response.status_code in REFUSED_STATUSES else "failed"
            else:
                await read_stream(response, contender, answer, clock)
    except httpx.TimeoutException:
        fail(answer, f"no byte for {contender.timeout_s:g} s")
    except httpx.HTTPError as error:
        fail(answer, connection_text(error))
    answer.ended = answer.ended or clock()
    if answer.outcome == "answered" and not answer.chunks and asked.kind != "embed":
        fail(answer, "the answer has no text")
    if answer.chunks and all(n is not None for _, _, n in answer.chunks):
        answer.carried = sum(n or 0 for _, _, n in answer.chunks)
    return answer


JSON_HEADERS = {"Content-Type": "application/json"}


async def read_stream(
    response: httpx.Response, contender: Contender, answer: TimedAnswer, clock: Callable[[], float]
) -> None:
    """Read the lines of a stream into `answer`."""
    splitter, is_complete = LineSplitter(), False
    async for data in response.aiter_bytes():
        at = clock()
        for line in splitter.push(data):
            is_complete |= take_line(line, at, contender, answer)
    answer.ended = clock()
    is_complete |= take_line(splitter.finish(), answer.ended, contender, answer)
    if answer.outcome == "answered" and not is_complete:
        fail(answer, "the stream ended before the answer did")


def take_line(line: str, at: float, contender: Contender, answer: TimedAnswer) -> bool:
    """Add a line's text, counts or error to `answer`.  -> whether it shows that the answer is complete"""
    line = line.strip()
    if line.startswith("data:"):
        line = line[5:].strip()
    elif line and not line.startswith("{"):
        return False  # a comment, or another field of a server-sent event
    if line == "[DONE]":
        return True
    if not line:
        return False
    try:
        value: Any = json.loads(line)
    except ValueError:
        fail(answer, f"a line is not JSON: {line[:60]!r}")
        return False
    try:
        part = contender.wire.parse(value)
    except (AttributeError, TypeError, KeyError, ValueError):
        fail(answer, f"a line has an unexpected form: {line[:60]!r}")
        return False
    if part.error:
        fail(answer, part.error)
    if part.text:
        answer.chunks.append((at, part.text, part.n_token))
    elif part.n_token and answer.chunks:  # tokens without text belong to the chunk before
        before, text, n = answer.chunks[-1]
        answer.chunks[-1] = before, text, (n or 0) + part.n_token
    if part.counts:
        answer.counts = merge_counts(answer.counts, part.counts)
    return part.is_last or bool(part.counts and part.counts.reason) or value.get("object") == "list"


def merge_counts(before: ServerCounts, after: ServerCounts) -> ServerCounts:
    """Return `after`, with the values of `before` where it has none."""
    known = {name: value for name, value in vars(after).items() if value not in (None, "")}
    return replace(before, **known)


def fail(answer: TimedAnswer, error: str) -> None:
    answer.outcome, answer.error = "failed", error


def status_text(body: bytes) -> str:
    """Return the message in the body of an error response."""
    text = body.decode(errors="replace")
    with suppress(ValueError):
        value = json.loads(text)
        if isinstance(value, dict):
            return error_message(value.get("error") or value.get("message") or value.get("detail") or value)
    return " ".join(text.split())[:200]


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
