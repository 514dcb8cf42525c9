"""Equal processes on a Ray cluster behind Ray Serve: as many as the queue asks for, each answering any request.

Serve starts and ends them, checks that they answer, replaces those that end, and lets one finish its answers before it
goes.  Which of them gets a request: router.py.  Streams come by gRPC, straight from the replica.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from threading import Timer
from typing import Any
from weakref import WeakSet

from ..errors import CacheLost, Cancelled, EngineError, QueueFull, RequestError, ShuttingDown
from ..serve.pool import BUSY_MESSAGE
from .affinity import Beginning
from .cluster import join_cluster

log = logging.getLogger(__name__)

APPLICATION, DEPLOYMENT = "numllama", "replica"
SLOTS = 4  # of a model, where the settings leave it open
REQUESTS_PER_SLOT = 4  # sent to a replica at most; others wait at the sender, for a new replica too
DRAIN_S = 300.0  # for the answers of a replica that is to go
UPSCALE_S, DOWNSCALE_S = 10.0, 300.0  # how long the queue must ask for more replicas, or for fewer
HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 10.0, 60.0
TICK_S, SILENT_S = 5.0, 30.0  # a replica says something at least so often; without a word for so long, it is lost
BROADCAST_S = 10.0
SLOW_START_S = 30.0
SLOW_START = "still waiting for replicas: each takes one CPU of the cluster; `ray status` lists those that are free"
MAX_MESSAGE_BYTES = 1 << 29  # a request's body has at most half of it


@dataclass(frozen=True)
class Scale:
    """How many replicas: between `least` and `most`."""

    least: int
    most: int

    @classmethod
    def parse(cls, text: str) -> Scale:
        """Parse "2" or "1:8", or "0".  Raises: RequestError"""
        found = re.fullmatch(r"\s*([0-9]{1,6})\s*(?::\s*([0-9]{1,6})\s*)?", text)
        least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        if most < least or (not least and found and found[2]):
            raise RequestError(f"--replicas '{text}', expected a number such as 2 or a range such as 1:8")
        return cls(least, most)


def join_directly(address: str) -> None:
    """Connect to a cluster as one of its own processes, which streams need.  Raises: RequestError"""
    if address.startswith("ray://"):
        raise RequestError(f"Ray cluster '{address}', a client's address; replicas need HOST:PORT, auto or local")
    os.environ.setdefault("RAY_SERVE_USE_GRPC_BY_DEFAULT", "1")  # both are read when ray.serve is imported
    os.environ["RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"] = str(MAX_MESSAGE_BYTES)
    join_cluster(address)


class ReplicaCall:
    """One request to a replica: an iterator over what it yields, which is something at least every TICK_S.

    Raises: CacheLost if the replica ends, or is silent for SILENT_S as its host is lost; QueueFull if too many requests
    wait; after `cancel`, the error given to it
    """

    def __init__(self, response: Any):
        self._response = response
        self._why: Callable[[], EngineError] | None = None
        self._is_taken = False  # before, the request may wait for a replica

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        try:
            async with asyncio.timeout(SILENT_S if self._is_taken else None):
                found = await self._response.__anext__()
            self._is_taken = True
            return found
        except StopAsyncIteration:
            raise
        except TimeoutError:
            self._response.cancel()
            raise CacheLost(
                f"the process that computed this answer was silent for {SILENT_S:.0f} s; ask again"
            ) from None
        except (asyncio.CancelledError, Exception) as error:
            if self._why:
                raise self._why() from None
            raise _translated(error) from None

    def cancel(self, why: Callable[[], EngineError] = Cancelled) -> None:
        """End the request with the error that `why` makes; the replica stops computing its answer."""
        self._why = self._why or why
        self._response.cancel()


class Replicas:
    """The application on a cluster; several senders may share it.

    cls, arguments   makes a replica, whose method `answer(beginning, ...)` yields, at once and every TICK_S
    version          of the program and its settings: another one replaces replicas, a few at a time
    slots            answers that a replica computes at once
    max_queue        requests that may wait here
    Raises: RequestError without Ray, or if the cluster cannot be reached so; EngineError if no replica starts
    """

    def __init__(
        self,
        address: str,
        cls: type,
        arguments: Sequence[Any],
        scale: Scale,
        version: str,
        slots: int = SLOTS,
        max_queue: int = 512,
    ):
        join_directly(address)
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        self._serve = serve
        self.is_own = address in ("", "local")
        serve.start(proxy_location="Disabled")
        environment = {"RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(MAX_MESSAGE_BYTES), "MALLOC_ARENA_MAX": "2"}
        number: dict[str, Any] = {"num_replicas": scale.least}
        if scale.most > scale.least:
            number = {
                "autoscaling_config": {
                    "min_replicas": scale.least,
                    "max_replicas": scale.most,
                    "target_ongoing_requests": slots,
                    "upscale_delay_s": UPSCALE_S,
                    "downscale_delay_s": DOWNSCALE_S,
                }
            }
        deploy = serve.deployment(
            name=DEPLOYMENT,
            max_ongoing_requests=slots * REQUESTS_PER_SLOT,
            max_queued_requests=max(1, max_queue),
            graceful_shutdown_timeout_s=DRAIN_S,
            health_check_period_s=HEALTH_PERIOD_S,
            health_check_timeout_s=HEALTH_TIMEOUT_S,
            # one for each CPU that a node offers (`ray start --num-cpus 1`: one); here, as many as asked for
            ray_actor_options={"num_cpus": 0 if self.is_own else 1, "runtime_env": {"env_vars": environment}},
            request_router_config={
                "request_router_class": f"{__package__}.router.PrefixRouter",
                "request_router_kwargs": {"slack": slots},
                "request_routing_stats_period_s": 2.0,
            },
            logging_config={"log_level": "WARNING", "enable_access_log": False},
            **number,
        )
        deployment = deploy(cls).options(_internal=True, version=version)  # without one, any start would replace all
        waits = Timer(SLOW_START_S, log.warning, [SLOW_START])
        waits.start()
        try:
            handle = serve.run(deployment.bind(*arguments), name=APPLICATION, route_prefix=None)
        except RuntimeError as error:
            raise EngineError(f"no replica started: {' '.join(str(error).split())}") from None
        finally:
            waits.cancel()
        self._handle = handle.options(request_serialization="pickle", response_serialization="pickle")
        self._streams = self._handle.options(stream=True)
        self._calls = WeakSet[ReplicaCall]()

    def answer(self, beginning: Beginning, *arguments: Any) -> ReplicaCall:
        """Send a request to the replica that knows most of `beginning`, by and large."""
        call = ReplicaCall(self._streams.answer.remote(beginning, *arguments))
        self._calls.add(call)
        return call

    async def broadcast(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every replica.  -> the results, but for those that end meanwhile

        Raises: QueueFull if none answers
        """
        sent = self._handle.broadcast(method, *arguments)
        try:
            results = await sent.results_async(timeout_s=BROADCAST_S, return_exceptions=True)
        except TimeoutError:
            raise QueueFull(f"a replica did not answer within {BROADCAST_S:.0f} s") from None
        except Exception as error:
            raise _translated(error) from None
        if not (found := [result for result in results if not isinstance(result, BaseException)]):
            raise QueueFull("no replica answered; see the log of the cluster")
        return found

    def close(self) -> None:
        """End all requests.  Replicas stay, for other senders and the next start, unless the cluster began here."""
        for call in list(self._calls):
            call.cancel(ShuttingDown)
        if self.is_own:
            self._serve.delete(APPLICATION, _blocking=False)


def own_name() -> str:
    """Return the name of the replica that calls this, or "" outside of one."""
    serve = sys.modules.get("ray.serve")
    if not serve:
        return ""
    try:
        return str(serve.get_replica_context().replica_id.unique_id)
    except serve.exceptions.RayServeException:
        return ""


def end_replicas(address: str) -> bool:
    """End the replicas of a cluster.  -> whether there were any.  Raises: RequestError"""
    join_directly(address)
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    found = APPLICATION in serve.status().applications
    if found:
        serve.delete(APPLICATION)
    return found


def _translated(error: BaseException) -> BaseException:
    """Return our error for one of Ray's, or the same."""
    import grpc
    from ray.exceptions import RayError, RayTaskError
    from ray.serve import exceptions as serve

    match error:
        case serve.RequestCancelledError():
            return Cancelled()
        case serve.BackPressureError():
            return QueueFull(BUSY_MESSAGE)
        case serve.DeploymentUnavailableError():
            return QueueFull("no replica is available; see the log of the cluster")
        case RayTaskError():
            return error
        case RayError() | grpc.RpcError() | serve.RayServeException():
            log.warning("a replica has ended: %s", str(error).splitlines()[0])
            return CacheLost("the process that computed this answer ended; ask again")
    return error
