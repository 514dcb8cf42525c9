"""Minutes of many clients that change their minds: no error, no memory lost, every slot of the server free at the end.

    python -m numllama.benchmarks.soak http://127.0.0.1:11434 --model primer [--clients 64] [--seconds 300]

Half of the requests are broken off: before an answer, or after some of it.  The server's memory and slots are read from
its GET /metrics.  The exit status is 1 if anything is not as it should be.
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
from .server import WORDS

FLAT = 0.02  # growth of memory that is none, from a fifth of the time to its end
STUCK = 300.0  # seconds without a byte
EVERY = 1.0  # seconds between two looks at it


@dataclass
class Soak:
    """Clients of one server, and what became of their requests.

    rss         bytes of the server's memory, look by look
    ended       how many requests ended how
    left_over   requests that the server still had when the last client had gone
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
        """All clients until the time is over, then until the last answer is."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=self.url, timeout=STUCK, limits=limits) as http:
            await self.fill(http)
            self.until = perf_counter() + self.seconds
            watch = asyncio.create_task(self.watch(http))
            await asyncio.gather(*(self.client(http, random.Random(f"{seed} {n}")) for n in range(n_client)))
            await watch
            await asyncio.sleep(EVERY)
            self.left_over = await self.busy(http)

    async def fill(self, http: httpx.AsyncClient) -> None:
        """A batch as large as they come: what it works in stays with the server, and so does not grow later."""
        body = {"model": self.model, "prompt": " ".join(WORDS * 10), "options": {"num_predict": 1}}
        await http.post("/api/generate", json=body)

    async def client(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        while perf_counter() < self.until:
            try:
                self.ended[await self.request(http, rng)] += 1
            except (httpx.HTTPError, RuntimeError) as error:
                self.errors.append(f"{type(error).__name__}: {error}")

    async def request(self, http: httpx.AsyncClient, rng: random.Random) -> str:
        """How one request ended.  Raises: RuntimeError for an answer that is none"""
        prompt = " ".join(rng.choices(WORDS, k=rng.randrange(1, 100)))
        options = {"num_predict": rng.randrange(1, 100), "seed": rng.randrange(100)}
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], "options": options}
        asking = self.answer(http, body, leaves_after=rng.randrange(20) if rng.random() < 0.25 else None)
        if rng.random() < 0.25:
            try:
                return await asyncio.wait_for(asking, rng.random() * 2)
            except TimeoutError:
                return "left at some moment"
        return await asking

    async def answer(self, http: httpx.AsyncClient, body: dict, leaves_after: int | None) -> str:
        async with http.stream("POST", "/api/chat", json=body) as answer:
            if answer.status_code != 200:
                raise RuntimeError(f"{answer.status_code} {(await answer.aread()).decode()[:200]}")
            lines: list[str] = []
            async for line in answer.aiter_lines():
                if len(lines) == leaves_after:
                    return "left after some lines"
                lines.append(line)
            if not lines or '"done":true' not in lines[-1]:
                raise RuntimeError(f"an answer without an end: {lines[-1:]}")
            return "answered"

    async def watch(self, http: httpx.AsyncClient) -> None:
        while perf_counter() < self.until:
            self.rss.append((await self.metrics(http))["process_resident_memory_bytes"])
            await asyncio.sleep(EVERY)

    async def busy(self, http: httpx.AsyncClient) -> float:
        """Requests that have or want a slot."""
        names = ("numllama_model_running", "numllama_model_waiting", "numllama_load_queue")
        return sum(value for name, value in (await self.metrics(http)).items() if name.split("{")[0] in names)

    async def metrics(self, http: httpx.AsyncClient) -> dict[str, float]:
        lines = (await http.get("/metrics")).text.splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[:1] != "#")}

    @property
    def growth(self) -> float:
        """Memory at the end over memory after a fifth of the time, less one; medians of a tenth of the looks each."""
        n = max(1, len(self.rss) // 10)
        return float(np.median(self.rss[-n:]) / np.median(self.rss[2 * n : 3 * n] or self.rss) - 1)


def main(argv: list[str] | None = None) -> int:
    """The exit status; what became of it goes to standard output."""
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
    return int(bool(soak.errors or soak.left_over or soak.growth > FLAT))


if __name__ == "__main__":
    sys.exit(main())
