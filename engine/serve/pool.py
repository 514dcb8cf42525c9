"""Which models are loaded: on demand, for as long as they are wanted, as many as there is room for.

    acquire   loaded and fitting?  ->  a lease at once
              else into the queue of loads; at its head: unload what is in the way, load, a lease
    release   the last lease back starts the countdown of keep_alive; at its end the model goes

One lock guards it all.  Loading happens outside the lock, one at a time, in a thread of its own: who stalls is left
behind.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Condition, Thread
from time import monotonic_ns, time_ns

from ..errors import Cancelled, LoadStalled, OutOfMemory, QueueFull, ShuttingDown
from ..go.duration import FOREVER, SECOND, format_duration
from ..handle import RequestHandle
from ..options import Options
from ..store import LocalModel
from .runner import Runner

log = logging.getLogger(__name__)

BUSY = "server busy, please try again.  maximum pending requests exceeded"
MAX_WAIT_S = 86_400.0  # seconds: a wait without an end, in turns
MAX_LOADED = 3  # Ollama's choice for a machine without a graphics card


@dataclass(eq=False)
class Loaded:
    """A model in memory.

    model      as the store had it, under the name that loaded it
    deadline   on the monotonic clock, while nobody uses it
    leaving    takes no new requests: it goes as soon as the last one is done
    """

    model: LocalModel
    runner: Runner
    keep_alive: int
    n_using: int = 0
    deadline: int = 0
    leaving: bool = False

    @property
    def key(self) -> Path:
        """What it is: names with the same weights share it."""
        return self.model.weights

    def serves(self, model: LocalModel, options: Options) -> bool:
        """Whether a request for `model` with `options` can be answered without loading anew."""
        same = self.model.adapters == model.adapters and self.model.projectors == model.projectors
        return same and self.runner.serves(options)

    @property
    def expires_at(self) -> int:
        """Nanoseconds since 1970; for one in use, as if it were idle from now on."""
        return time_ns() + (self.keep_alive if self.n_using else self.deadline - monotonic_ns())


class LoadProgress:
    """How far a load is, as it tells; and whether anybody still waits for it."""

    def __init__(self, is_wanted: Callable[[], bool]):
        self.fraction, self.moved = 0.0, monotonic_ns()
        self._is_wanted, self._outcome = is_wanted, Future[Runner]()

    def tell(self, fraction: float) -> None:
        """`fraction` of the model is loaded, 0 .. 1.  Raises Cancelled if nobody wants the rest."""
        if self._outcome.cancelled() or not self._is_wanted():
            raise Cancelled()
        self.fraction, self.moved = max(self.fraction, fraction), monotonic_ns()

    def watch(self, load: Load, timeout: int) -> Runner:
        """What `load` returns.  Raises: LoadStalled when it tells nothing for `timeout` nanoseconds, what it raises."""
        Thread(target=self._run, args=(load,), name="load", daemon=True).start()
        while True:
            left = self.moved + timeout - monotonic_ns()
            wait([self._outcome], min(left / SECOND, MAX_WAIT_S))
            if self._outcome.done():
                return self._outcome.result()
            if self.moved + timeout <= monotonic_ns() and self._outcome.cancel():
                raise LoadStalled(self.fraction)

    def _run(self, load: Load) -> None:
        try:
            runner = load(self)
        except BaseException as error:
            if self._outcome.set_running_or_notify_cancel():
                self._outcome.set_exception(error)
        else:
            if self._outcome.set_running_or_notify_cancel():
                self._outcome.set_result(runner)
            else:  # it came too late
                runner.close()


Load = Callable[[LoadProgress], Runner]


class Pool:
    """The loaded models, by the path of their weights.

    keep_alive     nanoseconds, for loads that do not say
    max_loaded     models at once; 0 is MAX_LOADED
    max_queue      loads that may wait while another one is going on
    load_timeout   nanoseconds that a load may stand still
    """

    def __init__(
        self,
        keep_alive: int = 300 * SECOND,
        max_loaded: int = 0,
        max_queue: int = 512,
        load_timeout: int = 300 * SECOND,
    ):
        self.keep_alive, self.max_loaded, self.max_queue = keep_alive, max_loaded or MAX_LOADED, max_queue
        self.load_timeout = load_timeout
        self._changed = Condition()
        self._loaded: dict[Path, Loaded] = {}
        self._queue: deque[tuple[Path, RequestHandle]] = deque()
        self._closed = False
        Thread(target=self._watch, name="keep-alive", daemon=True).start()

    def loaded(self) -> list[Loaded]:
        """Everything in memory, longest remaining lifetime first."""
        with self._changed:
            return sorted(self._loaded.values(), key=lambda entry: entry.expires_at, reverse=True)

    @property
    def n_waiting(self) -> int:
        """Loads going on or waiting."""
        return len(self._queue)

    def acquire(
        self,
        model: LocalModel,
        options: Options,
        load: Load,
        handle: RequestHandle,
        keep_alive: int | None = None,
    ) -> Loaded:
        """A lease on `model`, loaded by `load` with `options` (clamped) if need be; `release` gives it back.

        Blocks while other models load or have to finish first.
        Raises: QueueFull, LoadStalled, Cancelled, ShuttingDown, what `load` raises.
        """
        key = model.weights
        with self._changed:
            if entry := self._lease(model, options, keep_alive):
                return entry
            if len(self._queue) > self.max_queue:  # the first one does not wait
                raise QueueFull(BUSY)
            self._queue.append(waiter := (key, handle))
            handle.on_cancel = self._wake
        try:
            with self._changed:
                self._wait(lambda: self._queue[0] is waiter, handle)
                if entry := self._lease(model, options, keep_alive):
                    return entry
                self._make_room(key, handle)
            return self._add(Loaded(model, self._load(model, load, handle), self.keep_alive), keep_alive, handle)
        finally:
            with self._changed:
                handle.on_cancel = lambda: None
                self._queue.remove(waiter)
                self._changed.notify_all()

    def _load(self, model: LocalModel, load: Load, handle: RequestHandle) -> Runner:
        """What `load` returns; models are unloaded one after the other while there is too little memory for it."""
        while True:
            try:
                return LoadProgress(partial(self.is_wanted, model, handle)).watch(load, self.load_timeout)
            except OutOfMemory:
                with self._changed:
                    if not self._loaded:
                        raise
                    self._drop_when_idle(self._victim(), handle)

    def release(self, entry: Loaded) -> None:
        """One lease back.  The last one starts the countdown."""
        with self._changed:
            entry.n_using -= 1
            self._count_down(entry)

    def unload(self, model: LocalModel) -> None:
        """The model goes as soon as nobody uses it.  Fine if it is not there."""
        with self._changed:
            if entry := self._loaded.get(model.weights):
                entry.keep_alive = 0
                self._count_down(entry)

    def is_wanted(self, model: LocalModel, handle: RequestHandle) -> bool:
        """Whether anybody still waits for a load of `model` that `call` began."""
        with self._changed:
            waiting = [other for key, other in self._queue if key == model.weights]
            return not self._closed and any(not other.cancelled for other in [handle, *waiting])

    def close(self) -> None:
        """Everything unloaded; everybody who waits or is answered is told that this is the end."""
        with self._changed:
            self._closed = True
            for _, handle in list(self._queue):
                handle.cancel(ShuttingDown)
            for entry in list(self._loaded.values()):
                if entry.n_using:
                    entry.runner.stop(ShuttingDown())
                self._drop(entry)
            self._changed.notify_all()

    # --- below, the lock is held, except in `_add` and `_wake`, which take it ---

    def _lease(self, model: LocalModel, options: Options, keep_alive: int | None) -> Loaded | None:
        entry = self._loaded.get(model.weights)
        if not entry or entry.leaving or not entry.serves(model, options):
            return None
        entry.n_using += 1
        if keep_alive is not None:
            entry.keep_alive = keep_alive
        return entry

    def _make_room(self, key: Path, handle: RequestHandle) -> None:
        """Unload an instance of `key` loaded otherwise, and others until there is room for one more."""
        while entry := self._loaded.get(key) or (self._victim() if len(self._loaded) >= self.max_loaded else None):
            self._drop_when_idle(entry, handle)

    def _drop_when_idle(self, entry: Loaded, handle: RequestHandle) -> None:
        entry.leaving = True
        try:
            self._wait(lambda: not entry.n_using, handle)
        except BaseException:
            entry.leaving = False
            raise
        self._drop(entry)

    def _victim(self) -> Loaded:
        """An idle one with the shortest keep_alive, else the busy one with the shortest."""
        return min(self._loaded.values(), key=lambda e: (e.n_using > 0, e.keep_alive, e.key))

    def _wait(self, until: Callable[[], bool], handle: RequestHandle) -> None:
        self._changed.wait_for(lambda: until() or handle.cancelled or self._closed)
        handle.check()
        if self._closed:
            raise ShuttingDown()

    def _add(self, entry: Loaded, keep_alive: int | None, handle: RequestHandle) -> Loaded:
        with self._changed:
            if self._closed or not self.is_wanted(entry.model, handle):
                entry.runner.close()
                handle.check()
                raise ShuttingDown()
            self._loaded[entry.key] = entry
            if handle.cancelled:  # others want it
                self._count_down(entry)
                handle.check()
            entry.n_using += 1
            if keep_alive is not None:
                entry.keep_alive = keep_alive
            log.info(
                "loaded", extra={"fields": {"model": entry.model.name.short, "num_ctx": entry.runner.options.num_ctx}}
            )
            return entry

    def _count_down(self, entry: Loaded) -> None:
        if not entry.n_using:
            entry.deadline = min(monotonic_ns() + entry.keep_alive, FOREVER)
            self._changed.notify_all()
            if not entry.keep_alive and not entry.leaving:
                self._drop(entry)

    def _drop(self, entry: Loaded) -> None:
        if self._loaded.get(entry.key) is entry:
            del self._loaded[entry.key]
            entry.runner.close()
            log.info(
                "unloaded",
                extra={"fields": {"model": entry.model.name.short, "keep_alive": format_duration(entry.keep_alive)}},
            )
            self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _watch(self) -> None:
        """The keep-alive thread: unloads what is idle and past its deadline, sleeps until the next deadline."""
        with self._changed:
            while not self._closed:
                now = monotonic_ns()
                idle = [e for e in self._loaded.values() if not e.n_using and not e.leaving]
                for entry in idle:
                    if entry.deadline <= now:
                        self._drop(entry)
                left = min((e.deadline - now for e in idle if e.deadline > now), default=FOREVER)
                self._changed.wait(min(left / SECOND, MAX_WAIT_S))
