"""Fixtures: a server with tiny models."""

from __future__ import annotations

import time

import pytest
from scripted import TEMPLATE, Script
from serving import Served

from numllama.engine.run.scheduler import Scheduler
from numllama.engine.settings import Settings
from tiny import CHAT_TEMPLATE, tiny_gguf

GO_TEMPLATE = "{{ .Prompt }}{{ .Response }}"


@pytest.fixture(scope="package")
def models(tmp_path_factory):
    """Create GGUF files of tiny models; return their folder."""
    folder = tmp_path_factory.mktemp("gguf")
    tiny_gguf(folder / "chat.gguf", seed=1, chat_template=CHAT_TEMPLATE)
    tiny_gguf(folder / "bare.gguf", seed=2)
    tiny_gguf(folder / "embed.gguf", seed=3, llama__pooling_type=1)
    return folder


@pytest.fixture(scope="package")
def served(models, tmp_path_factory):
    """Start a server: m (Jinja template), bare (no template), go (TEMPLATE), h (SYSTEM, MESSAGE), e (embeddings)."""
    server = Served(Settings(models=tmp_path_factory.mktemp("store"), builtin=False))
    server.add("m", models / "chat.gguf", parameters={"temperature": 0, "num_predict": 8})
    server.add("bare", models / "bare.gguf", parameters={"temperature": 0, "num_predict": 8})
    server.add("go", models / "bare.gguf", template=GO_TEMPLATE)
    turns = [{"role": "user", "content": "u1"}, {"role": "assistant", "content": "a1"}]
    server.add("h", models / "chat.gguf", system="S", messages=turns)
    server.add("e", models / "embed.gguf")
    yield server
    server.close()


@pytest.fixture
def slowly(monkeypatch):
    """Slow tiny models down to 5 ms per token, so that a client can disconnect in time even on a busy machine."""
    step = Scheduler.step

    def slow_step(scheduler):
        time.sleep(0.005)
        step(scheduler)

    monkeypatch.setattr(Scheduler, "step", slow_step)


@pytest.fixture(scope="package")
def model(served, models):
    """Add a model t with thinking and tools to the server."""
    tiny_gguf(models / "tools.gguf", seed=4, chat_template=TEMPLATE)
    served.add("t", models / "tools.gguf")
    return served


@pytest.fixture
def script(monkeypatch):
    """Return a function that makes every model generate the given texts."""
    return Script(monkeypatch)
