"""The effect of every environment variable of Ollama, or its absence."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import stat
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from serving import Served

from numllama.api.cli import repl
from numllama.api.cli.serve import listen, serve_forever
from numllama.api.server.log import LineFormatter, start_logging
from numllama.engine.errors import RegistryError
from numllama.engine.go.duration import SECOND
from numllama.engine.serve.engine import Engine
from numllama.engine.settings import TRACE, WITHOUT_EFFECT, Settings
from numllama.engine.store import default_store
from numllama.engine.store.make.create import create
from tiny import CHAT_TEMPLATE, tiny_gguf

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "environment.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Create a store with the model m, which has a Go template and a Jinja template."""
    folder = tmp_path_factory.mktemp("store")
    store = default_store(Settings(models=folder, builtin=False))
    file = tiny_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", chat_template=CHAT_TEMPLATE)
    digest, _ = store.put_blob([file.read_bytes()])
    list(create(store, "m", files={"m.gguf": digest}, template="go: {{ .Prompt }}"))
    return folder


@pytest.fixture
def engine(folder):
    """Return a function that creates an engine with the given variables."""
    engines = []

    def make(**variables):
        environment = {"OLLAMA_MODELS": str(folder), "NUMLLAMA_BUILTIN": "0", **variables}
        engines.append(Engine(Settings.from_env(environment)))
        return engines[-1]

    yield make
    for each in engines:
        each.close()


def loaded(engine):
    engine.generate("m")
    [entry] = engine.pool.loaded()
    return entry


def kept_after_prune(engine):
    blob = Path(engine.store.blobs.folder) / ("sha256-" + "0" * 64)
    blob.write_text("unreferenced")
    os.utime(blob, (0, 0))
    engine.store.prune()
    kept = blob.exists()
    blob.unlink(missing_ok=True)
    return kept


def bytes_a_position(engine):
    """Return the cache bytes per position: 2 layers, keys and values, 2 heads of 16 numbers."""
    cache = loaded(engine).runner.cache
    return cache.nbytes // (cache.n_ctx * cache.n_slot)


# variable: value, observed property, its value with and without the variable
CASES = {
    "OLLAMA_KEEP_ALIVE": ("90s", lambda e: loaded(e).keep_alive, 90 * SECOND, 300 * SECOND),
    "OLLAMA_LOAD_TIMEOUT": ("7s", lambda e: e.pool.load_timeout, 7 * SECOND, 300 * SECOND),
    "OLLAMA_CONTEXT_LENGTH": ("64", lambda e: loaded(e).runner.cache.n_ctx, 64, 256),
    "OLLAMA_NUM_PARALLEL": ("2", lambda e: loaded(e).runner.cache.n_slot, 2, 4),
    "OLLAMA_MAX_LOADED_MODELS": ("1", lambda e: e.pool.max_loaded, 1, 3),
    "OLLAMA_MAX_QUEUE": ("9", lambda e: e.pool.max_queue, 9, 512),
    "OLLAMA_NOPRUNE": ("1", kept_after_prune, True, False),
    "OLLAMA_GO_TEMPLATE": (
        "0",
        lambda e: e.chat("m", [{"role": "user", "content": "a"}]).prompt,
        "<|user|>a\n<|assistant|>",
        "go: a",
    ),
    "OLLAMA_KV_CACHE_TYPE": ("f32", bytes_a_position, 512, 256),
}


@pytest.mark.parametrize("name", CASES)
def test_a_variable_has_its_effect(engine, name):
    text, look, with_it, without_it = CASES[name]
    assert look(engine(**{name: text})) == with_it
    assert look(engine()) == without_it


def test_an_unsupported_cache_type_is_logged_and_ignored(engine, caplog):
    assert loaded(engine(OLLAMA_KV_CACHE_TYPE="q3")).runner.cache.n_ctx == 256
    assert "OLLAMA_KV_CACHE_TYPE=q3" in caplog.text


def test_ollama_host_is_the_listen_address():
    with listen(Settings.from_env({"OLLAMA_HOST": "127.0.0.2:0"})) as listener:
        assert listener.getsockname()[0] == "127.0.0.2"


def test_ollama_models_is_the_store(folder):
    assert Settings.from_env({"OLLAMA_MODELS": str(folder)}).models == folder
    assert Settings.from_env({"HOME": "/home/ada"}).models == Path("/home/ada/.ollama/models")


def test_ollama_origins_are_allowed(folder):
    server = Served(Settings.from_env({"OLLAMA_MODELS": str(folder), "OLLAMA_ORIGINS": "https://a.example"}))
    try:
        for origin, status in (("https://a.example", 200), ("https://b.example", 403), ("http://localhost", 200)):
            assert server.client.get("/", headers={"Origin": origin}).status_code == status
    finally:
        server.close()


def test_ollama_nohistory_disables_the_history(monkeypatch):
    session = SimpleNamespace(history=SimpleNamespace(enabled=None), load=lambda: 1 / 0)
    for text, enabled in (("1", False), ("", True)):
        monkeypatch.setenv("OLLAMA_NOHISTORY", text)
        with pytest.raises(ZeroDivisionError):  # stops before the conversation
            repl.converse(session)
        assert session.history.enabled == enabled


def test_ollama_editor_takes_precedence_over_other_editors(monkeypatch):
    monkeypatch.setenv("OLLAMA_EDITOR", "ed")
    monkeypatch.setenv("VISUAL", "vi")
    with pytest.raises(ZeroDivisionError):
        repl.converse(SimpleNamespace(history=SimpleNamespace(), load=lambda: 1 / 0))
    assert os.environ["VISUAL"] == "ed"


@pytest.fixture
def root_logger():
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield root
    root.handlers[:], root.level = before


@pytest.mark.parametrize(
    ("text", "level"), [("", logging.INFO), ("1", logging.DEBUG), ("true", logging.DEBUG), ("2", TRACE)]
)
def test_ollama_debug_sets_the_log_level(root_logger, text, level):
    start_logging(Settings.from_env({"OLLAMA_DEBUG": text}).debug)
    assert root_logger.level == level


def test_ollama_debug_2_logs_prompts(engine, caplog):
    with caplog.at_level(logging.DEBUG):
        engine().generate("m", "secret")
    assert "secret" not in "".join(LineFormatter().format(record) for record in caplog.records)
    with caplog.at_level(TRACE):
        engine().generate("m", "secret")
    assert "go: secret" in "".join(LineFormatter().format(record) for record in caplog.records)


def logged(message, error=None, **fields):
    record = logging.LogRecord("numllama", logging.INFO, "", 0, message, (), error)
    record.fields = fields
    return LineFormatter().format(record)


def test_a_request_cannot_write_escape_codes_or_lines_into_the_log():
    line = logged("request", path="/\x1b[2J\rtime=forged\u202e\x9b", model="x\u001b[31m", plain="Grüße/你好")
    assert line.endswith(r'path="/\x1b[2J\rtime=forged\u202e\u009b" model="x\x1b[31m" plain=Grüße/你好')
    try:
        raise ValueError("\x1b[2J\rforged")
    except ValueError as error:
        lines = logged("unexpected", (ValueError, error, error.__traceback__)).splitlines()
    assert lines[-1] == r"ValueError: \x1b[2J\rforged" and len(lines) > 3


def test_ollama_debug_log_requests_saves_requests_that_can_be_sent_again(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    server = Served(Settings.from_env({"OLLAMA_MODELS": str(folder), "OLLAMA_DEBUG_LOG_REQUESTS": "1"}))
    try:
        asked = {"model": "m", "prompt": "a", "stream": False, "options": {"num_predict": 2, "temperature": 0}}
        answer = server.ok("/api/generate", **asked)
        assert server.client.post("/v1/chat/completions", content=b"{").status_code == 400
        server.post("/api/show", model="m")  # not an inference request
        [kept] = tmp_path.glob("numllama-request-logs-*")
        first, _, second, _ = sorted(kept.iterdir())
        assert json.loads(first.read_bytes()) == asked and second.read_bytes() == b"{"
        names = [re.sub(r"^[0-9]{8}T[0-9]{6}\.[0-9]{6}-[0-9]{6}", "", path.name) for path in sorted(kept.iterdir())]
        assert names == [
            f"_{route}_{kind}"
            for route in ("api_generate", "v1_chat_completions")
            for kind in ("body.json", "request.sh")
        ]
        if os.name == "posix":
            assert [stat.S_IMODE(path.stat().st_mode) for path in (kept, first)] == [0o700, 0o600]
        if shutil.which("curl"):
            [script] = kept.glob("*generate_request.sh")
            again = subprocess.run(["sh", str(script)], capture_output=True, check=True)
            assert json.loads(again.stdout)["response"] == answer["response"]
    finally:
        server.close()


@pytest.fixture
def proxy(monkeypatch):
    """Start a proxy that never answers -> (its URL, the first line of each request)."""
    asked, listener = [], socket.create_server(("127.0.0.1", 0))
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)

    def listen():
        with suppress(OSError):
            while True:
                with listener.accept()[0] as connection:
                    asked.append(connection.recv(4096).split(b"\r\n")[0].decode())

    threading.Thread(target=listen, daemon=True).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{listener.getsockname()[1]}", asked=asked)
    listener.close()


@pytest.mark.parametrize(
    ("name", "line"), [("HTTPS_PROXY", "CONNECT r.invalid:443"), ("HTTP_PROXY", "GET http://r.inv")]
)
def test_registries_are_reached_through_a_proxy(engine, proxy, monkeypatch, name, line):
    def pull():
        with pytest.raises(RegistryError):
            list(engine().pull("r.invalid/a/m", insecure=name == "HTTP_PROXY"))

    monkeypatch.setattr("numllama.engine.store.registry.retry.FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv(name, proxy.url)
    pull()
    assert proxy.asked and all(asked.startswith(line) for asked in proxy.asked)
    proxy.asked.clear()
    monkeypatch.setenv("NO_PROXY", "r.invalid")
    pull()
    assert not proxy.asked


def test_a_server_logs_variables_without_effect(root_logger, capsys):
    """The log lines come before listening, which fails here as the port is taken."""
    assert Settings.from_env(dict.fromkeys(WITHOUT_EFFECT, "1")).without_effect == WITHOUT_EFFECT
    assert Settings.from_env({}).without_effect == ()
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit):
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        serve_forever(Settings.from_env({"OLLAMA_HOST": host, "OLLAMA_AUTH": "1", "OLLAMA_VULKAN": ""}))
    said = capsys.readouterr().err
    assert "OLLAMA_AUTH is set but has no effect" in said and "OLLAMA_VULKAN" not in said


OLLAMAS = """
OLLAMA_HOST OLLAMA_MODELS OLLAMA_KEEP_ALIVE OLLAMA_LOAD_TIMEOUT OLLAMA_CONTEXT_LENGTH OLLAMA_NUM_PARALLEL
OLLAMA_MAX_LOADED_MODELS OLLAMA_MAX_QUEUE OLLAMA_ORIGINS OLLAMA_NOPRUNE OLLAMA_NOHISTORY OLLAMA_DEBUG
OLLAMA_DEBUG_LOG_REQUESTS OLLAMA_GO_TEMPLATE OLLAMA_KV_CACHE_TYPE OLLAMA_FLASH_ATTENTION OLLAMA_GPU_OVERHEAD
OLLAMA_SCHED_SPREAD OLLAMA_LLM_LIBRARY OLLAMA_VULKAN OLLAMA_IGPU_ENABLE CUDA_VISIBLE_DEVICES OLLAMA_NO_CLOUD
OLLAMA_REMOTES OLLAMA_AUTH OLLAMA_EDITOR VISUAL EDITOR OLLAMA_MAX_TRANSFER_STREAMS HTTPS_PROXY HTTP_PROXY NO_PROXY
OLLAMA_TMPDIR OLLAMA_MAX_VRAM OLLAMA_MULTIUSER_CACHE OLLAMA_INTEL_GPU
""".split()


@pytest.mark.parametrize(
    "name",
    [
        *(*OLLAMAS, "NUMLLAMA_BUILTIN", "NUMLLAMA_SERVER_FILES", "NUMLLAMA_VISION_ORDER", "NUMLLAMA_SIMD"),
        "NUMLLAMA_INSECURE_REGISTRIES",
    ],
)
def test_every_variable_is_documented(name):
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith(f"| `{name}` |")]
    assert len(rows) == 1
    assert ("no effect" in rows[0]) == (name in WITHOUT_EFFECT)


def test_every_variable_that_the_code_reads_is_tested():
    sources = "".join(
        path.read_text() for folder in ("kernels", "engine", "api") for path in (ROOT / folder).rglob("*.py")
    )
    read = set(re.findall(r"\b(?:OLLAMA|NUMLLAMA)_[A-Z_]+\b", sources)) - {
        "OLLAMA_VERSION"
    }  # a constant, not a variable
    assert {name for name in read if f"| `{name}` |" not in DOCUMENT.read_text()} == set()
