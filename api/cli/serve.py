"""`numllama serve`: the HTTP server in the foreground."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import socket
import sys
import threading
from contextlib import suppress

import uvicorn

from ... import __version__
from ...engine.errors import StoreError
from ...engine.serve.engine import Engine
from ...engine.settings import Settings
from ...engine.store.registry.auth import Credentials
from ..server.app import create_app
from ..server.connection import Connection
from ..server.log import start_logging

log = logging.getLogger(__name__)


def serve_forever(settings: Settings | None = None) -> None:
    """Listen where OLLAMA_HOST says until SIGINT or SIGTERM; then unload and return.

    Exits with status 1 and one line if that address cannot be had.
    """
    settings = settings or Settings.from_env()
    start_logging(settings.debug)
    share_memory()
    for name in settings.without_effect:
        log.info("%s is set and has no effect here", name)
    try:
        listener = listen(settings)
    except OSError as error:
        print(
            f"Error: listen tcp {settings.host.address}: bind: {(error.strerror or str(error)).lower()}",
            file=sys.stderr,
        )
        sys.exit(1)
    engine = Engine(settings)
    try:
        Credentials.from_env().ensure_key()
    except OSError as error:
        log.warning("no key to sign for registries with: %s: %s", error.filename, error.strerror)
    try:
        engine.store.prune()
    except StoreError as error:
        log.warning("nothing is pruned: %s", error)
    config = uvicorn.Config(
        create_app(engine),
        http=Connection,
        loop="asyncio",  # uvloop takes the lock of Python more often, for which the thread that computes has to wait
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=3,
        server_header=False,
        headers=[("Server", f"numllama/{__version__}")],
    )
    server = Server(config, engine)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.handle_exit)  # uvicorn raises what it caught once more: then this takes it
    log.info("listening on %s", settings.host.url)
    server.run(sockets=[listener])


def share_memory() -> None:
    """Threads share two heaps, where the C library is glibc: each of 16 would keep for itself what it once had."""
    M_ARENA_MAX = -8  # malloc.h
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


class Server(uvicorn.Server):
    """uvicorn's, which tells the engine when the end has come, so that every answer ends with a word about it.

    Nothing outlives it by more than a moment: a load that is going on can't be told to stop.
    """

    def __init__(self, config: uvicorn.Config, engine: Engine):
        super().__init__(config)
        self.engine = engine

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("shutting down")
        deadline = threading.Timer(4.5, os._exit, [0])
        deadline.daemon = True
        deadline.start()
        await asyncio.to_thread(self.engine.close)
        await super().shutdown(sockets)


def listen(settings: Settings) -> socket.socket:
    """A socket bound to OLLAMA_HOST.  Raises: OSError"""
    host = settings.host
    family = socket.AF_INET6 if ":" in host.name else socket.AF_INET
    listener = socket.socket(family)
    if os.name == "posix":  # elsewhere this would take a port from whoever has it
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.name, host.port))
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener
