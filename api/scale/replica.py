"""The application in a process of a Ray cluster, which a door sends requests to."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from ...engine.distributed.affinity import Beginning
from ...engine.distributed.replicas import TICK_S, own_name
from ...engine.errors import ModelNotFound, RegistryError, StoreError
from ...engine.handle import RequestHandle
from ...engine.model.cache import KVCache
from ...engine.serve.engine import Engine
from ...engine.settings import Host, Settings
from ...engine.store import ModelName
from ...engine.store.registry.auth import Credentials
from ...engine.store.registry.transfer import pull
from ..server.app import create_app
from ..wire.errors import error_response

log = logging.getLogger(__name__)

SCOPE = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path")
MAX_PIECE_BYTES = 1 << 20  # of a message's body

Message = dict[str, Any]


@dataclass(frozen=True)
class ForwardedRequest:
    """An HTTP request that a door has read and checked.

    name, manifest   of the model, as in the door's store; b"" if it is not there, or built in
    """

    scope: dict[str, Any]
    body: bytes
    name: str = ""
    manifest: bytes = b""

    @classmethod
    def of(cls, scope: Any, body: bytes, name: str = "", manifest: bytes = b"") -> ForwardedRequest:
        """Take from `scope` what can be sent; the origin has been checked, and says nothing here."""
        kept = {key: scope[key] for key in SCOPE if key in scope}
        kept["headers"] = [(key, value) for key, value in scope["headers"] if key != b"origin"]
        return cls(kept | {"client": None, "server": None}, body, name, manifest)


class Replica:
    """One application with its engine."""

    def __init__(self, settings: Settings, staged: Callable[..., KVCache] | None = None):
        own = Settings.from_env()
        models = own.models if os.environ.get("OLLAMA_MODELS") else settings.models
        self.settings = replace(settings, models=models, host=Host(name=""))  # the door has checked the Host header
        self._engine = Engine(self.settings, staged=staged)
        self._app = create_app(self._engine)
        self._ending: set[asyncio.Task[None]] = set()
        gc.collect()
        gc.freeze()

    async def answer(self, beginning: Beginning, request: ForwardedRequest) -> AsyncIterator[list[Message]]:
        """Answer a request.

        Yields ASGI messages, as many as there are: none at first and every TICK_S, as a sign of life; at last with the
        fields for the log.
        """
        messages, gone = asyncio.Queue[Message | None](), asyncio.Event()
        scope, is_read = dict(request.scope), False

        async def receive() -> Message:
            nonlocal is_read
            if not is_read:
                is_read = True
                return {"type": "http.request", "body": request.body, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            for piece in in_pieces(message):
                messages.put_nowait(piece)

        async def run() -> None:
            try:
                await self._answers(request, scope, receive, send)
            finally:
                messages.put_nowait(None)

        task = asyncio.create_task(run())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        try:
            is_over = False
            yield []
            while not is_over:
                try:
                    async with asyncio.timeout(TICK_S):
                        found = [await messages.get()]
                except TimeoutError:
                    yield []
                    continue
                while not messages.empty():
                    found.append(messages.get_nowait())
                is_over = found[-1] is None
                sent = [message for message in found if message]
                fields = scope.get("log", {}) | {"replica": own_name()}
                yield [*sent, {"type": "log", "fields": fields}] if is_over else sent
        finally:
            gone.set()  # the application cancels what it computes

    async def whole(self, request: ForwardedRequest) -> list[Message]:
        """Answer a request at once."""
        return [message async for part in self.answer(Beginning("", ()), request) for message in part]

    async def pid(self) -> tuple[str, int]:
        """Return this replica's name and process id."""
        return own_name(), os.getpid()

    async def ps(self) -> list[dict[str, Any]]:
        """Return the loaded models, in the form of /api/ps."""
        return list(await asyncio.to_thread(self._engine.ps))

    async def metrics(self) -> tuple[str, str]:
        """Return this replica's name, and its metrics as text."""
        return own_name(), self._app.state.metrics.text().decode()

    async def steps(self) -> tuple[str, dict[str, Any]]:
        """Return this replica's name, and the last steps of each loaded model."""
        return own_name(), {name: line.steps() for name, line in self._engine.timelines().items()}

    async def delete(self, name: str) -> None:
        """Delete a model that the door has deleted, where this node has a store of its own."""
        with suppress(ModelNotFound):
            await asyncio.to_thread(self._engine.delete, name)

    async def record_routing_stats(self) -> dict[str, Any]:
        """Return the loaded models, for routers; called by Serve."""
        return {"models": [entry.key.name for entry in self._engine.pool.loaded()]}

    async def check_health(self) -> None:
        """Check that the pool of models and the request threads answer; called by Serve, which waits for it."""
        await asyncio.get_running_loop().run_in_executor(self._app.state.threads, self._engine.ps)

    def __del__(self) -> None:
        """Unload all models, and save caches; called by Serve when the replica has answered all requests."""
        self._engine.close()

    async def _answers(self, request: ForwardedRequest, scope: Any, receive: Any, send: Any) -> None:
        """Answer, once this node has the model; the blobs that it lacks are pulled by digest."""
        app: Any = self._app
        try:
            if request.manifest:
                await asyncio.to_thread(self._fetch, request.name, request.manifest)
        except (RegistryError, StoreError) as error:
            short = ModelName.parse(request.name).short
            text = f"this node lacks model '{short}', and {error}; share the folder of models, or push the model"
            app = error_response(StoreError(text), path=scope["path"])
        await app(scope, receive, send)

    def _fetch(self, name: str, manifest: bytes) -> None:
        """Make the node's store have `name` with this manifest.  Raises: RegistryError, StoreError"""
        store, parsed = self._engine.store, ModelName.parse(name)
        path = store.root / "manifests" / parsed.path
        with suppress(OSError):
            if path.read_bytes() == manifest:
                return
        insecure = parsed.host in self.settings.insecure_registries
        log.warning("pulling %s by digest", parsed.short)
        downloads, credentials = self._engine.downloads, Credentials.from_env()
        for _ in pull(store, downloads, parsed, insecure, credentials, RequestHandle(), manifest):
            pass


def in_pieces(message: Any) -> list[Message]:
    """Cut a message whose body is large."""
    body = message.get("body", b"")
    if len(body) <= MAX_PIECE_BYTES:
        return [dict(message)]
    cuts = range(0, len(body), MAX_PIECE_BYTES)
    parts = [{**message, "body": body[at : at + MAX_PIECE_BYTES], "more_body": True} for at in cuts]
    parts[-1]["more_body"] = message.get("more_body", False)
    return parts
