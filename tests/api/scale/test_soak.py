"""A soak of replicas: many clients for minutes, while replicas are killed, added and removed.

NUMLLAMA_SOAK_S=300 pytest -s -m ray tests/api/scale/test_soak.py
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections import Counter

import httpx
import pytest
from clusters import NODE, running, told, two_doors
from serving import until

from numllama.api.scale.door import open_door
from numllama.engine.distributed.replicas import REQUESTS_PER_SLOT, SLOTS, Scale
from numllama.engine.errors import EngineError

SECONDS = float(os.environ.get("NUMLLAMA_SOAK_S", "0"))
pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(not SECONDS, reason="NUMLLAMA_SOAK_S says for how many seconds"),
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`"),  # Ray's own
]
ray = pytest.importorskip("ray")

N_CLIENT, N_PROMPT = 64, 32
KILL_S, SCALE_S = 20.0, 30.0  # between two kills, and between two changes of the number
ENDED = {"error": "the process that computed this answer ended; ask again"}


@pytest.fixture
def doors(cluster, tmp_path):
    """Start a door with replicas on a cluster of three nodes."""
    node = cluster.add_node(**NODE)
    with two_doors(cluster.address, tmp_path) as doors:
        yield doors
    cluster.remove_node(node)


def request(i):
    """Return the body of the i-th request, whose answer is always the same."""
    options = {"seed": i, "temperature": 3, "num_predict": 20 + 40 * (i % 8), "ignore_eos": True}
    return {"model": "m", "prompt": f"{i} " + "the cat and the dog " * (i % 5 * 4), "options": options}


class Clients:
    """Clients that ask the same requests over and over.  `ended` counts requests by how they ended."""

    def __init__(self, url, expected):
        self.url, self.expected, self.until = url, expected, time.monotonic() + SECONDS
        self.ended, self.wrong = Counter(), []

    async def run(self, n):
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self.url, timeout=120, limits=limits) as http:
            await asyncio.gather(*(self.client(http, random.Random(i)) for i in range(n)))

    async def client(self, http, chance):
        while time.monotonic() < self.until:
            i, kind = chance.randrange(N_PROMPT), chance.choice(["whole", "stream", "stream", "leaves"])
            try:
                self.ended[await self.ask(http, i, kind)] += 1
            except Exception as error:
                self.wrong.append((kind, i, repr(error)))

    async def ask(self, http, i, kind):
        """Ask the i-th request.  -> how it ended; every text is, or begins, the expected one.  Raises: Exception"""
        text, n_line, done = "", 0, False
        async with http.stream("POST", "/api/generate", json=request(i) | {"stream": kind != "whole"}) as answer:
            assert answer.status_code == 200, await answer.aread()
            async for line in answer.aiter_lines():
                value = json.loads(line)
                assert not done, f"a line after the last: {line}"
                if n_line and value == ENDED:  # one that had not begun is asked of another replica
                    return "begun, then ended with its replica"
                text += value["response"]
                assert self.expected[i].startswith(text), f"{text!r}, expected {self.expected[i]!r}"
                n_line, done = n_line + 1, value["done"]
                if kind == "leaves" and n_line > 5 and not done:
                    return "left"
        assert done, f"the stream ended after {n_line} lines without its last"
        assert text == self.expected[i], f"{text!r}, expected {self.expected[i]!r}"
        return kind


async def disturb(door, until, happened):
    """Kill a replica from time to time, and change their number between two and three."""
    loop, chance, n_wanted = asyncio.get_running_loop(), random.Random(7), 2
    next_kill, next_scale = (time.monotonic() + seconds for seconds in (KILL_S / 2, SCALE_S / 2))
    while time.monotonic() < until - 5:
        await asyncio.sleep(0.5)
        if time.monotonic() > next_kill:
            next_kill += KILL_S
            try:
                _, pid = chance.choice(await door.replicas.broadcast("pid"))
            except EngineError:
                continue
            os.kill(pid, signal.SIGKILL)
            happened["killed"] += 1
        if time.monotonic() > next_scale:
            next_scale += SCALE_S
            n_wanted = 5 - n_wanted
            await loop.run_in_executor(None, open_door, door.engine, door.address, Scale(n_wanted, n_wanted))
            happened[f"set to {n_wanted}"] += 1
    return n_wanted


def test_no_byte_is_wrong_and_no_request_is_lost_that_had_not_begun(doors):
    alone, door = doors
    expected = {i: alone.ok("/api/generate", **request(i), stream=False)["response"] for i in range(N_PROMPT)}

    async def soak():
        clients, happened = Clients(door.url, expected), Counter()
        _, n_wanted = await asyncio.gather(clients.run(N_CLIENT), disturb(door, clients.until, happened))
        return clients, happened, n_wanted

    clients, happened, n_wanted = asyncio.run(soak())
    print(f"\n{SECONDS:.0f} s, {N_CLIENT} clients: {dict(clients.ended)}; {dict(happened)}; wrong: {clients.wrong[:5]}")
    assert not clients.wrong
    assert clients.ended["whole"] and clients.ended["stream"] and happened["killed"] and happened["set to 3"]
    assert clients.ended["begun, then ended with its replica"] <= happened["killed"] * SLOTS * REQUESTS_PER_SLOT
    until(lambda: len(told(door.replicas, "pid")) == n_wanted, 60)
    until(lambda: not any(running(door.replicas).values()), 10)  # what was left or lost is computed no further
    for i, text in expected.items():
        assert door.ok("/api/generate", **request(i), stream=False)["response"] == text
