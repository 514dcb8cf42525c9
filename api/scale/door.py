"""The door of a cluster: a server whose answers are computed by replicas.

    client --HTTP--> door: connection, access, log, store  --Ray Serve--> replica: the same application, its models
                     |                                     --Ray Serve--> replica
                     '-- ps, metrics, unload: asked of all

The door has an application of its own.  What computes goes to a replica, as whole ASGI requests and messages; all that
is about models on disk stays.  A request whose replica ends before the answer has begun is sent to another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

from fastapi import Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ... import __version__
from ...engine.distributed.affinity import CHUNK_CHARS, MAX_CHUNKS, Beginning
from ...engine.distributed.replicas import SLOTS, ReplicaCall, Replicas, Scale
from ...engine.errors import CacheLost, Cancelled, EngineError, ShuttingDown
from ...engine.go.duration import parse_keep_alive
from ...engine.go.json import DecodeError, dumps, loads
from ...engine.model.cache import KVCache
from ...engine.serve.engine import Engine
from ...engine.settings import Host
from ...engine.store import ModelName
from ..wire.errors import error_body, json_response
from ..wire.request import read_body
from ..wire.sse import encode_event
from .merge import merged_metrics, merged_ps, merged_steps
from .replica import ForwardedRequest, Replica

COMPUTED = (
    *("/api/generate", "/api/chat", "/api/embed", "/api/embeddings"),
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"),
    *("/v1/messages", "/v1/messages/count_tokens"),
)
PROMPT_FIELDS = (
    "system",
    "instructions",
    "tools",
    "context",
    "messages",
    "input",
    "prompt",
)  # in the order of most templates
MAX_TRIES = 4  # of a request whose replica ended: its own fault, after so many

Handler = Callable[[Scope, Receive, Send], Awaitable[None]]


class Door:
    """ASGI middleware around the door's own application."""

    def __init__(self, app: ASGIApp, engine: Engine, replicas: Replicas):
        self.app, self._engine, self._replicas = app, engine, replicas
        self._handlers: dict[tuple[str, str], Handler] = {("POST", path): self._compute for path in COMPUTED}
        self._handlers |= {
            ("GET", "/api/ps"): self._ps,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/api/look/time"): self._steps,
            ("POST", "/api/look/run"): self._look_again,
            ("DELETE", "/api/delete"): self._delete,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._handlers.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if not handler:
            return await self.app(scope, receive, send)
        scope["route"] = SimpleNamespace(path=scope["path"])  # for the metrics, as a router does
        await handler(scope, receive, send)

    # --- answers ---

    async def _compute(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a replica answer, and another one if it ends before the answer has begun."""
        content = await read_body(Request(scope, receive))
        loop, threads = asyncio.get_running_loop(), scope["app"].state.threads
        request, beginning, unloads = await loop.run_in_executor(threads, self._parse, scope, content)
        if unloads:
            return await self._ask_all(request, scope, receive, send)
        for n_tries in range(1, MAX_TRIES + 1):
            answer = _Answer(self._replicas.answer(beginning, request), scope, send)
            try:
                return await answer.pass_on(receive)
            except (CacheLost, ShuttingDown) as error:
                if answer.has_begun:
                    return await answer.break_off(error)
                if isinstance(error, ShuttingDown):
                    raise
                if n_tries == MAX_TRIES:
                    raise CacheLost(f"{n_tries} processes ended while they computed this answer") from None
                await asyncio.sleep(0.1)

    def _parse(self, scope: Scope, content: bytes) -> tuple[ForwardedRequest, Beginning, bool]:
        """Find the model and the beginning of the prompt.  -> also whether the request unloads the model

        What cannot be read goes to any replica, which answers with the error.
        """
        try:
            value = loads(content)
        except DecodeError:
            value = None
        fields = {str(key).lower(): found for key, found in value.items()} if isinstance(value, dict) else {}
        name = fields.get("model") if isinstance(fields.get("model"), str) else ""
        scope["log"]["model"] = name
        weights, full, manifest = str(name), "", b""
        with suppress(EngineError):
            model = self._engine.store.resolve(ModelName.parse_request(str(name))[0])
            weights = model.weights_digest.replace(":", "-")
            if not model.is_builtin:
                full, manifest = str(model.name), self._engine.store.manifest_bytes(model)
        text = "" if "embed" in scope["path"] else _prompt_text(fields)
        unloads = scope["path"] in ("/api/generate", "/api/chat") and _unloads(fields)
        return ForwardedRequest.of(scope, content, full, manifest), Beginning.of(weights, text), unloads

    # --- of all replicas ---

    async def _ask_all(self, request: ForwardedRequest, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask all replicas, and pass on the first answer with status 200, or else the first."""
        answers = await self._replicas.broadcast("whole", request)
        good = (answer for answer in answers if answer[0].get("status") == 200)
        for message in next(good, answers[0]):
            if message["type"] != "log":
                await send(message)

    async def _look_again(self, scope: Scope, receive: Receive, send: Send) -> None:
        content = await read_body(Request(scope, receive))
        await self._ask_all(ForwardedRequest.of(scope, content), scope, receive, send)

    async def _ps(self, scope: Scope, receive: Receive, send: Send) -> None:
        await json_response({"models": merged_ps(await self._replicas.broadcast("ps"))})(scope, receive, send)

    async def _metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        text = merged_metrics(scope["app"].state.metrics.text(), await self._replicas.broadcast("metrics"))
        await Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})(scope, receive, send)

    async def _steps(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["query_string"]:
            return await self._ask_all(ForwardedRequest.of(scope, b""), scope, receive, send)
        await json_response({"models": merged_steps(await self._replicas.broadcast("steps"))})(scope, receive, send)

    async def _delete(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Delete here, then on nodes that have stores of their own; then answer."""
        content = await read_body(Request(scope, receive))
        held: list[Message] = []

        async def hold(message: Message) -> None:
            held.append(message)

        async def replay() -> Message:
            return {"type": "http.request", "body": content, "more_body": False}

        await self.app(scope, replay, hold)
        if held[0].get("status") == 200:
            value = loads(content)
            await self._replicas.broadcast("delete", value.get("model") or value.get("name"))
        for message in held:
            await send(message)


class _Answer:
    """One try at an answer: what a replica sends, passed on."""

    def __init__(self, call: ReplicaCall, scope: Scope, send: Send):
        self._call, self._scope, self._send = call, scope, send
        self.has_begun, self._is_whole = False, False
        self._content_type, self._n_events = "", 0

    async def pass_on(self, receive: Receive) -> None:
        """Pass all messages on; if the client disconnects, cancel.  Raises: CacheLost, QueueFull"""
        watch = asyncio.create_task(self._cancel_when_disconnected(receive))
        try:
            async for messages in self._call:
                for message in messages:
                    await self._pass(message)
        except Cancelled:
            pass
        except (CacheLost, ShuttingDown):
            if not self._is_whole:
                raise
        finally:
            watch.cancel()
            if not self._is_whole:
                self._call.cancel()

    async def _pass(self, message: Message) -> None:
        if message["type"] == "log":
            self._scope["log"] |= message["fields"]
            return
        if message["type"] == "http.response.start":
            self._content_type = dict(message["headers"]).get(b"content-type", b"").decode("latin-1")
        else:
            self._n_events += message.get("body", b"").count(b"\n\n")
            self._is_whole = not message.get("more_body", False)
        self.has_begun = True
        await self._send(message)

    async def break_off(self, error: EngineError) -> None:
        """End an answer that has begun with an error, in the form of its stream."""
        end = broken_end(error, self._scope["path"], self._content_type, self._n_events)
        await self._send({"type": "http.response.body", "body": end, "more_body": True})
        await self._send({"type": "http.response.body", "body": b""})

    async def _cancel_when_disconnected(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if not self._is_whole:
            self._call.cancel()


def _prompt_text(fields: dict[str, Any]) -> str:
    """Return the beginning of what a request's prompt is made from."""
    text = ""
    for name in PROMPT_FIELDS:
        if fields.get(name) and len(text) < MAX_CHUNKS * CHUNK_CHARS:
            text += dumps(fields[name]).decode("utf-8", "replace")
    return text


def _unloads(fields: dict[str, Any]) -> bool:
    """Return whether a request to generate or chat only unloads its model."""
    if fields.get("prompt") or fields.get("messages") or fields.get("keep_alive") is None:
        return False
    with suppress(EngineError):
        return parse_keep_alive(fields["keep_alive"]) == 0
    return False


def broken_end(error: EngineError, path: str, content_type: str, n_events: int) -> bytes:
    """Return the end of a stream in which `n_events` events, or lines, were sent before `error`.

    Another body just ends there: its length tells the client.
    """
    if content_type.startswith("application/x-ndjson"):
        return dumps({"error": str(error)}) + b"\n"
    if not content_type.startswith("text/event-stream"):
        return b""
    sent = error_body(error, path)
    if path == "/v1/responses":
        facts = {"code": sent["error"]["type"], "message": str(error), "param": None}
        return encode_event(("error", {"type": "error", "sequence_number": n_events, **facts}))
    return encode_event(("error" if path.startswith("/v1/messages") else "", sent))


def open_door(engine: Engine, address: str, scale: Scale, staged: Callable[..., KVCache] | None = None) -> Replicas:
    """Start replicas of the application on a cluster, with the settings of `engine`.

    staged   makes their caches in stages, see Engine
    Raises: as Replicas
    """
    settings = replace(engine.settings, host=Host(name=""), origins=())  # the door's own
    version = sha256(repr((__version__, settings, staged)).encode()).hexdigest()
    slots = settings.num_parallel or SLOTS
    return Replicas(address, Replica, (settings, staged), scale, version, slots, settings.max_queue)
