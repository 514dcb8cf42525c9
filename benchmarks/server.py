"""Load test for servers of Ollama's or OpenAI's API; several servers are interleaved.

    python -m numllama.benchmarks.server ours=http://127.0.0.1:11434 [theirs=http://127.0.0.1:8080] --model m
        [--wire openai] [--clients 1 4 8] [--rate 0.5 2] [--requests 16] [--prompt 128] [--answer 64]
        [--shared 0.5] [--mixed] [--rounds 3] [--jsonl FILE] [--html FILE]

closed loop   --clients N: N clients, each sends its next request when it has received its answer
open loop     --rate R: R requests per second arrive at random (Poisson), whether or not the server keeps up

    ttft        time to first token: from the request to the first text
    itl         inter-token latency: time after the first text divided by the number of tokens after the first
    goodput     requests per second that met both limits, --ttft and --itl
    reported    load_duration + prompt_eval_duration + eval_duration, divided by the elapsed time; none of the three
                includes waiting for a slot

Token counts are the server's, not the number of chunks.  Every prompt is new except for its shared prefix, since
servers cache earlier prompts; all servers get the same prompts.  If a server answers a different number of requests
than it received, that is an error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from time import perf_counter, time_ns
from typing import Any

import httpx
import numpy as np

from . import machine, page, report

WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand"
    " part place case week company system program question work number night point home water room mother area money"
    " story fact month lot right study book eye job word business issue side kind head house service friend father"
).split()


async def answer_lines(answer: httpx.Response) -> AsyncIterator[str]:
    """Yield the lines of a stream, split at newlines only: httpx also splits at U+2028 and others within a text."""
    rest = b""
    async for chunk in answer.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace").removesuffix("\r")
    if rest:
        yield rest.decode("utf-8", "replace")


@dataclass(frozen=True)
class Answered:
    """One request's seconds and token counts.

    reported   the seconds the server reported for loading, prompt and answer; 0 if it does not report them
    """

    ttft: float
    total: float
    n_prompt: int
    n_sampled: int
    reported: float = 0.0

    @property
    def itl(self) -> float:
        return (self.total - self.ttft) / max(1, self.n_sampled - 1)


@dataclass(frozen=True)
class Load:
    """A load: `clients` at once, or `rate` requests per second.

    shared   fraction of each prompt that is common to all
    mixed    vary lengths: some prompts and answers are four times as long as others
    """

    requests: int
    prompt: int
    answer: int
    clients: int = 0
    rate: float = 0.0
    shared: float = 0.0
    mixed: bool = False

    @property
    def name(self) -> str:
        return f"{self.clients} clients" if self.clients else f"{self.rate:g}/s"

    def questions(self, seed: Sequence[int]) -> list[tuple[str, int]]:
        """Return prompts of about `prompt` words, each with the number of tokens to generate."""
        rng = np.random.default_rng(seed)
        scale = rng.choice([0.5, 1, 2], self.requests) if self.mixed else np.ones(self.requests)
        n_shared = int(self.prompt * self.shared)
        prefix = rng.choice(WORDS, n_shared).tolist()
        made = []
        for s in scale:
            own = rng.choice(WORDS, max(1, int(self.prompt * s) - n_shared)).tolist()
            made.append((" ".join(prefix + own), max(1, int(self.answer * s))))
        return made

    def arrivals(self, seed: Sequence[int]) -> np.ndarray:
        """Return the seconds from the start at which the requests of an open loop arrive."""
        return np.cumsum(np.random.default_rng(seed).exponential(1 / self.rate, self.requests))


class BenchServer:
    """A server at an address.  `wire` is "ollama" or "openai"."""

    def __init__(self, name: str, url: str, model: str, wire: str):
        self.name, self.url, self.model, self.wire = name, url.rstrip("/"), model, wire

    async def ask(self, client: httpx.AsyncClient, prompt: str, n: int) -> Answered:
        """Send one request and read its stream to the end.  Raises: RuntimeError for an error or a missing count"""
        began, first, counts = perf_counter(), 0.0, (0, 0, 0.0)
        async with client.stream("POST", self.url + self._path, json=self._body(prompt, n)) as answer:
            if answer.status_code != 200:
                raise RuntimeError(f"{self.name}: {answer.status_code} {(await answer.aread()).decode()[:200]}")
            async for text, counted in self._lines(answer):
                first = first or (perf_counter() if text else 0.0)
                counts = counted or counts
        ended = perf_counter()
        if not counts[1]:
            raise RuntimeError(f"{self.name}: the answer has no token count")
        return Answered((first or ended) - began, ended - began, *counts)

    @property
    def _path(self) -> str:
        return "/api/generate" if self.wire == "ollama" else "/v1/completions"

    def _body(self, prompt: str, n: int) -> dict[str, Any]:
        if self.wire == "ollama":
            return {"model": self.model, "prompt": prompt, "raw": True, "options": {"num_predict": n, "seed": 1}}
        more = {"stream": True, "stream_options": {"include_usage": True}, "seed": 1, "ignore_eos": True}
        return {"model": self.model, "prompt": prompt, "max_tokens": n, **more}

    async def _lines(self, answer: httpx.Response) -> AsyncIterator[tuple[str, tuple[int, int, float] | None]]:
        """Yield each line's text, with the token counts and reported seconds if it has them."""
        async for line in answer_lines(answer):
            data = line.removeprefix("data: ")
            if not data.startswith("{"):
                continue
            got = json.loads(data)
            if "error" in got:
                raise RuntimeError(f"{self.name}: {got['error']}")
            if self.wire == "ollama":
                reported = sum(got.get(f"{part}_duration", 0) for part in ("load", "prompt_eval", "eval")) / 1e9
                yield got["response"], (got["prompt_eval_count"], got["eval_count"], reported) if got["done"] else None
                continue
            usage = got.get("usage")
            counts = (usage["prompt_tokens"], usage["completion_tokens"], 0.0) if usage else None
            yield "".join(choice.get("text") or "" for choice in got["choices"]), counts


async def run_load(server: BenchServer, load: Load, seed: Sequence[int]) -> tuple[list[Answered], float]:
    """Send every request of a load.  -> the answers, and the total seconds"""
    questions = load.questions(seed)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)  # a server may close idle connections
    async with httpx.AsyncClient(timeout=None, limits=limits) as client:
        began = perf_counter()
        if load.clients:
            answers = await closed_loop(lambda q: server.ask(client, *q), questions, load.clients)
        else:
            waits = load.arrivals(seed)

            async def later(wait: float, question: tuple[str, int]) -> Answered:
                await asyncio.sleep(wait)
                return await server.ask(client, *question)

            answers = await asyncio.gather(*(later(w, q) for w, q in zip(waits, questions, strict=True)))
        return answers, perf_counter() - began


async def closed_loop(ask: Callable, questions: Sequence, n: int) -> list[Answered]:
    """Answer `questions` with `n` concurrent clients."""
    waiting, answers = iter(questions), []

    async def client() -> None:
        for question in waiting:
            answers.append(await ask(question))

    await asyncio.gather(*(client() for _ in range(n)))
    return answers


def summary(answers: Sequence[Answered], seconds: float, ttft: float, itl: float) -> dict[str, float]:
    """Return the figures of one run; ttft and itl are the limits for goodput, in seconds."""
    row: dict[str, float] = {
        "tok/s": sum(a.n_sampled for a in answers) / seconds,
        "prompt tok/s": sum(a.n_prompt for a in answers) / seconds,
        "total tok/s": sum(a.n_prompt + a.n_sampled for a in answers) / seconds,
        "goodput": sum(a.ttft <= ttft and a.itl <= itl for a in answers) / seconds,
    }
    if all(a.reported for a in answers):
        row["reported"] = float(np.median([a.reported / a.total for a in answers]))
    for name in ("ttft", "itl"):
        values = [getattr(a, name) for a in answers]
        row |= {f"{name} p{p}": float(np.percentile(values, p)) for p in (50, 90, 99)}
    return row


def measure_server(servers: list[BenchServer], loads: list[Load], rounds: int, ttft: float, itl: float) -> list[dict]:
    """Run each load on each server in turn, `rounds` times; return rows with medians of the rounds."""
    found: dict[tuple[Load, str], list[tuple[list[Answered], dict]]] = {}
    now = time_ns()
    for server in servers:  # warm-up: loads the model
        asyncio.run(run_load(server, Load(1, 8, 2, clients=1), [0]))
    for n in range(rounds):
        for i, load in enumerate(loads):
            for server in servers:
                answers, seconds = asyncio.run(run_load(server, load, [now, n, i]))
                assert len(answers) == load.requests
                found.setdefault((load, server.name), []).append((answers, summary(answers, seconds, ttft, itl)))
    rows = []
    for (load, name), runs in found.items():
        figures = {key: float(np.median([row[key] for _, row in runs])) for key in runs[0][1]}
        every = [answer for answers, _ in runs for answer in answers]
        rows.append(
            {"load": load.name, "server": name, "requests": load.requests, "rounds": rounds}
            | {
                "prompt": float(np.mean([a.n_prompt for a in every])),
                "answer": float(np.mean([a.n_sampled for a in every])),
            }
            | figures
            | {"ttfts": sorted(a.ttft for a in every), "itls": sorted(a.itl for a in every)}
        )
    return rows


COLUMNS = [
    "load",
    "server",
    "prompt",
    "answer",
    "tok/s",
    "total tok/s",
    "ttft p50",
    "ttft p99",
    "itl p50",
    "itl p99",
    "goodput",
    "reported",
]


def main(argv: list[str] | None = None) -> None:
    """Run the loads that the arguments describe, and write the table and the requested files.  Raises: RuntimeError"""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("servers", nargs="+", metavar="NAME=URL")
    parser.add_argument("--model", required=True)
    parser.add_argument("--wire", choices=["ollama", "openai"], default="ollama")
    parser.add_argument("--clients", nargs="*", type=int, default=[])
    parser.add_argument("--rate", nargs="*", type=float, default=[])
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=128, help="words, about as many tokens")
    parser.add_argument("--answer", type=int, default=64, help="tokens")
    parser.add_argument("--shared", type=float, default=0.0, help="fraction of every prompt that is the same")
    parser.add_argument("--mixed", action="store_true", help="vary lengths from half to double")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ttft", type=float, default=2.0, help="limit for goodput: seconds to the first text")
    parser.add_argument("--itl", type=float, default=0.2, help="limit for goodput: seconds between tokens")
    parser.add_argument("--jsonl", help="append the rows to this file")
    parser.add_argument("--html", help="write a page with charts to this file")
    o = parser.parse_args(argv)

    servers = [
        BenchServer(name, url, o.model, o.wire) for name, _, url in (given.partition("=") for given in o.servers)
    ]
    shape = {"shared": o.shared, "mixed": o.mixed}
    loads = [Load(o.requests, o.prompt, o.answer, clients=n, **shape) for n in o.clients]
    loads += [Load(o.requests, o.prompt, o.answer, rate=rate, **shape) for rate in o.rate]
    about = machine.describe() | {"model": o.model, "wire": o.wire} | shape
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    rows = measure_server(servers, loads, o.rounds, o.ttft, o.itl)
    print(report.markdown(rows, COLUMNS))
    if o.jsonl:
        report.append_jsonl(
            o.jsonl, (about | {k: v for k, v in row.items() if k not in ("ttfts", "itls")} for row in rows)
        )
    if o.html:
        page.write_page(o.html, "A server under load", about, rows, COLUMNS)


if __name__ == "__main__":
    main()
