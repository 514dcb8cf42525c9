"""Independent work on a Ray cluster: the results of a plain loop, in its order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, TypeVar

from ..errors import EngineError
from .cluster import actor_places, join_cluster, working_nodes
from .ring import as_engine_error

MAX_RETRIES = 2  # of an item whose worker ended

Item = TypeVar("Item")
Result = TypeVar("Result")


class SpreadWorker:
    """A function in a process of the cluster, with what it has loaded."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]):
        self._make = make

    @cached_property
    def _function(self) -> Callable[[Any], Any]:
        return self._make()  # with the first item, so that its error is that of a call

    def call(self, item: Any) -> Any:
        """Return the function's result for `item`."""
        return self._function(item)


def spread(
    address: str, make: Callable[[], Callable[[Item], Result]], items: Iterable[Item], n_worker: int = 0
) -> Iterator[Result]:
    """Yield make()(item) for all items, in their order; each worker calls `make` once.

    address    of the cluster; "": one on this machine
    n_worker   one for each node if 0
    An item whose worker ends is computed by it when Ray has started it again.  Raises: RequestError without Ray, or if
    the cluster cannot be reached; EngineError
    """
    ray = join_cluster(address)
    from ray.util import ActorPool

    n_worker = n_worker or len(working_nodes(ray))
    actor = ray.remote(max_restarts=-1, max_task_retries=MAX_RETRIES)(SpreadWorker)
    workers = [actor.options(scheduling_strategy=place).remote(make) for place in actor_places(ray, n_worker)]
    try:
        pool: Any = ActorPool(workers)
        yield from pool.map(lambda worker, item: worker.call.remote(item), items)
    except ray.exceptions.RayActorError as error:
        raise EngineError(f"a worker ended {MAX_RETRIES + 1} times: {str(error).splitlines()[0]}") from None
    except ray.exceptions.RayTaskError as error:
        raise as_engine_error(error.cause) from None
    finally:
        for worker in workers:
            ray.kill(worker)
