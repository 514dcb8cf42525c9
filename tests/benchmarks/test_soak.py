"""The soak test passes on a healthy server and detects a faulty one."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from serving import Served

from numllama.benchmarks.client import answer_lines
from numllama.benchmarks.soak import Soak, main
from numllama.engine.errors import EngineError
from numllama.engine.serve.engine import Engine
from numllama.engine.settings import Settings
from tiny import CHAT_TEMPLATE, tiny_gguf


@pytest.fixture(autouse=True)
def fast_polling(monkeypatch):
    """Read the server's memory ten times a second."""
    monkeypatch.setattr("numllama.benchmarks.soak.POLL_INTERVAL_S", 0.1)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    server = Served(Settings(models=tmp_path_factory.mktemp("store"), builtin=False))
    server.add("m", tiny_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", seed=2, chat_template=CHAT_TEMPLATE))
    yield server
    server.close()


def test_a_healthy_server_passes(served):
    soak = Soak(served.url, "m", 1.0)
    asyncio.run(soak.run(16))
    assert not soak.errors and soak.left_over == 0 and len(soak.rss) >= 2
    assert set(soak.ended) == {"answered", "disconnected after some lines", "disconnected at a random time"}


def test_an_error_response_fails_the_test(served, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise EngineError("broken")

    monkeypatch.setattr(Engine, "chat", fail)
    assert main([served.url, "--model", "m", "--clients", "1", "--seconds", "0.1"]) == 1
    assert 'error: RuntimeError: 500 {"error":"broken"}' in capsys.readouterr().out


def test_memory_growth_is_measured():
    soak = Soak("", "", 0, rss=[50.0, 90.0, *[100.0] * 10, *[103.0] * 8])
    assert soak.growth == pytest.approx(0.03)


def test_separators_within_a_text_end_no_line():
    """JSON leaves U+0085, U+2028 and others as they are."""
    lines = ["data: a\u2028b\x85c\x0bd", "", "data: é"]
    content = "\r\n".join(lines).encode()

    async def read():
        chunks = (content[i : i + 3] for i in range(0, len(content), 3))
        return [line async for line in answer_lines(httpx.Response(200, content=as_async(chunks)))]

    async def as_async(chunks):
        for chunk in chunks:
            yield chunk

    assert asyncio.run(read()) == lines
