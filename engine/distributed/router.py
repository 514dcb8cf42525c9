"""Ray Serve's router of requests: by what a replica knows of the prompt, then by its queue."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from ray.exceptions import ActorUnavailableError
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from .affinity import Beginning, SentBeginnings, preferred

ACCEPT_S = 10.0


class PrefixRouter(RequestRouter):
    """A sender's router.  The first argument of every request is a Beginning; see affinity.py.

    A replica reports its loaded models as the routing statistic `models`.
    """

    queue_len_response_deadline_s = 2.0  # Ray's 0.1 s are too short for a replica whose cores are all at work

    def initialize_state(self, **kwargs: Any) -> None:
        """Take `slack`, see `preferred`."""
        self._slack: int = kwargs["slack"]
        self._sent, self._under_way = SentBeginnings(), Counter[str]()
        self._names: set[str] = set()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Rank the replicas; Serve takes the first that accepts the request."""
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        queues = {name: self._queue(replica) for name, replica in replicas.items()}
        known, model = {}, ""
        if pending_request:
            pending_request.routing_context.should_backoff = True  # before the next round, if all are full
            beginning: Beginning = pending_request.args[0]
            known, model = self._sent.n_known(beginning, replicas), beginning.model
            for name, replica in replicas.items():
                if model in replica.routing_stats.get("models", ()):
                    known[name] = max(known[name], 1)
        return [[replicas[name]] for name in preferred(queues, known, self._slack, model)]

    def _queue(self, replica: RunningReplica) -> int:
        """Return the requests under way: what this sender knows of its own, or what the replica told it of all."""
        told = self.replica_queue_len_cache.get(replica.replica_id) or 0
        return max(told, self._under_way[replica.replica_id.unique_id])

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Remember what the replica was sent."""
        self._sent.record(pending_request.args[0], replica_id.unique_id)

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Count the request as under way."""
        super().on_send_request(replica_id)
        self._under_way[replica_id.unique_id] += 1

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Count the request as done."""
        if self._under_way[replica_id.unique_id] > 0:  # else the replica has ended, and is not counted any more
            self._under_way[replica_id.unique_id] -= 1

    def create_replica_wrapper(self, replica_info: Any) -> RunningReplica:
        """Make the replica's stub, which waits ACCEPT_S at most for the replica to accept a request."""
        replica = super().create_replica_wrapper(replica_info)
        send = replica.try_send_request

        def send_and_limit(request: PendingRequest, with_rejection: bool) -> Any:
            result = send(request, with_rejection)
            accepted = result.get_rejection_response

            async def accepted_in_time() -> Any:
                try:
                    async with asyncio.timeout(ACCEPT_S):
                        return await accepted()
                except TimeoutError:  # its host is lost; Serve then tries the next of choose_replicas
                    raise ActorUnavailableError("no answer", replica.actor_id.binary()) from None

            result.get_rejection_response = accepted_in_time  # type: ignore[method-assign]
            return result

        replica.try_send_request = send_and_limit  # type: ignore[method-assign, assignment]
        return replica

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Take the replicas that there are now."""
        super().update_replicas(replicas)
        names = {replica.replica_id.unique_id for replica in replicas}
        if self._names - names:
            self._sent.forget_all_but(names)
        for name in self._under_way.keys() - names:
            del self._under_way[name]
        self._names = names
