"""POST /api/pull and /api/push, with a registry on loopback."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
from dataclasses import replace

import pytest
from registries import Registry
from serving import Served, until

from numllama.engine.settings import Settings
from numllama.engine.store.registry import http as protocol


@pytest.fixture
def registry():
    double = Registry()
    yield double
    double.close()


@pytest.fixture
def other(tmp_path, monkeypatch):
    """Start a second server with an empty store."""
    monkeypatch.setenv("HOME", str(tmp_path))
    server = Served(Settings(models=tmp_path / "other", builtin=False))
    yield server
    server.close()


@pytest.fixture
def name(served, registry):
    """Copy model m of the first server to a name in the registry."""
    name = f"{registry.host}/lab/m"
    served.post("/api/copy", source="m", destination=name)
    yield name
    served.client.request("DELETE", "/api/delete", json={"model": name})


def lines(answer):
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/x-ndjson", answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def test_a_model_moves_between_servers_and_answers(served, other, registry, name):
    said = lines(served.post("/api/push", model=name, insecure=True))
    assert [said[0], *said[-2:]] == [{"status": s} for s in ("retrieving manifest", "pushing manifest", "success")]
    said = lines(other.post("/api/pull", name=name, insecure=True))
    assert [said[0], *said[-3:]] == [
        {"status": s} for s in ("pulling manifest", "verifying sha256 digest", "writing manifest", "success")
    ]
    assert all(list(s)[:3] == ["status", "digest", "total"] for s in said[1:-3]) and said[-4]["completed"] > 0
    question = {"model": name, "prompt": "once upon", "stream": False}
    assert other.ok("/api/generate", **question)["response"] == served.ok("/api/generate", **question)["response"]


def test_without_a_stream_the_answer_is_one_object(served, other, registry, name):
    answer = served.post("/api/push", model=name, insecure=True, stream=False)
    assert (answer.json(), answer.headers["content-type"]) == ({"status": "success"}, "application/json")
    assert other.ok("/api/pull", model=name, insecure=True, stream=False) == {"status": "success"}


@pytest.mark.parametrize(
    "path, body, status, error",
    [
        ("/api/pull", {}, 400, "invalid model name"),
        ("/api/pull", {"name": "a b"}, 400, "invalid model name"),
        ("/api/pull", {"model": "m:cloud"}, 403, "ollama cloud is disabled: remote model is unavailable"),
        ("/api/push", {}, 400, "model is required"),
        ("/api/push", {"model": "a b", "stream": False}, 400, "unqualified name: a b"),
        (
            "/api/push",
            {"model": "none", "stream": False},
            500,
            "open .*/library/none/latest: no such file or directory",
        ),
        (
            "/api/pull",
            {"model": "127.0.0.1:1/a/b", "insecure": True, "stream": False},
            500,
            "pull model manifest: .*refused",
        ),
        (
            "/api/pull",
            {"model": "127.0.0.1:1/a/b", "insecure": 1},
            400,
            "json: cannot unmarshal number .*PullRequest.insecure",
        ),
    ],
    ids=range(8),
)
def test_invalid_requests_are_refused_before_the_first_line(served, path, body, status, error):
    answer = served.post(path, **body)
    assert answer.status_code == status and re.match(error, answer.json()["error"])


def test_a_later_error_is_the_last_line(served, registry):
    said = lines(served.post("/api/pull", model=f"{registry.host}/lab/none", insecure=True))
    assert said == [{"status": "pulling manifest"}, {"error": "pull model manifest: file does not exist"}]
    said = lines(served.post("/api/push", model=f"{registry.host}/lab/none", insecure=True))
    assert [*said[0].values(), *said[1].values()] == ["retrieving manifest", "couldn't retrieve manifest"]
    assert said[2]["error"].endswith(f"/manifests/{registry.host}/lab/none/latest: no such file or directory")


@pytest.mark.parametrize("stream", [True, False])
def test_a_disconnect_ends_the_transfer(served, other, registry, name, monkeypatch, stream):
    monkeypatch.setattr(protocol, "READ_TIMEOUT_S", 20)
    served.ok("/api/push", model=name, insecure=True, stream=False)
    registry.spoil = lambda request, answer: replace(answer, stall=60) if len(answer.body) > 1000 else answer
    body = {"model": name, "insecure": True, "stream": stream}
    running = other.engine.downloads._running
    if stream:
        with other.client.stream("POST", "/api/pull", json=body) as answer:
            assert any('"completed":60' in line for line in answer.iter_lines())
    else:
        connection = http.client.HTTPConnection("127.0.0.1", other.port)
        connection.request("POST", "/api/pull", json.dumps(body))
        until(lambda: any(download.completed == 60 for download in list(running.values())))
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
    until(lambda: not running)
    registry.spoil = lambda request, answer: answer
    registry.seen.clear()
    assert other.ok("/api/pull", model=name, insecure=True, stream=False) == {"status": "success"}
    assert any(request.headers.get("range", "").startswith("bytes=60-") for request in registry.seen)


@pytest.mark.parametrize("ask", [lambda name: {"from": name}, lambda name: {"modelfile": f"FROM {name}\nSYSTEM S"}])
def test_create_pulls_a_missing_base_model(other, registry, monkeypatch, ask):
    said = lines(other.post("/api/create", model="made", **ask("127.0.0.1:1/lab/m")))
    assert said[0] == {"status": "pulling manifest"}
    assert re.match('pull model manifest: Get "https://127.0.0.1:1/.* refused', said[1]["error"])
    registry.publish("lab/m:latest", ("application/vnd.ollama.image.system", b"S"))
    pull = other.engine.pull
    monkeypatch.setattr(other.engine, "pull", lambda name, handle=None: pull(name, insecure=True, handle=handle))
    said = [
        status["status"] for status in lines(other.post("/api/create", model="made", **ask(f"{registry.host}/lab/m")))
    ]
    assert said[0] == "pulling manifest" and said.count("success") == 1 and said[-1] == "success"
    assert {model["name"] for model in other.client.get("/api/tags").json()["models"]} == {
        "made:latest",
        f"{registry.host}/lab/m:latest",
    }


def test_stalling_transfers_keep_no_other_request_waiting(other, models, monkeypatch):
    """600 pulls from a registry that said nothing held every thread of the server."""
    other.add("m", models / "bare.gguf")
    gate, n_stalled = threading.Event(), []

    def stalling(*args):
        n_stalled.append(1)
        gate.wait(30)
        yield {"status": "success"}

    monkeypatch.setattr("numllama.engine.store.registry.transfer.pull", stalling)
    body = json.dumps({"model": "stalls"})
    head = f"POST /api/pull HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    clients = [socket.create_connection(("127.0.0.1", other.port)) for _ in range(600)]
    try:
        for client in clients:
            client.sendall((head + body).encode())
        until(lambda: len(n_stalled) >= 64, 20)
        assert other.client.get("/api/tags", timeout=20).status_code == 200
        assert other.ok("/api/generate", model="m", prompt="a", stream=False, options={"num_predict": 1})["done"]
        assert len(n_stalled) == 64
    finally:
        gate.set()
        for client in clients:
            client.close()
