"""Servers that the harness starts and stops itself: `--start NAME=COMMAND`; and the time until a model answers.

load_s    seconds from the start of a server's process, or from the request to a server that has unloaded the model
          (Ollama's wire), until one token is answered: what a user waits for.  Files are in the system's cache.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from time import perf_counter, sleep
from typing import IO, Any

from ..engine.errors import RequestError
from .arguments import for_server
from .client import new_client, send_request
from .equality import entries, told
from .figures import TimedAnswer
from .wires import Contender, Prompted, terminal_line

POLL_S = 0.005
STOP_S = 20.0  # after which a server that was asked to end is killed
UNLOAD_S = 60.0
FIRST = Prompted("hello", 1)


class ServerProcess:
    """A server that a command starts, at the address of its contender.

    Words of the form NAME=value before the program are its environment, as in a shell.
    """

    def __init__(self, contender: Contender, command: str):
        self.contender, self.command = contender, command
        self.process: subprocess.Popen[bytes] | None = None
        self.log: IO[bytes] | None = None
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise RequestError(f"--start {contender.name}={command}: {error}") from None
        n = next((i for i, word in enumerate(words) if not is_assignment(word)), len(words))
        self.environ, self.words = dict(word.split("=", 1) for word in words[:n]), words[n:]
        if not self.words:
            raise RequestError(f"--start {contender.name}={command}: no program")

    @property
    def pids(self) -> list[int]:
        return [self.process.pid] if self.process and self.process.poll() is None else []

    def start(self) -> float:
        """Start the server, wait until it answers one token, and return the seconds.  Raises: RequestError"""
        host, port = self.contender.address
        if is_listening(host, port):
            raise RequestError(f"{self.contender.name}: a server listens at {host}:{port} already, before --start")
        self.log = tempfile.TemporaryFile()
        began = perf_counter()
        try:
            self.process = subprocess.Popen(
                self.words,
                env=os.environ | self.environ,
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
                start_new_session=True,
            )
        except OSError as error:
            raise RequestError(f"--start {self.contender.name}={self.words[0]}: {error.strerror}") from None
        while not is_listening(host, port):
            self.require_alive(began)
            sleep(POLL_S)
        while (answer := ask(self.contender, FIRST)).outcome != "answered":
            self.require_alive(began)
            if answer.outcome == "failed" and answer.error != "connection refused":
                raise RequestError(f"{self.contender.name}: {answer.error}")
            sleep(POLL_S)  # it refuses requests while it loads
        return perf_counter() - began

    def require_alive(self, began: float) -> None:
        """Raise RequestError if the process has ended, or does not answer in time."""
        assert self.process is not None
        if (status := self.process.poll()) is not None:
            raise RequestError(f"{self.contender.name}: {self.words[0]} exited with {status}{self.last_words()}")
        if perf_counter() - began > self.contender.timeout_s:
            where = f"at {self.contender.url} for {self.contender.timeout_s:g} s"
            raise RequestError(f"{self.contender.name}: {self.words[0]} does not answer {where}")

    def last_words(self) -> str:
        """Return the last line that the server printed, after a colon."""
        assert self.log is not None
        self.log.seek(0)
        lines = [line for line in self.log.read().decode(errors="replace").splitlines() if line.strip()]
        return f": {terminal_line(lines[-1])}" if lines else ""

    def stop(self) -> None:
        """Stop the server and all processes that it started."""
        if self.log is not None:
            self.log.close()
        if self.process is None:
            return
        for number, seconds in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, None)):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
                break
        self.process = None

    def restart(self) -> float:
        self.stop()
        return self.start()


def servers_to_start(contenders: Sequence[Contender], start: Sequence[str], is_load: bool) -> dict[str, ServerProcess]:
    """Return the servers of --start.  Raises: RequestError, also if --load would compare a start with a load"""
    names = [one.name for one in contenders]
    commands = dict(for_server(text, names, "--start") for text in start)
    if None in commands:
        raise RequestError(f"--start is '{commands[None]}', expected SERVER=COMMAND")
    found = {one.name: ServerProcess(one, commands[one.name]) for one in contenders if one.name in commands}
    others = [one for one in contenders if one.name not in found]
    if is_load and found and others:
        (first, *_), other = found, others[0].name
        how = f"--start {other}=COMMAND starts it, too"
        raise RequestError(f"--load: {first} is started and {other} would only be loaded, which is not equal; {how}")
    if is_load and (wrong := [one for one in others if one.wire.name != "ollama"]):
        wire, name = wrong[0].wire.name, wrong[0].name
        how = f"--start {name}=COMMAND starts its server for every load"
        raise RequestError(f"--load: the wire '{wire}' of {name} cannot unload a model; {how}")
    return found


def is_assignment(word: str) -> bool:
    name, equals, _ = word.partition("=")
    return bool(equals) and name.isidentifier()


def is_listening(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=5):
            return True
    except OSError:
        return False


def ask(contender: Contender, asked: Prompted) -> TimedAnswer:
    """Send one request."""

    async def send() -> TimedAnswer:
        async with new_client(contender) as http:
            return await send_request(http, contender, asked)

    return asyncio.run(send())


def reload_model(contender: Contender) -> float:
    """Unload a model on Ollama's wire, then return the seconds until it answers one token.  Raises: RequestError"""

    async def unload() -> None:
        body: dict[str, Any] = {"model": contender.model, "keep_alive": 0, "stream": False}
        async with new_client(contender) as http:
            await told(http, contender, "/api/generate", body)
            end = perf_counter() + UNLOAD_S
            while True:
                loaded = await told(http, contender, "/api/ps")
                if not isinstance(loaded, dict):
                    raise RequestError(f"{contender.name} does not tell at /api/ps which models are loaded: no --load")
                if not any(is_named(model, contender.model) for model in entries(loaded, "models")):
                    return
                if perf_counter() > end:
                    late = f"{contender.model} within {UNLOAD_S:g} s"
                    raise RequestError(f"{contender.name} does not unload {late}: no --load")
                await asyncio.sleep(POLL_S)

    asyncio.run(unload())
    answer = ask(contender, FIRST)
    if answer.outcome != "answered":
        raise RequestError(f"{contender.name}: {answer.error}")
    return answer.e2e


def is_named(model: dict[str, Any], name: str) -> bool:
    """Return whether an entry of /api/ps is the model of that name, with or without its tag."""
    return name in (model.get("name"), model.get("model"), str(model.get("name")).removesuffix(":latest"))
