"""The HTTP connection on the wire: what clients may send, and how much of it."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from contextlib import suppress

import pytest
from serving import Served, until

from numllama.api.server.connection import FEED_BYTES
from numllama.engine.settings import Settings

UPGRADES = {
    "h2c": "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAA",
    "websocket": "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13"
    "\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "tls": "Connection: upgrade\r\nUpgrade: TLS/1.2, HTTP/1.1",
}


def request(method, path, body=b"", head="", version="1.1"):
    """Write a request as bytes, with the lines `head` among its headers."""
    lines = [f"{method} {path} HTTP/{version}", "Host: localhost", *([head] if head else [])]
    lines += [f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.fixture
def fresh(tmp_path):
    """Return a function that starts a server with an empty store."""
    servers = []

    def serve():
        servers.append(Served(Settings(models=tmp_path / "store", builtin=False)))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()


class Wire:
    """A client that writes bytes."""

    def __init__(self, server, sent=b""):
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        self.file = self.socket.makefile("rb")
        self.socket.sendall(sent)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.socket.close()

    def response(self):
        """Read one response with a Content-Length: its status and body."""
        status, headers = self.head()
        return status, self.file.read(int(headers.get("content-length", 0)))

    def head(self):
        """Read the head of a response: its status and headers."""
        status = int(self.file.readline().split()[1])
        lines = iter(lambda: self.file.readline().rstrip(b"\r\n"), b"")
        pairs = (line.decode().split(": ", 1) for line in lines)
        return status, {name.lower(): value for name, value in pairs}


# offers to upgrade


@pytest.mark.parametrize("pieces", [1, 7, 1000])
@pytest.mark.parametrize("kind", UPGRADES)
def test_an_offer_to_upgrade_is_ignored_and_the_request_answered(served, kind, pieces):
    body = json.dumps({"model": "bare", "content": "the cat"}).encode()
    expected = served.ok("/api/tokenize", model="bare", content="the cat")["tokens"]
    sent = request("POST", "/api/tokenize", body, UPGRADES[kind]) + request("GET", "/api/version")
    with Wire(served) as wire:
        for i in range(pieces):
            wire.socket.sendall(sent[len(sent) * i // pieces : len(sent) * (i + 1) // pieces])
        status, got = wire.response()
        assert (status, json.loads(got)["tokens"]) == (200, expected)
        assert wire.response()[0] == 200  # and the connection goes on as before


def test_a_chunked_body_after_an_offer_to_upgrade_is_read(served):
    body = b'{"model": "bare", "content": "a"}'
    sent = request("POST", "/api/tokenize", b"", f"{UPGRADES['h2c']}\r\nTransfer-Encoding: chunked")
    with Wire(served, sent + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)) as wire:
        assert wire.response()[0] == 200


@pytest.mark.parametrize("path, status", [("/", 200), ("/api/version", 200), ("/ws", 404), ("/api/generate", 405)])
def test_a_websocket_attempt_gets_the_plain_answer(served, path, status):
    with Wire(served, request("GET", path, head=UPGRADES["websocket"])) as wire:
        assert wire.response()[0] == status


def test_connect_is_refused(served):
    with Wire(served, request("CONNECT", "localhost:80")) as wire:
        assert wire.response()[0] in (400, 404, 405)


# limits


@pytest.mark.parametrize("size, status", [(60_000, 200), (70_000, 431), (300_000, 431)])
def test_a_head_may_have_64_kib(served, size, status):
    for head in (f"X-Long: {'a' * size}", "\r\n".join(f"X-{i}: {'a' * 90}" for i in range(size // 100))):
        with Wire(served, request("GET", "/api/version", head=head)) as wire:
            assert wire.response()[0] == status


ENDLESS = {
    "header": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ",
    "line": b"GET /",
    "trailer": b"POST /api/show HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nX: ",
    "chunk extension": b"POST /api/show HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1;",
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_what_never_ends_is_refused(served, kind):
    end = time.monotonic() + 20
    with Wire(served, ENDLESS[kind]) as wire, pytest.raises(ConnectionError):
        while time.monotonic() < end:
            wire.socket.sendall(b"a" * 65536)


def test_a_client_that_is_still_sending_can_read_why_it_was_refused(served):
    with Wire(served, ENDLESS["header"]) as wire:
        for _ in range(100):  # 6 MiB, in less than LINGER_S
            wire.socket.sendall(b"a" * 65536)
        assert wire.response() == (431, b"431 Request Header Fields Too Large")
        assert wire.file.read() == b""


def test_a_broken_body_is_refused(served):
    sent = b"POST /api/show HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\nno chunk\r\n"
    with Wire(served, sent) as wire:
        assert wire.response() == (400, b"400 Bad Request")
        assert wire.file.read() == b""


def connections(server):
    return list(server._server.server_state.connections)


def test_requests_that_wait_for_their_turn_are_neither_parsed_nor_read_without_limit(fresh):
    server, one = fresh(), request("GET", "/api/version")
    with Wire(server) as wire:
        wire.socket.settimeout(1)
        with suppress(TimeoutError):
            for _ in range(1000):
                wire.socket.sendall(one * 1000)
        [connection] = connections(server)
        until(lambda: connection.flow.read_paused and connection.pipeline)
        assert len(connection.pipeline) <= FEED_BYTES / len(one) + 1
        assert len(connection._held) <= 1 << 19
    with Wire(server) as wire:  # and with a client that reads, each is answered
        writer = threading.Thread(target=wire.socket.sendall, args=(one * 5000,))
        writer.start()
        assert [wire.response()[0] for _ in range(5000)] == [200] * 5000
        writer.join()


def test_a_long_body_is_followed_by_the_next_request(served):
    body = json.dumps({"model": "bare", "content": "a" * 1_000_000}).encode()
    with Wire(served) as wire:
        writer = threading.Thread(target=wire.socket.sendall, args=(request("POST", "/api/tokenize", body) * 3,))
        writer.start()
        assert [wire.response()[0] for _ in range(3)] == [200] * 3
        writer.join()


def test_garbage_after_a_request_is_refused_when_that_is_answered(served):
    with Wire(served, request("GET", "/api/version") + b"\0garbage\r\n\r\n") as wire:
        assert [wire.response()[0] for _ in range(2)] == [200, 400]
        assert wire.file.read() == b""


# silence


BODY_BEGUN = b"POST /api/show HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"GET / HTTP/1.1\r\nHost:", BODY_BEGUN, request("GET", "/") + b"GET /"])
def test_a_silent_connection_is_closed(fresh, monkeypatch, sent):
    monkeypatch.setattr("numllama.api.server.connection.READ_TIMEOUT_S", 0.2)
    server = fresh()
    with Wire(server, sent) as wire, suppress(ConnectionError):
        assert wire.file.read() == b"" or sent.startswith(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    until(lambda: not connections(server))


def test_a_head_that_comes_byte_by_byte_is_not_waited_for(fresh, monkeypatch):
    monkeypatch.setattr("numllama.api.server.connection.READ_TIMEOUT_S", 0.2)
    server, sent = fresh(), 0
    with Wire(server) as wire, suppress(ConnectionError):
        for byte in b"GET /" + b"a" * 1000:
            wire.socket.sendall(bytes([byte]))
            sent += 1
            time.sleep(0.02)
    assert sent < 200


def test_a_client_that_waits_for_its_answer_may_be_silent(served, slowly, monkeypatch):
    monkeypatch.setattr("numllama.api.server.connection.READ_TIMEOUT_S", 0.05)
    body = {"model": "bare", "prompt": "a", "stream": False, "options": {"num_predict": 60, "temperature": 0}}
    with Wire(served, request("POST", "/api/generate", json.dumps(body).encode())) as wire:
        status, got = wire.response()
    assert (status, json.loads(got)["eval_count"] > 20) == (200, True)


# HTTP/1.0, and clients that end their side


def generation(stream, **options):
    body = {"model": "bare", "prompt": "a", "stream": stream, "options": {"num_predict": 5, "temperature": 0} | options}
    return json.dumps(body).encode()


def test_a_stream_to_an_http_1_0_client_ends_with_the_connection(served):
    expected = served.ok("/api/generate", **json.loads(generation(False)))["response"]
    with Wire(served, request("POST", "/api/generate", generation(True), version="1.0")) as wire:
        status, headers = wire.head()
        lines = [json.loads(line) for line in wire.file.read().splitlines()]
    assert status == 200 and headers["connection"] == "close" and "transfer-encoding" not in headers
    assert "".join(line["response"] for line in lines) == expected and lines[-1]["done"]


@pytest.mark.parametrize("path", ["/api/version", "/nope", "/"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_http_1_0_client_gets_whole_answers_too(served, path, method):
    with Wire(served, request(method, path, version="1.0")) as wire:
        status, headers = wire.head()
        assert status == (404 if path == "/nope" else 200)
        body = wire.file.read()
    assert len(body) == (int(headers["content-length"]) if method == "GET" else 0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_ends_its_side_after_the_request_is_answered(served, slowly, stream):
    expected = served.ok("/api/generate", **json.loads(generation(False)))["response"]
    with Wire(served, request("POST", "/api/generate", generation(stream))) as wire:
        wire.socket.shutdown(socket.SHUT_WR)
        status, _ = wire.head()
        while status == 100:  # the server asks whether the client is there
            status, _ = wire.head()
        assert status == 200
        rest = wire.file.read()
    if stream:
        rest = b"".join(rest.split(b"\r\n")[1::2])
    assert "".join(json.loads(line)["response"] for line in rest.splitlines()) == expected


def test_clients_that_leave_cause_no_warnings(served, slowly, caplog):
    clients = [Wire(served, request("POST", "/api/generate", generation(True, num_predict=-1))) for _ in range(4)]
    for i, wire in enumerate(clients):
        wire.head()
        if i % 2:
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        wire.__exit__()
    runners = [entry.runner for entry in served.engine.pool.loaded()]
    until(lambda: all(runner.scheduler.idle for runner in runners))
    assert [record for record in caplog.records if record.levelname != "INFO"] == []


def test_an_accepted_connection_sends_each_write_at_once(fresh):
    """Without TCP_NODELAY, an answer's body waits up to 40 ms until the client's system acknowledges its head."""
    server = fresh()
    server.client.get("/api/version")
    (connection,) = server.connections
    accepted = connection.transport.get_extra_info("socket")
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
