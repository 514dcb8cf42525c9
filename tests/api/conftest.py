"""A server with tiny models in a store of its own."""

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
    """Files of tiny models, by name."""
    folder = tmp_path_factory.mktemp("gguf")
    tiny_gguf(folder / "chat.gguf", seed=1, chat_template=CHAT_TEMPLATE)
    tiny_gguf(folder / "bare.gguf", seed=2)
    tiny_gguf(folder / "embed.gguf", seed=3, llama__pooling_type=1)
    return folder


@pytest.fixture(scope="package")
def served(models, tmp_path_factory):
    """Models: m (Jinja template), bare (none), go (a TEMPLATE layer), h (SYSTEM and MESSAGEs), e (embeddings)."""
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
    """Tiny models take 5 ms a token, so that there is time to leave, also on a busy machine."""
    step = Scheduler.step

    def slow_step(scheduler):
        time.sleep(0.005)
        step(scheduler)

    monkeypatch.setattr(Scheduler, "step", slow_step)


@pytest.fixture(scope="package")
def model(served, models):
    """The server with a model t as well, which may think and call tools."""
    tiny_gguf(models / "tools.gguf", seed=4, chat_template=TEMPLATE)
    served.add("t", models / "tools.gguf")
    return served


@pytest.fixture
def says(monkeypatch):
    """Called with texts, it makes every model say them."""
    return Script(monkeypatch)
