"""HTTP transport through the proxies that the environment names, by the rules of Go and curl.

    HTTP_PROXY, HTTPS_PROXY   proxy for URLs of that scheme: http://, https:// or socks5://host:port
    ALL_PROXY                 proxy for both, if the one above is not set
    NO_PROXY                  hosts without a proxy: example.com, .example.com, 10.0.0.1, 10.0.0.0/8, [::1]:80, *
    SSL_CERT_FILE, SSL_CERT_DIR   certificates to trust instead of the usual ones

Every name may be in lower case.  Loopback addresses are reached directly.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from collections.abc import Mapping
from contextlib import suppress
from functools import cache

import httpx

DEFAULT_PORTS = {"http": 80, "https": 443}
UNLIMITED = httpx.Limits(max_connections=None)


class BadEnvironment(httpx.TransportError):
    """A variable of the environment has a value that no request can be sent with."""


class ProxyTransport(httpx.BaseTransport):
    """A transport that chooses the proxy for each URL.  It sets `proxied` in the extensions of each response.

    Raises: BadEnvironment, besides httpx's errors
    """

    def __init__(self, limits: httpx.Limits = UNLIMITED, environ: Mapping[str, str] = os.environ):
        self._limits, self._environ = limits, environ
        self._transports: dict[tuple[str, bool], httpx.HTTPTransport] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request directly or through the proxy that the environment names for its address."""
        proxy = proxy_for(request.url, self._environ)
        uses_tls = request.url.scheme == "https" or proxy.startswith("https:")
        transport = self._transports.get((proxy, uses_tls))
        if transport is None:
            verify = tls_context() if uses_tls else False
            try:
                made = httpx.HTTPTransport(verify=verify, proxy=proxy or None, limits=self._limits, trust_env=False)
            except (ValueError, httpx.InvalidURL) as error:
                raise BadEnvironment(f"invalid proxy '{proxy}': {error}") from None
            transport = self._transports.setdefault((proxy, uses_tls), made)
        try:
            response = transport.handle_request(request)
        except httpx.ConnectError as error:
            if not proxy:
                raise
            raise httpx.ProxyError(f"proxy {httpx.URL(proxy).host}: {str(error).rpartition('] ')[2]}") from None
        response.extensions["proxied"] = bool(proxy)
        return response

    def close(self) -> None:
        for transport in self._transports.values():
            transport.close()


def proxy_for(url: httpx.URL, environ: Mapping[str, str] = os.environ) -> str:
    """Return the URL of the proxy for `url`, or "" for none.  Raises: BadEnvironment for an unknown kind of proxy"""

    def variable(name: str) -> str:
        return (environ.get(name) or environ.get(name.lower()) or "").strip()

    host = url.host.lower().rstrip(".")
    proxy = variable(f"{url.scheme.upper()}_PROXY") or variable("ALL_PROXY")
    if (
        not proxy
        or is_loopback(host)
        or _is_excepted(host, url.port or DEFAULT_PORTS.get(url.scheme, 0), variable("NO_PROXY"))
    ):
        return ""
    scheme, separator, rest = proxy.partition("://")
    if not separator:
        scheme, rest = "http", proxy
    scheme = {"socks": "socks5"}.get(scheme.lower(), scheme.lower())  # GNOME writes socks://
    if scheme not in ("http", "https", "socks5", "socks5h"):
        raise BadEnvironment(f"unsupported proxy '{scheme}://', expected http, https or socks5")
    return f"{scheme}://{rest}"


def is_loopback(host: str) -> bool:
    """Return whether `host` is this machine by name or address."""
    address = _address(host)
    return address.is_loopback if address else host in ("localhost", "") or host.endswith(".localhost")


def _is_excepted(host: str, port: int, exceptions: str) -> bool:
    """Return whether NO_PROXY names the host, which is an address, or a domain with all that is below it."""
    address = _address(host)
    for entry in re.split(r"[,\s]+", exceptions.lower()):
        if entry == "*":
            return True
        if address and "/" in entry:
            with suppress(ValueError):
                if address in ipaddress.ip_network(entry, strict=False):
                    return True
            continue
        name, wanted = _split_port(entry)
        if not name or (wanted and int(wanted) != port):
            continue
        if address == _address(name) if address else _is_within(host, name):
            return True
    return False


def _is_within(host: str, domain: str) -> bool:
    """Return whether `host` is `domain` or below it; a domain that begins with a dot stands for those below it only."""
    domain = domain.removeprefix("*")
    return host.endswith(domain) if domain.startswith(".") else f".{host}".endswith(f".{domain}")


def _split_port(entry: str) -> tuple[str, str]:
    """Split an entry of NO_PROXY into a name and a port, "" without one."""
    match = re.fullmatch(r"\[([^\]]*)\](?::(\d+))?|([^:]*):(\d+)", entry)
    if not match:
        return entry, ""
    return match[1] or match[3] or "", match[2] or match[4] or ""


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


@cache
def tls_context() -> ssl.SSLContext:
    """Return the certificates to trust.  Raises: BadEnvironment"""
    try:
        return httpx.create_ssl_context()
    except (OSError, ssl.SSLError) as error:
        named = [f"{name}={os.environ[name]}" for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)]
        reason = (error.strerror or str(error)).lower()
        raise BadEnvironment(f"cannot load certificates ({', '.join(named)}): {reason}") from None
