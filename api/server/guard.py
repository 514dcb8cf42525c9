"""Access checks on the Host and Origin headers, before any route.

Host    on a loopback listener only, against DNS rebinding: the header must name this machine or a private network
Origin  CORS: a web page from another origin is answered only if OLLAMA_ORIGINS allows that origin

A refused request gets status 403 and an empty body.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from functools import cache

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...engine.settings import Settings

ALLOWED_METHODS = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
_STAINLESS = (  # headers of OpenAI's client
    "Arch Async Custom-Poll-Interval Helper-Method Lang Os Package-Version Poll-Helper Retry-Count Runtime"
    " Runtime-Version Timeout"
)
ALLOWED_HEADERS = ",".join(
    ["Authorization", "Content-Type", "User-Agent", "Accept", "X-Requested-With", "Openai-Beta"]
    + [f"X-Stainless-{name}" for name in _STAINLESS.split()]
)

# Further headers of OpenAI's and Anthropic's clients, allowed when a page asks for them; Ollama's list stays as it is.
SDK_HEADER = re.compile(
    "x-api-key|anthropic-(version|beta|dangerous-direct-browser-access)|openai-(organization|project)|x-stainless-[a-z-]+",
    re.IGNORECASE,
)


class Guard:
    """ASGI middleware that applies the rules of `settings`."""

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app = app
        self.check_host = settings.host.is_loopback
        self.any_origin = "*" in settings.origins
        self.origins = re.compile("|".join(_pattern(o) for o in settings.origins), re.IGNORECASE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin", "")
        if self.check_host and not host_allowed(host):
            return await _send_empty(send, 403)
        if not origin or origin in (f"http://{host}", f"https://{host}"):
            return await self.app(scope, receive, send)
        if not (self.any_origin or self.origins.fullmatch(origin)):
            return await _send_empty(send, 403)
        allowed = {"Access-Control-Allow-Origin": "*"} if self.any_origin else _allow_origin(origin)
        if scope["method"] == "OPTIONS":
            preflight = {
                "Access-Control-Allow-Methods": ALLOWED_METHODS,
                "Access-Control-Allow-Headers": _allowed_headers(headers.get("access-control-request-headers", "")),
                "Access-Control-Max-Age": "43200",
            }
            return await _send_empty(send, 204, allowed | preflight)

        async def send_with_origin(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(allowed)
            await send(message)

        await self.app(scope, receive, send_with_origin)


def _pattern(origin: str) -> str:
    """Return a regular expression for `origin`, where the first `*` matches anything."""
    return ".*".join(re.escape(part) for part in origin.split("*", 1))


def _allowed_headers(requested: str) -> str:
    """Return Ollama's list, and after it those of the `requested` headers that the known clients send."""
    known = {name.lower() for name in ALLOWED_HEADERS.split(",")}
    asked = dict.fromkeys(name.strip().lower() for name in requested.split(","))
    return ",".join([ALLOWED_HEADERS, *(name for name in asked if name not in known and SDK_HEADER.fullmatch(name))])


def _allow_origin(origin: str) -> dict[str, str]:
    return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}


async def _send_empty(send: Send, status: int, headers: dict[str, str] | None = None) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": b""})


def host_allowed(host: str) -> bool:
    """Return whether a Host header names this machine or a private network."""
    name = re.sub(r":[0-9]*$", "", host) if host.count(":") == 1 or host.startswith("[") else host
    name = name.strip("[]").lower()
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        local = ("localhost", _hostname())
        return name in ("", *local) or name.endswith((".localhost", ".local", ".internal"))
    return address.is_loopback or address.is_private or address.is_unspecified or str(address) in _addresses()


@cache
def _hostname() -> str:
    return socket.gethostname().lower()


@cache
def _addresses() -> frozenset[str]:
    """Return the addresses that this machine's name resolves to."""
    try:
        return frozenset(str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None))
    except OSError:
        return frozenset()
