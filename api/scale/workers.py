"""Applications on a Ray cluster, each with an engine of its own, for batches of requests."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from ...engine.distributed.cluster import join_cluster
from ...engine.errors import EngineError
from ...engine.serve.engine import Engine
from ...engine.settings import Settings
from ...engine.store.file import FileModel
from ..server.local import LocalApp

MAX_TRIES = 3  # of a request whose worker ended


class Worker:
    """One application, in a process of the cluster."""

    def __init__(self, settings: Settings, file: Path | None):
        self._app = LocalApp(Engine(settings, file=FileModel.of(file) if file else None))

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Answer a request."""
        return await self._app.post(path, body)


class RayWorkers:
    """The workers of a cluster.  A request goes to the one with the fewest under way.

    address    of the cluster; "": one on this machine
    n_worker   one for each node if 0
    n_each     requests at once, for each worker
    file       a GGUF file, at the same path on every node, that answers everything
    Raises: RequestError without Ray, or if the cluster cannot be reached
    """

    def __init__(self, settings: Settings, address: str, n_worker: int, n_each: int, file: Path | None = None):
        self._ray = ray = join_cluster(address)
        self.n_worker = n_worker or max(1, sum(node["Alive"] for node in ray.nodes()))
        actor = ray.remote(max_restarts=-1, max_concurrency=2 * n_each, scheduling_strategy="SPREAD")(Worker)
        self._workers = [actor.remote(settings, file) for _ in range(self.n_worker)]
        self._under_way = [0] * self.n_worker

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Answer a request; where its worker ends before, another one does.  Raises: EngineError if all tries fail"""
        for _ in range(MAX_TRIES):
            i = self._under_way.index(min(self._under_way))
            self._under_way[i] += 1
            try:
                status, answer = await self._workers[i].post.remote(path, body)
                return status, answer
            except self._ray.exceptions.RayActorError as error:
                last = str(error).splitlines()[0]
                await asyncio.sleep(0.5)
            finally:
                self._under_way[i] -= 1
        raise EngineError(f"the worker ended {MAX_TRIES} times: {last}")

    async def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            self._ray.kill(worker)
