"""The way of hidden states through the stages: a ring of sockets, in which each stage sends to the next.

    driver --[part]--> stage 0 --[part]--> stage 1 --[part]--> stage 2 --[part]--> driver

Ray starts the stages, tells each the address of the next, and says when one ends.  A hop of 8 KiB takes 0.05
ms.  A chain of actor calls takes 1 ms a hop, since every result passes through the driver; a compiled graph of Ray 0.3
ms, but between nodes its teardown does not return (Ray 2.60).
"""

from __future__ import annotations

import pickle
import secrets
import select
import socket
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from hmac import compare_digest
from typing import Any

from ..errors import EngineError
from .cluster import node_address

KEY_BYTES = 32  # that a peer sends first
CONNECT_S = 30.0  # for a peer to connect
END_S = 3.0  # for Ray to notice which actor ended
CHECK_S = 1.0  # between questions whether an actor has ended
RELAY_GROUP = "relay"  # the thread of an actor that relays, beside the one for other calls
LENGTH = struct.Struct("<Q")  # of the pickled message that follows

Address = tuple[str, int]


class PeerConnection:
    """A connection that carries pickled objects, to a peer that knows the key."""

    def __init__(self, connected: socket.socket):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.settimeout(None)
        self._socket = connected

    @staticmethod
    def connect(address: Address, key: bytes) -> PeerConnection:
        """Connect to a peer's port.  Raises: OSError"""
        connected = socket.create_connection(address, CONNECT_S)
        connected.sendall(key)
        return PeerConnection(connected)

    def send(self, value: Any) -> None:
        """Send an object.  Raises: OSError"""
        data = pickle.dumps(value, protocol=5)
        self._socket.sendall(LENGTH.pack(len(data)) + data)

    def receive(self) -> Any:
        """Wait for an object.  Raises: EOFError if the peer has closed the connection; OSError"""
        (n,) = LENGTH.unpack(_read(self._socket, LENGTH.size))
        return pickle.loads(_read(self._socket, n))

    def wait(self, seconds: float) -> bool:
        """Wait until something has come, at most `seconds`.  Raises: OSError"""
        ready, _, _ = select.select([self._socket], [], [], seconds)
        return bool(ready)

    def close(self) -> None:
        """Close the connection, which the peer, and a thread that sends here, see as its end."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Port:
    """A port for one peer."""

    def __init__(self, host: str, key: bytes):
        self._socket, self._key = socket.create_server((host, 0)), key
        self._socket.settimeout(CONNECT_S)

    @property
    def address(self) -> Address:
        """The host and number of this port."""
        host, number = self._socket.getsockname()[:2]
        return host, number

    def accept(self) -> PeerConnection:
        """Wait for the peer; others are refused.  Raises: OSError"""
        while True:
            connected, _ = self._socket.accept()
            connected.settimeout(CONNECT_S)
            with suppress(EOFError, OSError):
                if compare_digest(_read(connected, KEY_BYTES), self._key):
                    return PeerConnection(connected)
            connected.close()

    def close(self) -> None:
        """Close the port."""
        self._socket.close()


def relay(port: Port, following: Address, key: bytes, run: Callable[[Any], Any]) -> None:
    """Send `run` of each object that comes on to the next peer, until the connection ends.

    An error is sent on in place of the object.
    """
    with suppress(EOFError, OSError), closing(PeerConnection.connect(following, key)) as after:
        with closing(port):
            before = port.accept()
        with closing(before):
            while True:
                value = before.receive()
                if not isinstance(value, Exception):
                    try:
                        value = run(value)
                    except Exception as error:
                        value = as_engine_error(error)
                after.send(value)


class Ring:
    """The driver's end of a ring through actors that have `listen` and `relay`, see Stage.

    Raises: RayActorError if one ended; OSError if one cannot be reached
    """

    def __init__(self, ray: Any, actors: Sequence[Any]):
        key = secrets.token_bytes(KEY_BYTES)
        addresses = ray.get([actor.listen.remote(key) for actor in actors])
        with closing(Port(node_address(ray), key)) as back:
            self._ray, following = ray, [*addresses[1:], back.address]
            self._relays = [
                actor.relay.options(concurrency_group=RELAY_GROUP).remote(address, key)
                for actor, address in zip(actors, following, strict=True)
            ]
            self._first = PeerConnection.connect(addresses[0], key)
            try:
                self._last = back.accept()
            except OSError:
                self._first.close()
                raise
        self._sender = ThreadPoolExecutor(1)

    def run(self, values: Sequence[Any]) -> list[Any]:
        """Send values through the ring.  -> what comes back for each.  Raises: RayActorError if an actor ended;
        EngineError that `run` raised; EOFError; OSError

        Several are sent by a thread of their own: with full sockets all would wait for one another.
        """
        try:
            if len(values) == 1:
                self._first.send(values[0])
            else:
                for value in values:
                    self._sender.submit(self._first.send, value)
            results = [self._receive() for _ in values]
        except (EOFError, OSError):
            self.close()
            ended, _ = self._ray.wait(self._relays, num_returns=len(self._relays), timeout=END_S)
            self._ray.get(ended)
            raise
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    def _receive(self) -> Any:
        while not self._last.wait(CHECK_S):  # a node that is gone closes no connection
            ended, _ = self._ray.wait(self._relays, timeout=0)
            self._ray.get(ended)
        return self._last.receive()

    def close(self) -> None:
        """Close the connections; the actors end their relays."""
        self._first.close()
        self._last.close()
        self._sender.shutdown(wait=False)


def as_engine_error(error: BaseException) -> EngineError:
    """Return an error of a stage as one that names no class of its own, so that any process can read it."""
    return EngineError(str(error) if isinstance(error, EngineError) else f"a stage failed: {error!r}")


def _read(source: socket.socket, n: int) -> bytearray:
    """Read `n` bytes.  Raises: EOFError; OSError"""
    data = bytearray(n)
    view = memoryview(data)
    while len(view):
        n_read = source.recv_into(view)
        if not n_read:
            raise EOFError
        view = view[n_read:]
    return data
