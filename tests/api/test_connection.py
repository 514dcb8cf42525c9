"""The HTTP connection on the wire: what clients may send, and how much of it."""

from __future__ import annotations

import json
import socket

import pytest

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
