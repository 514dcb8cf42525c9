"""A soak test: many clients, half of which disconnect early.  Checks errors, memory growth and unreleased slots.

    python -m numllama.benchmarks.soak http://127.0.0.1:11434 --model primer [--clients 64] [--seconds 300]

Half of the requests are cancelled before or during the answer.  The server's memory and slots are read from its
GET /metrics.  The exit status is 1 if a check fails.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections import Counter
from dataclasses import dataclass, field
from time import perf_counter

import httpx
import numpy as np

from . import machine
from .client import answer_lines
from .workload import WORDS

MAX_GROWTH = 0.02  # accepted memory growth between the first fifth of the time and the end
READ_TIMEOUT_S = 300.0  # seconds without a byte
POLL_INTERVAL_S = 1.0  # seconds between two readings of the server's metrics


@dataclass
class Soak:
    """Clients of one server, and the outcomes of their requests.

    rss         readings of the server's memory, in bytes
    ended       number of requests by outcome
    left_over   requests that the server still held after the last client had finished
    """

    url: str
    model: str
    seconds: float
    rss: list[float] = field(default_factory=list)
    ended: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    left_over: float = 0
    until: float = 0

    async def run(self, n_client: int, seed: int = 0) -> None:
        """Run all clients until the time is over and their last answers have ended."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=self.url, timeout=READ_TIMEOUT_S, limits=limits) as http:
            await self.fill(http)
            self.until = perf_counter() + self.seconds
            watch = asyncio.create_task(self.watch(http))
            await asyncio.gather(*(self.client(http, random.Random(f"{seed} {n}")) for n in range(n_client)))
            await watch
            await asyncio.sleep(POLL_INTERVAL_S)
            self.left_over = await self.busy(http)

    async def fill(self, http: httpx.AsyncClient) -> None:
        """Send one large prompt, so that the server allocates its largest scratch buffers before memory is measured."""
        body = {"model": self.model, "prompt": " ".join(WORDS * 10), "options": {"num_predict": 1}}
        await http.post("/api/generate", json=body)

    async def client(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        """Send requests until the time is over."""
        while perf_counter() < self.until:
            try:
                self.ended[await self.request(http, rng)] += 1
            except (httpx.HTTPError, RuntimeError) as error:
                self.errors.append(f"{type(error).__name__}: {error}")

    async def request(self, http: httpx.AsyncClient, rng: random.Random) -> str:
        """Send one request and return its outcome.  Raises: RuntimeError for an error response"""
        prompt = " ".join(rng.choices(WORDS, k=rng.randrange(1, 100)))
        options = {"num_predict": rng.randrange(1, 100), "seed": rng.randrange(100)}
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], "options": options}
        asking = self.answer(http, body, leaves_after=rng.randrange(20) if rng.random() < 0.25 else None)
        if rng.random() < 0.25:
            try:
                return await asyncio.wait_for(asking, rng.random() * 2)
            except TimeoutError:
                return "disconnected at a random time"
        return await asking

    async def answer(self, http: httpx.AsyncClient, body: dict, leaves_after: int | None) -> str:
        """Read one answer, or disconnect after `leaves_after` lines."""
        async with http.stream("POST", "/api/chat", json=body) as answer:
            if answer.status_code != 200:
                raise RuntimeError(f"{answer.status_code} {(await answer.aread()).decode()[:200]}")
            lines: list[str] = []
            async for line in answer_lines(answer):
                if len(lines) == leaves_after:
                    return "disconnected after some lines"
                lines.append(line)
            if not lines or '"done":true' not in lines[-1]:
                raise RuntimeError(f"the answer is incomplete: {lines[-1:]}")
            return "answered"

    async def watch(self, http: httpx.AsyncClient) -> None:
        """Read the server's memory regularly until the time is over."""
        while perf_counter() < self.until:
            self.rss.append((await self.metrics(http))["process_resident_memory_bytes"])
            await asyncio.sleep(POLL_INTERVAL_S)

    async def busy(self, http: httpx.AsyncClient) -> float:
        """Return the number of requests that hold or wait for a slot."""
        names = ("numllama_model_running", "numllama_model_waiting", "numllama_load_queue")
        return sum(value for name, value in (await self.metrics(http)).items() if name.split("{")[0] in names)

    async def metrics(self, http: httpx.AsyncClient) -> dict[str, float]:
        """Read the server's metrics."""
        lines = (await http.get("/metrics")).text.splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[:1] != "#")}

    @property
    def growth(self) -> float:
        """Relative growth of memory from the first fifth of the time to the end, from medians of several readings."""
        n = max(1, len(self.rss) // 10)
        return float(np.median(self.rss[-n:]) / np.median(self.rss[2 * n : 3 * n] or self.rss) - 1)


def main(argv: list[str] | None = None) -> int:
    """Run the test, print its results, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("url")
    parser.add_argument("--model", required=True)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=300)
    o = parser.parse_args(argv)

    soak = Soak(o.url, o.model, o.seconds)
    asyncio.run(soak.run(o.clients))
    print(", ".join(f"{key} {value}" for key, value in (machine.describe() | {"clients": o.clients}).items()))
    print(", ".join(f"{n} {how}" for how, n in soak.ended.most_common()), f"in {o.seconds:g} s")
    for error in soak.errors[:5]:
        print("error:", error)
    rss = [f"{size / 2**20:.0f}" for size in soak.rss[:: max(1, len(soak.rss) // 10)]]
    print(f"MiB of memory over time: {' '.join(rss)}; growth {soak.growth:+.1%}")
    print(f"{len(soak.errors)} errors, {soak.left_over:.0f} slots not free")
    return int(bool(soak.errors or soak.left_over or soak.growth > MAX_GROWTH))


if __name__ == "__main__":
    sys.exit(main())
