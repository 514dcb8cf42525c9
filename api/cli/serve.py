"""`numllama serve`: the HTTP server in the foreground."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import gc
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from ... import __version__
from ...engine.distributed.cluster import join_cluster
from ...engine.distributed.replicas import Scale, end_replicas, join_directly
from ...engine.errors import RequestError, StoreError
from ...engine.model.cache import KVCache
from ...engine.serve.engine import Engine
from ...engine.settings import Settings
from ...engine.store.registry.auth import Credentials
from ..server.app import create_app
from ..server.connection import Connection
from ..server.log import start_logging

log = logging.getLogger(__name__)


def serve_forever(
    settings: Settings | None = None,
    cache_dir: Path | None = None,
    engine: Engine | None = None,
    ready: Callable[[str], None] = lambda url: None,
    staged: Callable[..., KVCache] | None = None,
    scale: Scale | None = None,
    address: str = "",
) -> None:
    """Serve at OLLAMA_HOST until SIGINT or SIGTERM, then unload all models and return.

    cache_dir   takes the place of OLLAMA_KV_CACHE_DIR
    engine      one made before, of the same settings
    ready       called with the server's address once it is bound
    staged      makes caches in stages, see Engine
    scale       replicas on a Ray cluster, at `address`, that compute the answers; None: this process computes them
    If the address is not available, prints one line and exits with status 1.
    """
    settings = settings or Settings.from_env()
    if cache_dir:
        settings = replace(settings, kv_cache_dir=cache_dir)
    start_logging(settings.debug)
    limit_malloc_arenas()
    for name in settings.without_effect:
        log.info("%s is set but has no effect in numllama", name)
    try:
        listener = listen(settings)
    except OSError as error:
        print(
            f"Error: listen tcp {settings.host.address}: bind: {(error.strerror or str(error)).lower()}",
            file=sys.stderr,
        )
        sys.exit(1)
    engine = engine or Engine(settings, staged=staged)
    try:
        Credentials.from_env().ensure_key()
    except OSError as error:
        log.warning("cannot create the key for signing in to registries: %s: %s", error.filename, error.strerror)
    try:
        engine.store.rename_old_blobs()
        engine.store.prune()
    except StoreError as error:
        log.warning("cannot prune unused blobs: %s", error)
    door, close = None, engine.close
    if scale:
        from ..scale.door import Door, open_door

        log.info("starting replicas on the Ray cluster '%s'", address or "local")
        replicas = open_door(engine, address, scale, staged)
        door = partial(Door, engine=engine, replicas=replicas)

        def close() -> None:
            replicas.close()
            engine.close()

    config = uvicorn.Config(
        create_app(engine, door),
        http=Connection,
        loop="asyncio",  # uvloop acquires the GIL more often, which delays the engine thread
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=3,
        server_header=False,
        ws="none",  # no route is a WebSocket
        headers=[("Server", f"numllama/{__version__}")],
    )
    server = Server(config, close)
    gc.unfreeze()
    gc.collect()
    gc.freeze()  # what was imported stays: 640,000 objects, 0.3 s of each full collection, in which no thread runs
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.handle_exit)  # uvicorn raises a captured signal again at the end
    port = listener.getsockname()[1]  # the system's choice, if port 0 was requested
    url = replace(settings.host, port=port).url
    log.info("listening on %s", url)
    ready(replace(settings.host.reachable, port=port).url)
    server.run(sockets=[listener])


def limit_malloc_arenas() -> None:
    """Limit glibc to two malloc arenas.  With one per thread, freed memory would stay reserved in each."""
    M_ARENA_MAX = -8  # malloc.h
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


class Server(uvicorn.Server):
    """uvicorn's server; at shutdown it calls `close` first, so that every running answer ends with an error line.

    After 4.5 seconds the process exits in any case, as a running load cannot be interrupted.
    """

    def __init__(self, config: uvicorn.Config, close: Callable[[], None]):
        super().__init__(config)
        self._close = close

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._on_loop_error)
        await super().startup(sockets)

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log that no connection can be accepted in one line, and close those that are silent."""
        if getattr(context.get("exception"), "errno", None) not in OUT_OF_DESCRIPTORS:
            return loop.default_exception_handler(context)
        connections = [c for c in self.server_state.connections if isinstance(c, Connection)]
        n_closed = sum(connection.close_if_silent() for connection in connections)
        facts = {"open": len(connections), "closed": n_closed, "error": str(context["exception"])}
        log.warning("cannot accept connections, will retry in 1 s", extra={"fields": facts})

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("shutting down")
        deadline = threading.Timer(4.5, os._exit, [0])
        deadline.daemon = True
        deadline.start()
        await asyncio.to_thread(self._close)
        await super().shutdown(sockets)


OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Listener(socket.socket):
    """A listening socket that reports once that no connection can be accepted, then that none is there.

    asyncio calls `accept` 2048 times, and logs each failure with a traceback, before it retries a second later.
    """

    _is_exhausted = False

    def accept(self) -> tuple[socket.socket, Any]:
        try:
            accepted = super().accept()
        except OSError as error:
            if error.errno in OUT_OF_DESCRIPTORS:
                self._is_exhausted = not self._is_exhausted
                if not self._is_exhausted:
                    raise BlockingIOError from None
            raise
        self._is_exhausted = False
        return accepted


def staged_cache(stages: int, memory: str, ray: str) -> Callable[..., KVCache] | None:
    """Return what makes a cache in stages, or None.  Raises: RequestError for a wrong size, or without Ray"""
    if not stages and not memory:
        return None
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)i?B?\s*", memory or "0", re.IGNORECASE)
    if not found or stages < 0:
        raise RequestError(f"--stages {stages} --stage-memory '{memory}', expected a number and a size such as 4GiB")
    n_byte = int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " "))
    from ...engine.distributed.pipeline import StagedCache

    join_cluster(ray)
    return partial(StagedCache, n_stage=stages, memory=n_byte, address=ray)


def replica_scale(replicas: str, address: str) -> Scale | None:
    """Return how many replicas are wanted, or None if `--replicas 0` has ended them.  Raises: RequestError"""
    scale = Scale.parse(replicas)
    if scale.most:
        join_directly(address)  # its errors come before those of the address to listen at
        return scale
    found = end_replicas(address)
    print("replicas ended" if found else "no replicas run there", file=sys.stderr)
    return None


def listen(settings: Settings) -> socket.socket:
    """Return a socket that listens at OLLAMA_HOST.  Raises: OSError"""
    host = settings.host
    family = socket.AF_INET6 if ":" in host.name else socket.AF_INET
    listener = Listener(
        family, socket.SOCK_STREAM, socket.IPPROTO_TCP
    )  # asyncio sets TCP_NODELAY only if this names TCP
    if os.name == "posix":  # on Windows this would take over a port in use
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.name, host.port))
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener
