"""Proxies from the environment, as other programs understand the variables."""

from __future__ import annotations

import socket
import threading

import httpx
import pytest
from registries import Registry

from numllama.engine.store.registry import proxy
from numllama.engine.store.registry.proxy import BadEnvironment, ProxyTransport, proxy_for

BOTH = {"HTTP_PROXY": "http://p:1", "HTTPS_PROXY": "http://s:2"}


@pytest.mark.parametrize(
    "environ, url, expected",
    [
        ({}, "https://r.io", ""),
        (BOTH, "https://r.io", "http://s:2"),
        (BOTH, "http://r.io", "http://p:1"),
        ({"http_proxy": "p:1"}, "http://r.io", "http://p:1"),
        ({"ALL_PROXY": "socks://p:1/"}, "https://r.io", "socks5://p:1/"),
        ({"ALL_PROXY": "SOCKS5H://u:w@p:1"}, "https://r.io", "socks5h://u:w@p:1"),
        ({"ALL_PROXY": "socks5://p:1", **BOTH}, "https://r.io", "http://s:2"),
        (BOTH, "http://127.0.0.1:5", ""),
        (BOTH, "http://[::1]:5", ""),
        (BOTH, "http://localhost:5", ""),
        (BOTH, "http://10.0.0.1", "http://p:1"),
    ],
)
def test_the_proxy_of_a_url(environ, url, expected):
    assert proxy_for(httpx.URL(url), environ) == expected


@pytest.mark.parametrize(
    "no_proxy, direct, proxied",
    [
        ("r.io", "r.io a.r.io R.IO r.io:5000", "xr.io r.io.com"),
        (".r.io", "a.r.io", "r.io xr.io"),
        ("*.r.io", "a.r.io", "r.io"),
        ("r.io:5000", "r.io:5000 a.r.io:5000", "r.io r.io:80"),
        ("r.io:80", "r.io", "r.io:81"),
        ("localhost,[::1]", "localhost", "r.io [::2]"),
        ("localhost, [fd00::1]:80 ,x", "[fd00::1] x", "[fd00::1]:81 [fd00::2]"),
        ("fd00::/8,fe80::1", "[fd12::1] [fe80::1]", "[fe80::2] 10.0.0.1 r.io"),
        ("10.1.2.0/24 192.168.1.9", "10.1.2.200 192.168.1.9", "10.1.3.1 192.168.1.8 r.io"),
        ("10.1.2.3/8", "10.9.9.9", "11.0.0.1"),
        ("*", "r.io 10.0.0.1", ""),
        ("r.io,*", "x.io", ""),
        (",,:,[,300.1.1.1/8,//", "", "r.io 10.0.0.1"),
    ],
)
def test_hosts_without_a_proxy(no_proxy, direct, proxied):
    environ = BOTH | {"NO_PROXY": no_proxy}
    for host in direct.split():
        assert proxy_for(httpx.URL(f"http://{host}/x"), environ) == "", host
    for host in proxied.split():
        assert proxy_for(httpx.URL(f"http://{host}/x"), environ) == "http://p:1", host


@pytest.mark.parametrize("value", ["socks4://p:1", "ftp://p", "http://p:x", "http://[", "socks5://:"])
def test_an_unusable_proxy_is_an_error_of_the_transport(value):
    with httpx.Client(transport=ProxyTransport(environ={"HTTP_PROXY": value}), trust_env=False) as client:
        with pytest.raises(httpx.TransportError):
            client.get("http://r.invalid/")


def test_a_proxy_that_does_not_listen_is_named():
    for scheme in ("http", "socks5"):
        environ = {"HTTP_PROXY": f"{scheme}://user:secret@127.0.0.1:1"}
        with httpx.Client(transport=ProxyTransport(environ=environ), trust_env=False) as client:
            with pytest.raises(httpx.ProxyError, match=r"^proxy 127.0.0.1: Connection refused$"):
                client.get("http://r.invalid/")


def test_missing_certificates_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    proxy.tls_context.cache_clear()
    with pytest.raises(BadEnvironment, match=r"cannot load certificates \(SSL_CERT_FILE=.*none.pem.*\): no such file"):
        proxy.tls_context()


class Socks:
    """A SOCKS5 proxy (RFC 1928) that connects every client to `target`; `asked` lists the requested hosts."""

    def __init__(self, target):
        self.listener, self.target, self.asked = socket.create_server(("127.0.0.1", 0)), target, []
        self.url = f"socks://127.0.0.1:{self.listener.getsockname()[1]}/"
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()

    def serve(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.relay(client)

    def relay(self, client):
        client.recv(2 + client.recv(2)[1])
        client.sendall(b"\x05\x00")
        kind = client.recv(4)[3]
        self.asked.append(client.recv(client.recv(1)[0] if kind == 3 else {1: 4, 4: 16}[kind]))
        client.recv(2)
        client.sendall(b"\x05\x00\x00\x01" + bytes(6))
        with client, socket.create_connection(self.target) as server:
            back = threading.Thread(target=copy, args=(server, client), daemon=True)
            back.start()
            copy(client, server)
            back.join()


def copy(source, target):
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def test_requests_go_through_a_socks_proxy():
    """GNOME sets ALL_PROXY=socks://host:port/."""
    registry = Registry()
    registry.manifests["a/b:c"] = b"{}"
    socks = Socks(("127.0.0.1", registry.port))
    with httpx.Client(transport=ProxyTransport(environ={"ALL_PROXY": socks.url}), trust_env=False) as client:
        response = client.get("http://r.invalid/v2/a/b/manifests/c")
    socks.close()
    registry.close()
    assert (response.content, response.extensions["proxied"]) == (b"{}", True)
    assert socks.asked == [b"r.invalid"]
