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
from functools import partial

import httpx
import pytest
from clusters import NODE, two_nodes
from serving import Served

from numllama.api.scale.door import Door, open_door
from numllama.engine.distributed.replicas import Scale
from numllama.engine.errors import EngineError
from numllama.engine.settings import Settings
from tiny import CHAT_TEMPLATE, tiny_gguf

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
def served(tmp_path):
    """Start a cluster of three nodes, and on it what `doors` yields."""
    with two_nodes() as cluster:
        cluster.add_node(**NODE)
        yield from doors(cluster.address, tmp_path)
        from ray import serve

        serve.shutdown()


def doors(address, folder):
    """Start a server alone, and a door with two replicas."""
    settings = Settings(models=folder / "models", builtin=False)
    alone = Served(settings)

    def door(engine):
        alone.replicas = open_door(engine, address, Scale(2, 2))
        return partial(Door, engine=engine, replicas=alone.replicas)

    through = Served(settings, door)
    through.replicas, through.address = alone.replicas, address
    alone.add("m", tiny_gguf(folder / "m.gguf", seed=1, chat_template=CHAT_TEMPLATE, n_ctx=4096))
    yield alone, through
    through.replicas.close()
    through.close()
    alone.close()


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
            text, n_line = "", 0
            try:
                async with http.stream(
                    "POST", "/api/generate", json=request(i) | {"stream": kind != "whole"}
                ) as answer:
                    async for line in answer.aiter_lines():
                        n_line += 1
                        value = json.loads(line)
                        if value == ENDED and n_line > 1:
                            self.ended["begun, then ended with its replica"] += 1
                            break
                        if "error" in value:
                            raise ValueError(line)
                        text += value["response"]
                        if value["done"]:
                            self.ended[kind] += 1
                            if text != self.expected[i]:
                                self.wrong.append((i, text))
                        elif kind == "leaves" and n_line > 5:
                            self.ended["left"] += 1
                            break
                    else:
                        assert value["done"], "the stream ended without its last line"
            except Exception as error:
                self.wrong.append((kind, n_line, repr(error)))


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


def test_no_byte_is_wrong_and_no_request_is_lost_that_had_not_begun(served):
    alone, door = served
    expected = {i: alone.ok("/api/generate", **request(i), stream=False)["response"] for i in range(N_PROMPT)}

    async def soak():
        clients, happened = Clients(door.url, expected), Counter()
        await asyncio.gather(clients.run(N_CLIENT), disturb(door, clients.until, happened))
        return clients, happened

    clients, happened = asyncio.run(soak())
    print(f"\n{SECONDS:.0f} s, {N_CLIENT} clients: {dict(clients.ended)}; {dict(happened)}; wrong: {clients.wrong[:5]}")
    assert not clients.wrong
    assert clients.ended["whole"] and clients.ended["stream"] and happened["killed"]
