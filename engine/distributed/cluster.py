"""The connection to a Ray cluster."""

from __future__ import annotations

import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any

from ..errors import RequestError

PYTHONS = (3, 10), (3, 14)  # the first and last version of Python that Ray 2.60 has wheels for
CONNECT_S = 5.0  # for a cluster to answer


def node_address(ray: Any) -> str:
    """Return the address of this process's node, as the other nodes know it."""
    own = ray.get_runtime_context().get_node_id()
    return str(next(node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == own))


def working_nodes(ray: Any) -> list[str]:
    """Return the ids of the nodes that live and offer CPUs; those that offer none, if no other does."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    return [node["NodeID"] for node in alive if node["Resources"].get("CPU")] or [node["NodeID"] for node in alive]


def actor_places(ray: Any, n: int) -> list[Any]:
    """Return where each of `n` actors goes: as many to each node, neighbours to the same one; elsewhere if it is gone.

    The actors must ask for something, CPUs or memory: Ray puts those that ask for nothing on any node.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = working_nodes(ray)
    return [NodeAffinitySchedulingStrategy(nodes[i * len(nodes) // n], soft=True) for i in range(n)]


def use_token() -> None:
    """Let Ray use this user's token, if there is one: `ray start` then asks for it, and its clients do not send it.

    Ray reads the variable when it is imported.
    """
    named = any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if named or (Path.home() / ".ray/auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def join_cluster(address: str = "") -> Any:
    """Connect to the Ray cluster at `address`, or start one on this machine if it is "".  -> the module `ray`

    Raises: RequestError without Ray, or if no cluster answers there
    """
    if address not in ("", "local") and "ray" not in sys.modules:
        use_token()
    try:
        import ray
    except ImportError:
        first, last = (".".join(map(str, version)) for version in PYTHONS)
        here = ".".join(map(str, sys.version_info[:2]))
        raise RequestError(
            f"Ray is not installed: pip install 'numllama[ray]' (Python {first} to {last}; this is {here})"
        ) from None
    if ray.is_initialized():
        return ray
    check_reachable(address)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # of a cluster that starts here; by default 15: after all others
    try:
        ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        hint = "" if "RAY_AUTH_MODE" in os.environ else "; a cluster with a token needs RAY_AUTH_MODE=token here"
        raise RequestError(f"no Ray cluster at '{address}': {str(error).splitlines()[0]}{hint}") from None
    return ray


def check_reachable(address: str) -> None:
    """Check that something listens at `address`; Ray itself would try for 90 s, and print a line each second.

    Raises: RequestError
    """
    if address in ("", "local", "auto"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if "://" in host or not host or not port.isdecimal() or int(port) > 65535:
        raise RequestError(f"Ray cluster '{address}', expected HOST:PORT, auto or local")
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RequestError(f"no Ray cluster at '{address}': {reason}; `ray start --head` starts one") from None
