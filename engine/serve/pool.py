"""The pool of loaded models: loaded on demand, unloaded after keep_alive, limited in number.

    acquire   loaded with suitable options?  ->  a lease at once
              else into the queue of loads; at its head: make room, load, a lease
    release   the last release starts the countdown of keep_alive; at its end the model is unloaded

One lock guards the pool.  Models are loaded one at a time, outside the lock, each in its own thread: a load that stalls
is abandoned.
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

BUSY_MESSAGE = "server busy, please try again.  maximum pending requests exceeded"
MAX_WAIT_S = 86_400.0  # longest single wait; FOREVER exceeds threading.TIMEOUT_MAX
SAVING_S = 30  # for saving caches when the server ends
MAX_LOADED = 3  # Ollama's choice for a machine without a graphics card


@dataclass(eq=False)
class Loaded:
    """A model in memory.

    model        as found in the store, under the name that loaded it
    keep_alive   nanoseconds that it stays loaded while idle
    n_using      leases
    deadline     end of keep_alive in nanoseconds on the monotonic clock, while idle
    draining     accepts no new requests and is unloaded after the last lease
    """

    model: LocalModel
    runner: Runner
    keep_alive: int
    n_using: int = 0
    deadline: int = 0
    draining: bool = False

    @property
    def key(self) -> Path:
        """The path of the weights; names with the same weights share a model."""
        return self.model.weights

    def serves(self, model: LocalModel, options: Options) -> bool:
        """Return whether it can answer a request for `model` with `options` without a reload."""
        parts = [(one.adapters, one.projectors, one.drafts) for one in (self.model, model)]
        return parts[0] == parts[1] and self.runner.serves(options)

    @property
    def expires_at(self) -> int:
        """Nanoseconds since 1970; while in use, as if it became idle now."""
        return time_ns() + (self.keep_alive if self.n_using else self.deadline - monotonic_ns())


class LoadProgress:
    """The progress of a load.

    fraction    loaded part of the model, 0 .. 1
    reported    time of the last report, nanoseconds on the monotonic clock
    """

    def __init__(self, is_wanted: Callable[[], bool]):
        self.fraction, self.reported = 0.0, monotonic_ns()
        self._is_wanted, self._outcome = is_wanted, Future[Runner]()

    def report(self, fraction: float) -> None:
        """Report that `fraction` of the model is loaded.  Raises: Cancelled if no request waits for it any more"""
        if self._outcome.cancelled() or not self._is_wanted():
            raise Cancelled()
        self.fraction, self.reported = max(self.fraction, fraction), monotonic_ns()

    def watch(self, load: Load, timeout: int) -> Runner:
        """Run `load` in a thread and return its result.

        Raises: LoadStalled if it reports nothing for `timeout` nanoseconds, otherwise as `load`
        """
        Thread(target=self._run, args=(load,), name="load", daemon=True).start()
        while True:
            left = self.reported + timeout - monotonic_ns()
            wait([self._outcome], min(left / SECOND, MAX_WAIT_S))
            if self._outcome.done():
                return self._outcome.result()
            if self.reported + timeout <= monotonic_ns() and self._outcome.cancel():
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
            else:  # abandoned
                runner.close()


Load = Callable[[LoadProgress], Runner]


class Pool:
    """The loaded models, by the path of their weights.

    keep_alive     nanoseconds, for requests without their own
    max_loaded     models loaded at once; 0: MAX_LOADED
    max_queue      loads that may wait while another one runs
    load_timeout   nanoseconds that a load may take without progress
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
        """Return the loaded models, longest remaining lifetime first."""
        with self._changed:
            return sorted(self._loaded.values(), key=lambda entry: entry.expires_at, reverse=True)

    @property
    def n_waiting(self) -> int:
        """Loads running or waiting."""
        return len(self._queue)

    def acquire(
        self,
        model: LocalModel,
        options: Options,
        load: Load,
        handle: RequestHandle,
        keep_alive: int | None = None,
    ) -> Loaded:
        """Lease `model`, first loading it by `load` if it is not loaded with suitable `options`.

        Blocks while other loads run and while models that must be unloaded are in use.  `release` ends the lease.
        Raises: QueueFull, LoadStalled, Cancelled, ShuttingDown, and as `load`
        """
        key = model.weights
        with self._changed:
            if entry := self._lease(model, options, keep_alive):
                return entry
            if len(self._queue) > self.max_queue:  # the first one does not wait
                raise QueueFull(BUSY_MESSAGE)
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
        """Run `load`, unloading other models one after the other while it raises OutOfMemory."""
        while True:
            try:
                return LoadProgress(partial(self.is_wanted, model, handle)).watch(load, self.load_timeout)
            except OutOfMemory:
                with self._changed:
                    if not self._loaded:
                        raise
                    self._drop_when_idle(self._victim(), handle)

    def release(self, entry: Loaded) -> None:
        """End a lease.  The last one starts the countdown."""
        with self._changed:
            entry.n_using -= 1
            self._count_down(entry)

    def unload(self, model: LocalModel) -> None:
        """Unload the model as soon as it is idle, if it is loaded."""
        with self._changed:
            if entry := self._loaded.get(model.weights):
                entry.keep_alive = 0
                self._count_down(entry)

    def is_wanted(self, model: LocalModel, handle: RequestHandle) -> bool:
        """Return whether a request still waits for the load of `model` that `handle` started."""
        with self._changed:
            waiting = [other for key, other in self._queue if key == model.weights]
            return not self._closed and any(not other.cancelled for other in [handle, *waiting])

    def close(self) -> None:
        """Unload every model; requests that wait or run end with ShuttingDown.  Waits until caches are saved."""
        with self._changed:
            self._closed, runners = True, [entry.runner for entry in self._loaded.values()]
            for _, handle in list(self._queue):
                handle.cancel(ShuttingDown)
            for entry in list(self._loaded.values()):
                if entry.n_using:
                    entry.runner.stop(ShuttingDown())
                self._drop(entry)
            self._changed.notify_all()
        for runner in runners:
            if not runner.saved(SAVING_S):
                log.warning("caches could not be saved within %d s", SAVING_S)

    # --- the lock is held below, except in `_add`, `_wake` and `_watch`, which acquire it ---

    def _lease(self, model: LocalModel, options: Options, keep_alive: int | None) -> Loaded | None:
        entry = self._loaded.get(model.weights)
        if not entry or entry.draining or not entry.serves(model, options):
            return None
        entry.n_using += 1
        if keep_alive is not None:
            entry.keep_alive = keep_alive
        return entry

    def _make_room(self, key: Path, handle: RequestHandle) -> None:
        """Unload `key` if it is loaded with other options, then others until there is room for one more."""
        while entry := self._loaded.get(key) or (self._victim() if len(self._loaded) >= self.max_loaded else None):
            self._drop_when_idle(entry, handle)

    def _drop_when_idle(self, entry: Loaded, handle: RequestHandle) -> None:
        entry.draining = True
        try:
            self._wait(lambda: not entry.n_using, handle)
        except BaseException:
            entry.draining = False
            raise
        self._drop(entry)

    def _victim(self) -> Loaded:
        """Choose the model to unload: the one with the shortest keep_alive, idle ones first."""
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
            if handle.cancelled:  # other requests wait for it
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
            if not entry.keep_alive and not entry.draining:
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
        """Unload idle models past their deadline, then sleep until the next deadline: the keep-alive thread."""
        with self._changed:
            while not self._closed:
                now = monotonic_ns()
                idle = [e for e in self._loaded.values() if not e.n_using and not e.draining]
                for entry in idle:
                    if entry.deadline <= now:
                        self._drop(entry)
                left = min((e.deadline - now for e in idle if e.deadline > now), default=FOREVER)
                self._changed.wait(min(left / SECOND, MAX_WAIT_S))
