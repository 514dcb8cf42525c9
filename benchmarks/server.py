"""A server under load: any that speaks Ollama's or OpenAI's API, several of them interleaved.

    python -m numllama.benchmarks.server ours=http://127.0.0.1:11434 [theirs=http://127.0.0.1:8080] --model m
        [--wire openai] [--clients 1 4 8] [--rate 0.5 2] [--requests 16] [--prompt 128] [--answer 64]
        [--shared 0.5] [--mixed] [--rounds 3] [--jsonl FILE] [--html FILE]

closed loop   --clients N: N of them, each asks again as soon as it has its answer
open loop     --rate R: R requests a second arrive at random (Poisson), whether or not the server keeps up

    ttft        from a request to its first text
    itl         between tokens of one answer: its time after the first text by its tokens after the first
    goodput     requests a second that kept both promises, --ttft and --itl
    told        load_duration + prompt_eval_duration + eval_duration, by the time that passed here; a wait for a slot is
                in none of the three

Tokens are those that the server counted, not its chunks.  Every prompt is new but for its shared beginning, as servers
remember what an earlier run asked, and the same for every server.  A server that answers another number of requests
than it was asked is an error, not a figure.
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


@dataclass(frozen=True)
class Answered:
    """One request's seconds and tokens.

    told   the seconds that the server says it took to load, for the prompt and for the answer; 0 where it does not say
    """

    ttft: float
    total: float
    n_prompt: int
    n_sampled: int
    told: float = 0.0

    @property
    def itl(self) -> float:
        return (self.total - self.ttft) / max(1, self.n_sampled - 1)


@dataclass(frozen=True)
class Load:
    """What is asked of a server, and how: `clients` at once, or `rate` a second.

    shared   part of each prompt that all have in common
    mixed    lengths vary: some prompts and answers are four times as long as others
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
        """Prompts of about `prompt` words, and how many tokens to answer with."""
        rng = np.random.default_rng(seed)
        scale = rng.choice([0.5, 1, 2], self.requests) if self.mixed else np.ones(self.requests)
        n_shared = int(self.prompt * self.shared)
        beginning = rng.choice(WORDS, n_shared).tolist()
        made = []
        for s in scale:
            own = rng.choice(WORDS, max(1, int(self.prompt * s) - n_shared)).tolist()
            made.append((" ".join(beginning + own), max(1, int(self.answer * s))))
        return made

    def arrivals(self, seed: Sequence[int]) -> np.ndarray:
        """Seconds from the beginning at which requests of an open loop come."""
        return np.cumsum(np.random.default_rng(seed).exponential(1 / self.rate, self.requests))


class BenchServer:
    """A server by its address.  `wire` is "ollama" or "openai"."""

    def __init__(self, name: str, url: str, model: str, wire: str):
        self.name, self.url, self.model, self.wire = name, url.rstrip("/"), model, wire

    async def ask(self, client: httpx.AsyncClient, prompt: str, n: int) -> Answered:
        """One request, its stream read to the end.  Raises: RuntimeError for an answer that is none."""
        began, first, counts = perf_counter(), 0.0, (0, 0, 0.0)
        async with client.stream("POST", self.url + self._path, json=self._body(prompt, n)) as answer:
            if answer.status_code != 200:
                raise RuntimeError(f"{self.name}: {answer.status_code} {(await answer.aread()).decode()[:200]}")
            async for said, counted in self._lines(answer):
                first = first or (perf_counter() if said else 0.0)
                counts = counted or counts
        ended = perf_counter()
        if not counts[1]:
            raise RuntimeError(f"{self.name}: an answer without its number of tokens")
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
        """Each line's text; the counts of tokens, and the seconds told, where it has them."""
        async for line in answer.aiter_lines():
            data = line.removeprefix("data: ")
            if not data.startswith("{"):
                continue
            got = json.loads(data)
            if "error" in got:
                raise RuntimeError(f"{self.name}: {got['error']}")
            if self.wire == "ollama":
                told = sum(got.get(f"{part}_duration", 0) for part in ("load", "prompt_eval", "eval")) / 1e9
                yield got["response"], (got["prompt_eval_count"], got["eval_count"], told) if got["done"] else None
                continue
            usage = got.get("usage")
            counts = (usage["prompt_tokens"], usage["completion_tokens"], 0.0) if usage else None
            yield "".join(choice.get("text") or "" for choice in got["choices"]), counts


async def run_load(server: BenchServer, load: Load, seed: Sequence[int]) -> tuple[list[Answered], float]:
    """Every answer, and the seconds that all together took."""
    questions = load.questions(seed)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)  # servers end idle ones when they like
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
    waiting, answers = iter(questions), []

    async def client() -> None:
        for question in waiting:
            answers.append(await ask(question))

    await asyncio.gather(*(client() for _ in range(n)))
    return answers


def summary(answers: Sequence[Answered], seconds: float, ttft: float, itl: float) -> dict[str, float]:
    """The figures of one run; promises in seconds."""
    row: dict[str, float] = {
        "tok/s": sum(a.n_sampled for a in answers) / seconds,
        "prompt tok/s": sum(a.n_prompt for a in answers) / seconds,
        "total tok/s": sum(a.n_prompt + a.n_sampled for a in answers) / seconds,
        "goodput": sum(a.ttft <= ttft and a.itl <= itl for a in answers) / seconds,
    }
    if all(a.told for a in answers):
        row["told"] = float(np.median([a.told / a.total for a in answers]))
    for name in ("ttft", "itl"):
        values = [getattr(a, name) for a in answers]
        row |= {f"{name} p{p}": float(np.percentile(values, p)) for p in (50, 90, 99)}
    return row


def measure_server(servers: list[BenchServer], loads: list[Load], rounds: int, ttft: float, itl: float) -> list[dict]:
    """Each load on each server in turn, `rounds` times over; medians of the rounds."""
    found: dict[tuple[Load, str], list[tuple[list[Answered], dict]]] = {}
    now = time_ns()
    for server in servers:  # loads the model, and is not counted
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
    "told",
]


def main(argv: list[str] | None = None) -> None:
    """Prints the table of what the arguments ask for, and writes what they name.  Raises: RuntimeError"""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("servers", nargs="+", metavar="NAME=URL")
    parser.add_argument("--model", required=True)
    parser.add_argument("--wire", choices=["ollama", "openai"], default="ollama")
    parser.add_argument("--clients", nargs="*", type=int, default=[])
    parser.add_argument("--rate", nargs="*", type=float, default=[])
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=128, help="words, about as many tokens")
    parser.add_argument("--answer", type=int, default=64, help="tokens")
    parser.add_argument("--shared", type=float, default=0.0, help="part of every prompt that is the same")
    parser.add_argument("--mixed", action="store_true", help="lengths from half to double")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ttft", type=float, default=2.0, help="seconds promised to the first text")
    parser.add_argument("--itl", type=float, default=0.2, help="seconds promised between tokens")
    parser.add_argument("--jsonl", help="append the rows to this file")
    parser.add_argument("--html", help="write a page with charts")
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
