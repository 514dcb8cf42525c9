"""The server apart from answers: paths, origins, models on disk, disconnects, log, shutdown."""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from serving import Served, until, wait_for

from numllama.api.server.guard import host_allowed
from numllama.engine.errors import RequestError
from numllama.engine.run.sequence import Sequence
from numllama.engine.settings import LOCAL_ORIGINS, Settings

JSON = "application/json; charset=utf-8"


@pytest.fixture
def fresh(tmp_path):
    """Return a function that starts a server with an empty store and the given settings."""
    servers = []

    def serve(**settings):
        servers.append(Served(Settings(models=tmp_path / "store", builtin=False, **settings)))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()


# paths


def test_the_root_reports_a_running_server(served):
    answer = served.client.get("/")
    assert (answer.text, answer.headers["content-type"]) == ("Ollama is running", "text/plain; charset=utf-8")


@pytest.mark.parametrize("path", ["/", "/api/version", "/api/tags"])
def test_head_is_answered_without_a_body(served, path):
    answer = served.client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == served.client.get(path).headers["content-type"]


def test_the_version_is_one_that_clients_can_compare(served):
    assert re.fullmatch(r'\{"version":"\d+\.\d+\.\d+"\}', served.client.get("/api/version").text)


def test_the_cloud_is_reported_as_disabled(served):
    assert served.client.get("/api/status").json() == {"cloud": {"disabled": True, "source": "env"}}


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/nope", 404, "404 page not found"),
        ("POST", "/api/nope", 404, "404 page not found"),
        ("GET", "/api/generate", 405, "405 method not allowed"),
        ("POST", "/api/tags", 405, "405 method not allowed"),
        ("POST", "/api/delete", 405, "405 method not allowed"),
        ("OPTIONS", "/api/chat", 405, "405 method not allowed"),
    ],
)
def test_unknown_paths_and_methods_get_gins_text(served, method, path, status, text):
    answer = served.client.request(method, path)
    assert (answer.status_code, answer.text, answer.headers["content-type"]) == (status, text, "text/plain")


def test_an_extra_trailing_slash_is_redirected(served):
    answer = served.client.get("/api/tags/")
    assert (answer.status_code, answer.headers["location"]) == (301, "/api/tags")
    assert answer.text == '<a href="/api/tags">Moved Permanently</a>.\n\n'
    assert served.client.post("/api/show/").status_code == 307
    assert served.client.post("/api/tags/").status_code == 404


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "application/x-www-form-urlencoded"}, {"Content-Type": "x"}])
def test_the_content_type_of_a_body_is_ignored(served, headers):
    answer = served.client.post("/api/show", content=b'{"model":"nope"}', headers=headers)
    assert answer.json() == {"error": "model 'nope:latest' not found"}


def test_health_is_that_of_llama_server(served):
    answer = served.client.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert served.client.head("/health").status_code == 200


# origins and hosts


def test_a_local_page_is_allowed(served):
    answer = served.client.get("/api/tags", headers={"Origin": "http://localhost:3000"})
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert answer.headers["vary"] == "Origin"


def test_a_preflight_names_methods_and_headers(served):
    answer = served.client.options("/api/chat", headers={"Origin": "app://x", "Access-Control-Request-Method": "POST"})
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-methods"] == "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
    assert "X-Stainless-Retry-Count" in answer.headers["access-control-allow-headers"]
    assert answer.headers["access-control-max-age"] == "43200"


SDK_HEADERS = (  # what the packages openai 6 and @anthropic-ai/sdk 0.7 send from a browser
    "anthropic-beta,anthropic-dangerous-direct-browser-access,anthropic-version,authorization,content-type,"
    "openai-organization,openai-project,x-api-key,x-stainless-arch,x-stainless-helper,x-stainless-lang,x-stainless-os,"
    "x-stainless-package-version,x-stainless-retry-count,x-stainless-runtime,x-stainless-runtime-version,"
    "x-stainless-timeout"
)


def test_a_preflight_allows_the_headers_of_browser_sdks(served):
    """Ollama's list comes first, unchanged; the headers that a page asks for follow if they are known ones."""
    ask = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    plain = served.client.options("/v1/messages", headers=ask).headers["access-control-allow-headers"]
    asked = ask | {"Access-Control-Request-Headers": f"{SDK_HEADERS}, x-other"}
    answer = served.client.options("/v1/messages", headers=asked)
    allowed = answer.headers["access-control-allow-headers"]
    assert allowed.startswith(f"{plain},") and "x-other" not in allowed and "x-api-key" not in plain
    assert set(SDK_HEADERS.split(",")) <= set(allowed.lower().split(","))


@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost.evil.example"])
def test_a_foreign_page_is_refused(served, method, origin):
    answer = served.client.request(method, "/api/tags", headers={"Origin": origin})
    assert (answer.status_code, answer.content) == (403, b"")
    assert "access-control-allow-origin" not in answer.headers


def test_pages_of_the_servers_own_origin_are_allowed(served):
    answer = served.client.get(
        "/api/tags", headers={"Origin": served.url.replace("127.0.0.1", "x.local"), "Host": f"x.local:{served.port}"}
    )
    assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers


def test_origins_can_be_allowed_one_by_one_or_all(fresh):
    server = fresh(origins=("https://*.example.com", *LOCAL_ORIGINS))
    assert server.client.get("/", headers={"Origin": "https://a.example.com"}).status_code == 200
    assert server.client.get("/", headers={"Origin": "https://example.org"}).status_code == 403
    anyone = fresh(origins=("*", *LOCAL_ORIGINS)).client.get("/", headers={"Origin": "https://example.org"})
    assert anyone.headers["access-control-allow-origin"] == "*"


def test_a_foreign_host_header_is_refused_on_loopback(served):
    for host, status in (
        ("evil.example", 403),
        ("8.8.8.8", 403),
        ("localhost", 200),
        ("x.internal:5", 200),
        ("[::1]:5", 200),
    ):
        assert served.client.get("/api/tags", headers={"Host": host}).status_code == status, host


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("", True),
        ("LOCALHOST:1", True),
        ("a.localhost", True),
        ("a.local", True),
        ("127.0.0.9", True),
        ("192.168.1.1", True),
        ("0.0.0.0", True),
        ("[fe80::1]:8", True),
        ("::1", True),
        ("example.com", False),
        ("local", False),
        ("127.0.0.1.evil.example", False),
        ("1.1.1.1:80", False),
    ],
)
def test_local_and_private_hosts_are_allowed(host, allowed):
    assert host_allowed(host) == allowed


# models on disk


def test_a_model_from_blob_to_deletion(fresh, models):
    server = fresh()
    data = (models / "chat.gguf").read_bytes()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert server.client.head(f"/api/blobs/{digest}").status_code == 404
    assert server.client.post(f"/api/blobs/{digest}", content=data).status_code == 201
    assert server.client.head(f"/api/blobs/{digest}").status_code == 200
    assert server.client.post(f"/api/blobs/{digest}", content=data).status_code == 200

    made = server.post("/api/create", model="m", files={"m.gguf": digest}, system="S", parameters={"top_k": 3})
    assert made.headers["content-type"] == "application/x-ndjson"
    statuses = [json.loads(line)["status"] for line in made.text.splitlines()]
    assert statuses[0] == "parsing GGUF" and statuses[-2:] == ["writing manifest", "success"]
    assert server.post("/api/create", model="n", **{"from": "m"}, stream=False).json() == {"status": "success"}

    copied = server.post("/api/copy", source="m", destination="ns/c:t")
    assert (copied.status_code, copied.content) == (200, b"")
    names = {entry["name"]: entry["digest"] for entry in server.client.get("/api/tags").json()["models"]}
    assert set(names) == {"m:latest", "n:latest", "ns/c:t"} and names["ns/c:t"] == names["m:latest"]

    shown = server.ok("/api/show", name="m")
    assert shown["system"] == "S" and "top_k                          3" in shown["parameters"]

    gone = server.client.request("DELETE", "/api/delete", json={"model": "m"})
    assert (gone.status_code, gone.content) == (200, b"")
    gone = server.client.request("DELETE", "/api/delete", json={"name": "m"})
    assert (gone.status_code, gone.json()) == (404, {"error": "model 'm' not found"})


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "text"),
    [
        ("POST", "/api/show", {}, 400, "model is required"),
        ("POST", "/api/show", {"model": "x"}, 404, "model 'x:latest' not found"),
        ("POST", "/api/show", {"model": "a b"}, 400, "invalid model name"),
        (
            "POST",
            "/api/show",
            {"model": "x:cloud"},
            403,
            "ollama cloud is disabled: remote model details are unavailable",
        ),
        ("POST", "/api/copy", {"destination": "x"}, 400, 'source "" is invalid'),
        ("POST", "/api/copy", {"source": "m", "destination": "-x"}, 400, 'destination "-x" is invalid'),
        ("POST", "/api/copy", {"source": "x:y", "destination": "z"}, 404, 'model "x:y" not found'),
        ("DELETE", "/api/delete", {}, 400, "model is required"),
        ("DELETE", "/api/delete", {"model": "x:"}, 400, 'name "x:" is invalid'),
        ("DELETE", "/api/delete", {"model": "x:y"}, 404, "model 'x:y' not found"),
        ("POST", "/api/create", {"model": "-"}, 400, "invalid model name"),
        ("POST", "/api/create", {"model": "x", "files": {"../x": "sha256:0"}}, 400, "file path must be relative"),
        ("POST", "/api/create", {"model": "x"}, 400, "neither 'from' or 'files' was specified"),
        ("POST", "/api/blobs/sha256:12", {}, 400, "invalid digest format"),
    ],
)
def test_errors_about_models_have_ollamas_text(served, method, path, body, status, text):
    answer = served.client.request(method, path, json=body)
    assert (answer.status_code, answer.json()) == (status, {"error": text})


def test_a_digest_mismatch_names_the_actual_digest(fresh):
    wanted, found = "sha256:" + "0" * 64, f"sha256:{hashlib.sha256(b'hello').hexdigest()}"
    answer = fresh().client.post(f"/api/blobs/{wanted}", content=b"hello")
    assert answer.status_code == 400
    assert answer.json() == {"error": f'digest mismatch, expected "{wanted}", got "{found}"'}


def test_a_corrupt_file_is_an_error_not_a_crash(fresh, models):
    server = fresh()
    server.add("m", models / "chat.gguf")
    blob = server.engine.store.resolve("m").weights
    blob.write_bytes(blob.read_bytes()[:1000] + b"\0" * (blob.stat().st_size - 1000))
    answer = server.post("/api/generate", model="m", prompt="a")
    assert answer.status_code == 500 and str(blob) in answer.json()["error"]
    assert server.client.get("/").status_code == 200


def test_an_unsupported_architecture_is_named(fresh, monkeypatch, tmp_path):
    from tiny import tiny_gguf

    server, path = fresh(), tiny_gguf(tmp_path / "x.gguf", family="mamba")
    with pytest.raises(RequestError, match="unsupported architecture 'mamba'"):
        server.add("m", path)
    monkeypatch.setattr("numllama.engine.serve.engine.check_loads", lambda gguf: None)
    server.add("m", path)  # as a pull would bring it
    answer = server.post("/api/generate", model="m", prompt="a")
    assert answer.status_code == 500 and "'mamba'" in answer.json()["error"]


# disconnects


def hang_up(connection, answer=None):
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    if answer:
        answer.close()


@pytest.fixture
def counted(monkeypatch):
    """Count the tokens that the engine samples, for all requests."""
    made, sample = [], Sequence.sample

    def counting(*args):
        made.append(sample(*args))
        return made[-1]

    monkeypatch.setattr(Sequence, "sample", counting)
    return made


@pytest.mark.parametrize("stream", [True, False])
def test_a_disconnect_ends_the_generation_within_a_token(served, slowly, counted, stream):
    body = {
        "model": "bare",
        "prompt": "a",
        "stream": stream,
        "options": {"num_predict": -1, "temperature": 3, "seed": 5},
    }
    connection = http.client.HTTPConnection("127.0.0.1", served.port)
    connection.request("POST", "/api/generate", json.dumps(body))
    answer = None
    if stream:
        answer = connection.getresponse()
        assert [json.loads(answer.readline())["done"] for _ in range(3)] == [False] * 3
    until(lambda: len(counted) >= 5)
    [entry] = [e for e in served.engine.pool.loaded() if e.n_using]
    hang_up(connection, answer)
    until(lambda: not entry.n_using)
    at_the_end = len(counted)
    assert at_the_end < 2000  # of 2560 without the disconnect
    time.sleep(0.05)
    assert len(counted) == at_the_end
    assert served.ok("/api/generate", model="bare", prompt="a", stream=False)["done"]  # the server still works


def test_an_interrupted_upload_leaves_no_file(fresh, caplog):
    server = fresh()
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.putrequest("POST", f"/api/blobs/sha256:{'0' * 64}")
    connection.putheader("Content-Length", "1000")
    connection.endheaders(b"x" * 10)
    blobs = server.engine.store.blobs.folder
    until(lambda: blobs.is_dir() and list(blobs.iterdir()))
    with caplog.at_level(logging.INFO, "numllama.request"):
        hang_up(connection)
        until(lambda: caplog.records)
    assert [record.fields["status"] for record in caplog.records] == [499]
    assert list(blobs.iterdir()) == []


def test_concurrent_requests_get_the_same_text_as_alone(served):
    def ask(n):
        body = {"model": "m", "prompt": f"once {n}", "stream": False, "options": {"num_predict": 30}}
        return httpx.post(f"{served.url}/api/generate", json=body, timeout=60).json()["response"]

    alone = [ask(n) for n in range(4)]
    together = [None] * 4
    threads = [threading.Thread(target=lambda n=n: together.__setitem__(n, ask(n))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert together == alone


@pytest.fixture
def loading(fresh, models, monkeypatch):
    """Return a function that starts a server with models m and n, where the load of m lasts until the test ends."""
    gates = []

    def begin(**settings):
        server, gate = fresh(**settings), threading.Event()
        server.add("m", models / "chat.gguf")
        server.add("n", models / "bare.gguf")
        load = server.engine._load
        monkeypatch.setattr(server.engine, "_load", lambda *a: gate.wait(10) and load(*a))
        request = {"json": {"model": "m"}, "timeout": 20}
        first = threading.Thread(target=httpx.post, args=(f"{server.url}/api/generate",), kwargs=request)
        first.start()
        gates.append((gate, first))
        until(lambda: server.engine.pool._queue)
        return server

    yield begin
    for gate, first in gates:
        gate.set()
        first.join(10)


def test_a_disconnect_in_the_load_queue_frees_its_place(loading):
    server = loading()
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("POST", "/api/generate", '{"model":"n"}')
    until(lambda: len(server.engine.pool._queue) == 2)
    hang_up(connection)
    until(lambda: len(server.engine.pool._queue) == 1)


def test_a_full_load_queue_is_503(loading):
    answer = loading(max_queue=0).post("/api/generate", model="n")
    assert answer.status_code == 503
    assert answer.json() == {"error": "server busy, please try again.  maximum pending requests exceeded"}


# the log, and the process


def test_each_request_is_logged_in_one_line(served, caplog):
    with caplog.at_level(logging.INFO, "numllama.request"):
        served.ok("/api/generate", model="m", prompt="a", stream=False)
        served.post("/api/chat", model="nope", messages=[{}])
        until(lambda: len(caplog.records) >= 2)
    first, second = (record.fields for record in caplog.records if record.name == "numllama.request")
    assert (first["method"], first["path"], first["status"], first["model"]) == ("POST", "/api/generate", 200, "m")
    assert first["eval_count"] == 8 and first["eval_duration"] > 0
    assert (second["path"], second["status"]) == ("/api/chat", 404)


SERVE = [sys.executable, "-c", "from numllama.api.cli import main; main()", "serve"]


def environment(tmp_path, port):
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OLLAMA_")}
    return kept | {"OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_MODELS": str(tmp_path), "NUMLLAMA_BUILTIN": "0"}


def test_a_port_in_use_is_one_line_and_exit_status_1(served, tmp_path):
    done = subprocess.run(SERVE, env=environment(tmp_path, served.port), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"Error: listen tcp 127.0.0.1:{served.port}: bind: address already in use\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM to catch")
def test_serve_runs_until_a_signal(tmp_path):
    process = subprocess.Popen(SERVE, env=environment(tmp_path, 0), stderr=subprocess.PIPE, text=True)
    try:
        port = wait_for(process)  # the log tells which one the system chose
        answer = httpx.get(f"http://127.0.0.1:{port}/api/tags", timeout=60)
        assert answer.json() == {"models": []} and answer.headers["server"].startswith("numllama/")
        process.send_signal(signal.SIGTERM)
        log = process.communicate(timeout=20)[1]
    finally:
        process.kill()
    assert process.returncode == 0
    assert "msg=request" in log and "path=/api/tags" in log and "Traceback" not in log


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit of open files")
def test_out_of_file_descriptors_the_log_stays_short_and_silent_connections_make_place(tmp_path):
    """asyncio logged 2048 tracebacks a second."""
    import resource

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log, silent = tmp_path / "log", []
    with open(log, "wb") as written:
        process = subprocess.Popen(
            SERVE,
            env=environment(tmp_path / "store", port),
            stderr=written,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
        )
    try:
        until(lambda: "listening on" in log.read_text(), 60)
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
        assert httpx.get(f"http://127.0.0.1:{port}/api/version", timeout=20).status_code == 200
        lines = log.read_text().splitlines()
        assert any("cannot accept connections" in line for line in lines) and len(lines) < 40, lines[:60]
    finally:
        process.kill()
        process.wait()
        for connection in silent:
            connection.close()
