"""A server may send anything in the form of its wire: it ends in figures or in one line, never in a traceback."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import httpx
import pytest
from fakes import serve_on_a_clock

from numllama.benchmarks.command import run_part
from numllama.benchmarks.fake import PATHS, Fake, FakeTransport
from numllama.benchmarks.wires import WIRES
from numllama.engine.errors import EngineError

VALUES = [None, True, -1, 0, 1, 12, 1e308, math.inf, math.nan, 10**30, "", "x", "12", "\ud800", "\x1b[2J\n"]
VALUES += [[], {}, [1], [None], [[1]], {"a": 1}, [{"token": "x"}], {"tokens": [1]}, {"content": None}]
FLAGS = "--prompt 32 --answer 12 --rounds 2 --requests 2 --busy --seed 1".split()


class Nonsense(FakeTransport):
    """A fake that is named b, in whose lines values are replaced or missing; what it tells about itself is nonsense."""

    def __init__(self, fake, clock, rng, rate):
        super().__init__(fake, clock)
        self.rng, self.rate = rng, rate if fake.words == "b" else 0.0

    def spoiled(self, value):
        if self.rng.random() < self.rate:
            return self.rng.choice(VALUES)
        if isinstance(value, dict):
            return {k: self.spoiled(x) for k, x in value.items() if self.rng.random() >= self.rate / 2}
        return [self.spoiled(x) for x in value] if isinstance(value, list) else value

    async def handle_async_request(self, request):
        if request.url.path in PATHS or not self.rate:
            return await super().handle_async_request(request)
        told = self.rng.choice(VALUES)
        settings = {"default_generation_settings": {"n_ctx": told}, "build_info": told, "version": told, "tokens": told}
        about = [settings, {"models": VALUES, "data": VALUES}, {"models": 3, "data": 3}, told]
        return httpx.Response(200, content=json.dumps(self.rng.choice(about)).encode())

    async def stream(self, lines):
        async for data in super().stream(lines):
            head, brace, rest = data.decode().partition("{")
            if brace:
                spoiled = json.dumps(self.spoiled(json.loads(brace + rest)))
                data = f"{head}{spoiled}\n\n".encode()
            yield data


def check_nonsense(seed, monkeypatch, path):
    rng = random.Random(seed)
    rate = rng.choice([0.002, 0.01, 0.05, 0.2])
    a = Fake(rng.choice(list(WIRES)), first=0.04, step=0.005)
    b = replace(a, wire=rng.choice(list(WIRES)), words="b")
    flags = [*FLAGS, *rng.choice([[], ["--unequal"]]), "--jsonl", str(path)]
    flags += ["--chat"] if rng.random() < 0.3 and "llama" not in (a.wire, b.wire) else []
    try:
        serve_on_a_clock(monkeypatch, *flags, made=lambda fake, clock: Nonsense(fake, clock, rng, rate), a=a, b=b)
        run_part(["report", str(path)])
    except EngineError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize("seed", range(12, 22))
def test_nonsense_ends_in_figures_or_one_line(seed, monkeypatch, tmp_path):
    check_nonsense(seed, monkeypatch, tmp_path / "rows.jsonl")


@pytest.mark.slow
def test_much_nonsense_ends_in_figures_or_one_line(monkeypatch, tmp_path):
    for seed in range(100, 300):
        check_nonsense(seed, monkeypatch, tmp_path / f"{seed}.jsonl")
