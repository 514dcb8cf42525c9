"""A real server on a real socket, in the test's own process."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import replace

import httpx
import uvicorn

from numllama.api.cli.serve import listen
from numllama.api.server.app import create_app
from numllama.api.server.connection import Connection
from numllama.engine.serve.engine import Engine
from numllama.engine.settings import Host


class Served:
    """An engine behind HTTP at `url`, in a thread of this process, so that a test can inspect client and engine.

    door   makes middleware from the engine, see create_app
    """

    def __init__(self, settings, door=lambda engine: None):
        settings = replace(settings, host=Host(port=0))
        listener = listen(settings)
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.engine = Engine(settings)
        how = {"http": Connection, "loop": "asyncio", "log_config": None, "access_log": False}
        config = uvicorn.Config(create_app(self.engine, door(self.engine)), **how, timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],))
        self._thread.start()
        self.client = httpx.Client(base_url=self.url, timeout=120)

    def close(self):
        self.client.close()
        self._server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()

    @property
    def connections(self):
        """uvicorn's protocols of the open connections."""
        return self._server.server_state.connections

    def add(self, name, path, **more):
        """Create the model `name` from the GGUF at `path`."""
        digest, _ = self.engine.store.put_blob([path.read_bytes()])
        list(self.engine.create(name, files={path.name: digest}, **more))

    def post(self, path, **body):
        return self.client.post(path, json=body)

    def ok(self, path, **body):
        """Send a request that must succeed and return its answer."""
        answer = self.post(path, **body)
        assert answer.status_code == 200, answer.text
        return answer.json()


def wait_for(process):
    """Wait until `numllama serve`, whose stderr is a pipe, reports that it listens; return the port."""
    lines = []
    for line in process.stderr:
        if "listening on" in line:
            return int(re.search(r":(\d+)\"?$", line.strip())[1])
        lines.append(line)
    raise AssertionError("".join(lines))


KINDS = {  # fields that differ between runs -> replacement, pattern
    "created_at": ("time", r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z"),
    "id": ("call_id", "call_[a-z0-9]{8}"),
    **{f"{name}_duration": ("duration", "[1-9][0-9]*") for name in ("total", "load", "prompt_eval", "eval")},
}


def figures(answer):
    """Replace the fields that differ between runs, and remove `prompt_eval_cached_count`, which only we have."""
    if isinstance(answer, list):
        return [figures(item) for item in answer]
    if not isinstance(answer, dict):
        return answer
    return {key: _figure(key, value) for key, value in answer.items() if key != "prompt_eval_cached_count"}


def _figure(key, value):
    kind, pattern = KINDS.get(key, ("", "(?!)"))
    return kind if re.fullmatch(pattern, str(value)) else figures(value)


def until(condition, seconds=5):
    """Wait until `condition` is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true in time"
        time.sleep(0.002)
