"""A real server on a real socket, with tiny models in a store of its own."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import httpx
import pytest
import uvicorn

from numllama.api.app import create_app
from numllama.api.cli.serve import listen
from numllama.engine.service import Engine
from numllama.engine.settings import Host, Settings
from tiny import CHAT_TEMPLATE, tiny_gguf

GO_TEMPLATE = "{{ .Prompt }}{{ .Response }}"


class Served:
    """An engine behind HTTP at `url`, in a thread of this process, so that a test can look at both ends."""

    def __init__(self, settings):
        settings = replace(settings, host=Host(port=0))
        listener = listen(settings)
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.engine = Engine(settings)
        config = uvicorn.Config(create_app(self.engine), log_config=None, access_log=False, timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],))
        self._thread.start()
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def close(self):
        self.client.close()
        self._server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()

    def add(self, name, path, **more):
        """The GGUF at `path` as the model `name`."""
        digest, _ = self.engine.store.put_blob([path.read_bytes()])
        list(self.engine.create(name, files={path.name: digest}, **more))

    def post(self, path, **body):
        return self.client.post(path, json=body)

    def ok(self, path, **body):
        """What a request that succeeds answers."""
        answer = self.post(path, **body)
        assert answer.status_code == 200, answer.text
        return answer.json()


def until(condition, seconds=5):
    """Waits for what other threads bring about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this never came true"
        time.sleep(0.002)


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
