"""Applications on a Ray cluster, each with an engine of its own, for batches of requests."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from ...engine.distributed.cluster import actor_places, join_cluster, working_nodes
from ...engine.errors import EngineError
from ...engine.serve.engine import Engine
from ...engine.settings import Settings
from ...engine.store.file import FileModel
from ..server.local import LocalApp

MAX_TRIES = 3  # of a request whose worker ended
RESTART_S = 300.0  # for a worker to be there again


class Worker:
    """One application, in a process of the cluster."""

    def __init__(self, settings: Settings, file: Path | None):
        self._app = LocalApp(Engine(settings, file=FileModel.of(file) if file else None))

    async def pid(self) -> int:
        """Return the process id."""
        return os.getpid()

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Answer a request."""
        return await self._app.post(path, body)


class RayWorkers:
    """The workers of a cluster.  A request goes to the one with the fewest under way.

    Ray starts a worker that ended again; until it is there, requests go to the others.

    address    of the cluster; "": one on this machine
    n_worker   one for each node if 0
    n_each     requests at once, for each worker
    file       a GGUF file, at the same path on every node, that answers everything
    Raises: RequestError without Ray, or if the cluster cannot be reached
    """

    def __init__(self, settings: Settings, address: str, n_worker: int, n_each: int, file: Path | None = None):
        self._ray = ray = join_cluster(address)
        self.n_worker = n_worker or len(working_nodes(ray))
        actor = ray.remote(max_restarts=-1, max_concurrency=2 * n_each)(Worker)
        self._workers = [
            actor.options(scheduling_strategy=place).remote(settings, file)
            for place in actor_places(ray, self.n_worker)
        ]
        self._under_way = [0] * self.n_worker
        self._restarts = dict[int, asyncio.Task[None]]()

    async def pids(self) -> list[int]:
        """Return the process ids of the workers."""
        return list(await asyncio.gather(*(worker.pid.remote() for worker in self._workers)))

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Answer a request; where its worker ends before, another one does.  Raises: EngineError if all tries fail"""
        for _ in range(MAX_TRIES):
            i = await self._choose()
            self._under_way[i] += 1
            try:
                status, answer = await self._workers[i].post.remote(path, body)
                return status, answer
            except self._ray.exceptions.RayActorError as error:
                last = str(error).splitlines()[0]
                if i not in self._restarts:
                    self._restarts[i] = asyncio.create_task(self._wait_for(i))
            finally:
                self._under_way[i] -= 1
        raise EngineError(f"the worker ended {MAX_TRIES} times: {last}")

    async def _choose(self) -> int:
        """Return the worker with the fewest requests under way, of those that are there."""
        while len(self._restarts) == self.n_worker:
            await asyncio.wait(self._restarts.values(), return_when=asyncio.FIRST_COMPLETED)
        return min((i for i in range(self.n_worker) if i not in self._restarts), key=self._under_way.__getitem__)

    async def _wait_for(self, i: int) -> None:
        """Wait until worker `i` answers again, or RESTART_S have passed."""
        try:
            async with asyncio.timeout(RESTART_S):
                while True:
                    try:
                        await self._workers[i].pid.remote()
                        return
                    except self._ray.exceptions.RayActorError:
                        await asyncio.sleep(0.5)
        except TimeoutError:
            pass  # the next request says why
        finally:
            del self._restarts[i]

    async def close(self) -> None:
        """End the workers."""
        for task in self._restarts.values():
            task.cancel()
        for worker in self._workers:
            self._ray.kill(worker)
