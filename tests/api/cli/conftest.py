"""Fixtures that run the command in this process."""

from __future__ import annotations

import io
from typing import NamedTuple

import pytest

from numllama.api.cli import main
from numllama.api.cli.client import Client, ServerNotRunning
from numllama.engine.store import default_store
from numllama.engine.store.make.create import create
from tiny import CHAT_TEMPLATE, tiny_gguf

GREEDY = {"temperature": 0, "num_predict": 8}


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def numllama(capsys, monkeypatch):
    """Return a function that runs `numllama ARGS < stdin`."""

    def call(*args, stdin=""):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        status = main(list(args))
        return Outcome(status, *capsys.readouterr())

    return call


@pytest.fixture(scope="package")
def store(models, tmp_path_factory):
    """Create a store with the models m (Jinja template) and bare (no template); both give short greedy answers."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OLLAMA_MODELS", str(folder))
        environment.setenv("NUMLLAMA_BUILTIN", "0")
        store = default_store()
    for name, file, more in (
        ("bare", "bare.gguf", {}),
        ("m", "chat.gguf", {"system": "S.", "license": "MIT\n\nto all\nand"}),
    ):
        digest, _ = store.put_blob([(models / file).read_bytes()])
        list(create(store, name, files={file: digest}, parameters=GREEDY, **more))
    return folder


@pytest.fixture
def alone(store, monkeypatch):
    """Run without a server, on the store above."""

    def refuse(self):
        raise ServerNotRunning("could not connect to ollama server, run 'numllama serve' to start it")

    monkeypatch.setattr(Client, "check", refuse)
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    monkeypatch.setenv("NUMLLAMA_BUILTIN", "0")


@pytest.fixture
def with_server(served, store, monkeypatch):
    """Run with a server that has a store of its own, with a different model m."""
    monkeypatch.setenv("OLLAMA_HOST", served.url)
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    monkeypatch.setenv("NUMLLAMA_BUILTIN", "0")
    return served


@pytest.fixture(scope="package")
def file(tmp_path_factory):
    """Return the path of a GGUF outside of any store."""
    return str(tiny_gguf(tmp_path_factory.mktemp("file") / "chat.gguf", seed=1, chat_template=CHAT_TEMPLATE))
