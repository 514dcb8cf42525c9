"""Servers with known token times, on every wire: what the harness itself is measured with.

    python -m numllama.benchmarks.fake '{"wire": "openai", "first": 0.1, "step": 0.02}' [PORT]     prints its port

A fake answers with n tokens at first, first + step, first + 2 step, ... seconds after the request, and can misbehave:
send coarse chunks, hold chunks back and send them in bursts, count wrongly, tell wrong durations, refuse, break off,
send a text before its first token, or work less where it is not watched.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from time import perf_counter
from typing import Any
from zlib import crc32

import httpx
import numpy as np

from .wires import WIRES
from .workload import WORDS

TimedBytes = tuple[float, bytes]
"""Bytes and when they are sent, in seconds after the request."""
HEAD = "HTTP/1.1 {} X\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
PATHS = {path for wire in WIRES.values() for path in wire.paths.values()}
WORD_SET = {*WORDS, "one", "two", "three", "four", "hello"}
NEVER = 1 << 30
SPIN_S = 0.002  # the event loop's timers are this late at most; the rest is waited for in a loop


@dataclass(frozen=True)
class Fake:
    """A server's behaviour.

    first, step     seconds to the first token, and between two tokens
    per_chunk       tokens in a chunk, which is sent with its last token
    burst           chunks that are sent together, with the last one
    stops_at        tokens after which the answer ends, whatever was asked; 0: never
    counts          the count that it tells, as a multiple of the true one
    clock           the durations that it tells, as a multiple of the true ones
    template        prompt tokens that it adds
    refuse_every    every so many requests are refused with 503; 0: none
    breaks_at       the connection breaks after this token; 0: never
    jitter          standard deviation of a request's speed, as a share
    tells           whether it tells counts at all
    early           when it sends `early_text` in place of its first token; 0: never
    splits          chunks of a token
    is_held         whether everything is sent with the last token, 0.1 ms apart
    is_canned       whether its answer is the same to every prompt
    overshoots      tokens more than asked for
    remembers       whether a prompt that it has seen takes a tenth of `first`, and is not told as cached
    on_prose        its time where a prompt has other words than those of a benchmark, as a multiple
    after           requests after which it is `later` times as slow, its streams carry the share `carries`, and, if it
                    is set, `early` and `is_held` begin
    empty_every     every so many answers have no text, `after` those; 0: none
    """

    wire: str = "ollama"
    first: float = 0.1
    step: float = 0.02
    per_chunk: int = 1
    burst: int = 1
    stops_at: int = 0
    counts: float = 1.0
    clock: float = 1.0
    template: int = 0
    cached: int | None = None
    refuse_every: int = 0
    breaks_at: int = 0
    jitter: float = 0.0
    seed: int = 0
    tells: bool = True
    words: str = "w"
    early: float = 0.0
    early_text: str = " "
    splits: int = 1
    is_held: bool = False
    is_canned: bool = False
    overshoots: int = 0
    remembers: bool = False
    on_prose: float = 1.0
    after: int = NEVER
    later: float = 1.0
    carries: float = 1.0
    empty_every: int = 0

    def for_request(self, number: int, prompt: str, seen: set[str]) -> Fake:
        """Return the behaviour towards a request, which is the `number`th; `seen` holds the prompts before it."""
        known = self.remembers and prompt in seen
        seen.add(prompt)
        slow = (self.later if number > self.after else 1.0) * (
            1.0 if set(prompt.split()) <= WORD_SET else self.on_prose
        )
        first = self.first * slow * (0.1 if known else 1.0)
        more: dict[str, Any] = {} if number > self.after else {"carries": 1.0}
        more |= {"early": 0.0, "is_held": False} if number <= self.after < NEVER else {}
        return replace(self, first=first, step=self.step * slow, **more)

    def token_times(self, n: int, speed: float = 1.0) -> list[float]:
        return [speed * (self.first + i * self.step) for i in range(n)]

    def script(self, path: str, body: dict[str, Any], speed: float = 1.0) -> list[TimedBytes]:
        """Return the lines of the answer to a request, each with its time."""
        n = wanted_tokens(body) + self.overshoots
        n = min(n, self.stops_at) if self.stops_at else n
        times = self.token_times(n, speed)
        mark = 0 if self.is_canned else crc32(prompt_of(body).encode()) % 1000
        lines: list[TimedBytes] = []
        for i in range(0, math.ceil(n * self.carries), self.per_chunk):
            part = range(i, min(i + self.per_chunk, n))
            words = [f" {self.words}{t}-{mark}" for t in part]
            if self.splits > 1:  # a token's text in pieces of about the same length
                cuts = np.linspace(0, len(words[0]), self.splits + 1).astype(int)
                words = [words[0][a:b] for a, b in pairwise(cuts)]
                lines += [(times[part[-1]] + 1e-4 * k, self.line(path, [word], body)) for k, word in enumerate(words)]
            else:
                lines.append((times[part[-1]], self.line(path, words, body)))
        if self.is_held:
            lines = [(times[-1] + 1e-4 * k, data) for k, (_, data) in enumerate(lines)]
        if self.early:
            lines[0] = self.early, self.line(path, [self.early_text], body)
        if self.breaks_at:
            return lines[: self.breaks_at]
        if self.burst > 1:
            ends = [lines[min(i - i % self.burst + self.burst, len(lines)) - 1][0] for i in range(len(lines))]
            lines = [(end, data) for end, (_, data) in zip(ends, lines, strict=True)]
        last = lines[-1][0] if lines else self.first * speed
        return lines + [(last, data) for data in self.final_lines(path, body, n, times)]

    def line(self, path: str, words: Sequence[str], body: dict[str, Any]) -> bytes:
        """Return a chunk of text in the form of the wire."""
        text, logprobs = "".join(words), [{"token": word, "logprob": -0.5} for word in words]
        if self.wire == "ollama":
            piece: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
            piece = piece if path == "/api/chat" else {"response": text}
            return ndjson(piece | {"done": False} | ({"logprobs": logprobs} if body.get("logprobs") else {}))
        if self.wire == "llama":
            return sse({"content": text, "tokens": list(range(len(words))), "stop": False})
        if path.endswith("/chat/completions"):
            choice: dict[str, Any] = {"delta": {"content": text}, "finish_reason": None}
            choice |= {"logprobs": {"content": logprobs}} if body.get("logprobs") else {}
        else:
            choice = {"text": text, "finish_reason": None}
            choice |= {"logprobs": {"tokens": list(words)}} if body.get("logprobs") else {}
        return sse({"choices": [choice]})

    def final_lines(self, path: str, body: dict[str, Any], n: int, times: Sequence[float]) -> Iterator[bytes]:
        """Yield the lines with counts and durations."""
        prompt, told = self.prompt_tokens(body), round(n * self.counts)
        reason = "stop" if self.stops_at and n == self.stops_at else "length"
        prefill, decode = self.clock * times[0], self.clock * (times[-1] - times[0])
        if self.wire == "ollama":
            line: dict[str, Any] = {"message": {"content": ""}} if path == "/api/chat" else {"response": ""}
            line |= {"done": True, "done_reason": reason}
            if self.tells:
                line |= {"prompt_eval_count": prompt, "eval_count": told}
                line |= {"prompt_eval_duration": int(1e9 * prefill), "eval_duration": int(1e9 * decode)}
                line |= {} if self.cached is None else {"prompt_eval_cached_count": self.cached}
            yield ndjson(line)
            return
        timings = {"prompt_ms": 1e3 * prefill, "predicted_ms": 1e3 * decode}
        timings |= {} if self.cached is None else {"cache_n": self.cached}
        if self.wire == "llama":
            line = {"content": "", "stop": True, "stop_type": reason}
            counts = {"tokens_evaluated": prompt, "tokens_predicted": told, "timings": timings}
            yield sse(line | (counts if self.tells else {}))
            return
        choice: dict[str, Any] = {"delta": {}} if path.endswith("/chat/completions") else {"text": ""}
        yield sse({"choices": [choice | {"finish_reason": reason}]})
        if self.tells:
            usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": told}
            usage |= {} if self.cached is None else {"prompt_tokens_details": {"cached_tokens": self.cached}}
            yield sse({"choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"

    def prompt_tokens(self, body: dict[str, Any]) -> int:
        return self.template + len(prompt_of(body).split())


def prompt_of(body: dict[str, Any]) -> str:
    return str(body.get("prompt") or " ".join(str(m.get("content")) for m in body.get("messages") or ()))


def wanted_tokens(body: dict[str, Any]) -> int:
    """Return the number of tokens that a request of any wire asks for."""
    options = body.get("options") or {}
    return int(options.get("num_predict") or body.get("max_tokens") or body.get("n_predict") or 16)


def ndjson(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def sse(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


# --- on a clock that the script itself moves


class FakeClock:
    """A clock that stands still until a fake sends something."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Replies:
    """A fake's answers to its requests, in order: how many it had, and which prompts."""

    def __init__(self, fake: Fake):
        self.fake, self.n, self.seen = fake, 0, set[str]()

    def take(self, path: str, body: dict[str, Any], speed: float = 1.0) -> Sequence[TimedBytes] | None:
        """Return the lines of the answer to the next request, each with its time; None if it is refused."""
        self.n += 1
        if self.fake.refuse_every and self.n % self.fake.refuse_every == 0:
            return None
        lines = self.fake.for_request(self.n, prompt_of(body), self.seen).script(path, body, speed)
        if self.fake.empty_every and self.n > self.fake.after and self.n % self.fake.empty_every == 0:
            return lines[-3:] if self.fake.wire == "openai" else lines[-1:]
        return lines


class FakeTransport(httpx.AsyncBaseTransport):
    """A fake in place of the network: its clock is exact, so the figures must be too."""

    def __init__(self, fake: Fake, clock: FakeClock):
        self.fake, self.clock, self.replies = fake, clock, Replies(fake)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path not in PATHS:
            return httpx.Response(404)
        lines = self.replies.take(request.url.path, json.loads(await request.aread()))
        if lines is None:
            return httpx.Response(503, json={"error": "busy"})
        return httpx.Response(200, content=self.stream(lines))

    async def stream(self, lines: Iterable[TimedBytes]) -> AsyncIterator[bytes]:
        began = self.clock.now
        for at, data in lines:
            self.clock.now = began + at
            yield data
        if self.fake.breaks_at:
            raise httpx.ReadError("the connection broke")


# --- on a socket, in a process of its own


class FakeListener:
    """A fake on a socket.  GET /sent returns when it sent the lines of each answer, in seconds after the request."""

    def __init__(self, fake: Fake):
        self.fake, self.replies, self.rng = fake, Replies(fake), np.random.default_rng(fake.seed)
        self.sent: list[list[float]] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and close the connection."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.IncompleteReadError:
            return writer.close()
        began = perf_counter()
        length = next((int(x[15:]) for x in head.split("\r\n") if x.lower().startswith("content-length:")), 0)
        body = json.loads(await reader.readexactly(length) or b"{}")
        _, path, _ = head.split(" ", 2)
        if path not in PATHS:
            length = 0
        speed = float(np.exp(self.fake.jitter * self.rng.standard_normal()))
        lines = self.replies.take(path, body, speed) if length else []
        is_refused, is_known = lines is None, length or path == "/sent"
        writer.write(HEAD.format(503 if is_refused else 200 if is_known else 404).encode())
        if path == "/sent":
            data = json.dumps(self.sent).encode()
            writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        if is_refused:
            writer.write(b'10\r\n{"error":"busy"}\r\n')
        if length and lines is not None:
            self.sent.append([])
            for at, data in lines:
                await sleep_until(began + at)
                if writer.is_closing() or reader.at_eof():
                    return writer.close()  # the client has gone
                self.sent[-1].append(perf_counter() - began)
                writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        if not self.fake.breaks_at or not length:
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        writer.close()


async def sleep_until(moment: float) -> None:
    """Sleep until a moment of perf_counter, to within 0.1 ms on an idle core."""
    if (rest := moment - perf_counter()) > SPIN_S:
        await asyncio.sleep(rest - SPIN_S)
    while perf_counter() < moment:
        await asyncio.sleep(0)


async def listen_forever(fake: Fake, port: int = 0) -> None:
    server = await asyncio.start_server(FakeListener(fake).answer, "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def fake_server(fake: Fake) -> Iterator[str]:
    """Start a fake in a process of its own and yield its address, in the form of `bench serve`."""
    command = [sys.executable, "-P", "-m", __spec__.name, json.dumps(asdict(fake))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        yield f"{fake.wire}+http://127.0.0.1:{port}#fake"
    finally:
        process.terminate()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


if __name__ == "__main__":
    asyncio.run(listen_forever(Fake(**json.loads(sys.argv[1])), *map(int, sys.argv[2:])))
