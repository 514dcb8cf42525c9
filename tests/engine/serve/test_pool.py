"""The pool with fake models: when models are loaded and unloaded, and which requests wait."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from numllama.engine.errors import Cancelled, LoadStalled, ModelError, OutOfMemory, QueueFull, ShuttingDown
from numllama.engine.go.duration import FOREVER, SECOND
from numllama.engine.handle import RequestHandle
from numllama.engine.options import Options
from numllama.engine.serve.pool import Pool

MS = SECOND // 1000


class FakeRunner:
    """A runner with options only; `closed` after it was unloaded."""

    def __init__(self, options):
        self.options, self.closed = options, False

    def serves(self, options):
        return not self.options.needs_reload(options)

    def close(self):
        self.closed = True

    def stop(self, error):
        self.error = error

    def saved(self, timeout):
        return True


def model(name, adapters=(), projectors=(), drafts=()):
    short = SimpleNamespace(short=f"{name}:latest")
    facts = {"adapters": [*adapters], "projectors": [*projectors], "drafts": [*drafts]}
    return SimpleNamespace(weights=Path(name), name=short, **facts)


class Bench:
    """A pool with a record of its loads; `gate` blocks loads until it is set."""

    def __init__(self, **kwargs):
        self.pool, self.loads, self.gate = Pool(**kwargs), [], threading.Event()
        self.gate.set()

    def acquire(self, name="a", handle=None, keep_alive=None, attached=None, **options):
        requested = Options(**options)

        def load(progress):
            self.loads.append(name)
            self.gate.wait(5)
            return FakeRunner(requested)

        return self.pool.acquire(
            model(name, **(attached or {})), requested, load, handle or RequestHandle(), keep_alive
        )

    def in_thread(self, *args, **kwargs):
        """Call `acquire` in a new thread.  -> its thread, and later its value or error"""
        outcome = SimpleNamespace(value=None, error=None)

        def run():
            try:
                outcome.value = self.acquire(*args, **kwargs)
            except Exception as error:
                outcome.error = error

        outcome.thread = threading.Thread(target=run)
        outcome.thread.start()
        return outcome

    def names(self):
        return [str(entry.key) for entry in self.pool.loaded()]


@pytest.fixture
def bench():
    benches = []

    def make(**kwargs):
        benches.append(Bench(**kwargs))
        return benches[-1]

    yield make
    for each in benches:
        each.gate.set()
        each.pool.close()


def until(condition):
    """Wait up to 5 s until `condition()` is true."""
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.002)


def test_a_loaded_model_is_reused(bench):
    b = bench()
    assert b.acquire(temperature=0.1) is b.acquire(temperature=0.9)
    assert b.loads == ["a"]


def test_other_load_options_reload_the_model_after_it_is_idle(bench):
    b = bench()
    first = b.acquire(num_ctx=64)
    second = b.in_thread(num_ctx=128)
    until(lambda: b.pool._queue)
    assert second.value is None and not first.runner.closed  # the first is still in use
    b.pool.release(first)
    second.thread.join(5)
    assert second.value.runner.options.num_ctx == 128 and first.runner.closed
    assert b.names() == ["a"]


@pytest.mark.parametrize("kind", ["adapters", "projectors", "drafts"])
def test_the_same_weights_with_other_parts_are_reloaded(bench, kind):
    b = bench()
    b.pool.release(b.acquire(attached={kind: [Path("x")]}))
    b.pool.release(b.acquire(attached={kind: [Path("x")]}))
    assert b.loads == ["a"]
    b.pool.release(b.acquire(attached={kind: [Path("y")]}))
    b.pool.release(b.acquire())
    assert b.loads == ["a"] * 3 and b.names() == ["a"]


def test_a_model_is_unloaded_after_its_keep_alive(bench):
    b = bench(keep_alive=30 * MS)
    lease = b.acquire()
    time.sleep(0.06)
    assert b.names() == ["a"]  # the countdown has not started
    b.pool.release(lease)
    assert b.names() == ["a"]
    until(lambda: not b.names())
    assert lease.runner.closed


def test_each_use_restarts_the_countdown(bench):
    b = bench(keep_alive=300 * MS)
    for _ in range(4):
        b.pool.release(b.acquire())
        time.sleep(0.1)
    assert b.loads == ["a"]


def test_a_requests_keep_alive_replaces_the_models(bench):
    b = bench(keep_alive=0)
    b.pool.release(b.acquire(keep_alive=FOREVER))
    b.pool.release(b.acquire())
    [entry] = b.pool.loaded()
    assert entry.keep_alive == FOREVER
    assert entry.expires_at > time.time_ns() + 100 * 365 * 86400 * SECOND


def test_keep_alive_zero_unloads_when_idle(bench):
    b = bench()
    lease = b.acquire(keep_alive=0)
    assert b.names() == ["a"]
    b.pool.release(lease)
    assert b.names() == []


def test_unloading_waits_for_running_requests(bench):
    b = bench()
    lease = b.acquire()
    b.pool.unload(model("a"))
    assert b.names() == ["a"] and not lease.runner.closed
    b.pool.release(lease)
    assert b.names() == [] and lease.runner.closed


def test_unloading_a_model_that_is_not_loaded_does_nothing(bench):
    bench().pool.unload(model("a"))


def test_the_idle_model_with_the_shortest_keep_alive_is_unloaded_first(bench):
    b = bench(max_loaded=2)
    b.acquire("busy", keep_alive=1)
    b.pool.release(b.acquire("short", keep_alive=1000 * SECOND))
    b.acquire("new")
    assert sorted(b.names()) == ["busy", "new"]


def test_a_busy_model_is_unloaded_after_it_is_idle(bench):
    b = bench(max_loaded=1)
    first = b.acquire("a")
    second = b.in_thread("b")
    until(lambda: b.pool._queue)
    assert b.names() == ["a"]
    b.pool.release(first)
    second.thread.join(5)
    assert b.names() == ["b"]


def test_a_model_that_is_to_be_unloaded_takes_no_new_request(bench):
    """Otherwise a stream of requests for it would keep the other model waiting for ever."""
    b = bench(max_loaded=1)
    lease = b.acquire("a")
    other = b.in_thread("b")
    until(lambda: lease.draining)
    late = b.in_thread("a")
    time.sleep(0.02)
    assert late.value is None and lease.n_using == 1
    b.pool.release(lease)
    other.thread.join(5)
    b.pool.release(other.value)
    late.thread.join(5)
    assert b.loads == ["a", "b", "a"] and late.value is not lease


def test_models_are_loaded_one_at_a_time_in_the_order_of_requests(bench):
    b = bench()
    b.gate.clear()
    waiting = []
    for n, name in enumerate("abc"):
        waiting.append(b.in_thread(name))
        until(lambda n=n: len(b.pool._queue) == n + 1)
    until(lambda: b.loads)  # the load runs in its own thread
    assert b.loads == ["a"]
    b.gate.set()
    for outcome in waiting:
        outcome.thread.join(5)
    assert b.loads == ["a", "b", "c"]


def test_a_full_queue_refuses_loads_but_not_loaded_models(bench):
    b = bench(max_queue=1)
    b.acquire("warm")
    b.gate.clear()
    waiting = [b.in_thread("a")]
    until(lambda: b.loads == ["warm", "a"])
    waiting.append(b.in_thread("b"))
    until(lambda: len(b.pool._queue) == 2)
    with pytest.raises(QueueFull, match=r"^server busy, please try again\.  maximum pending requests exceeded$"):
        b.acquire("c")
    assert b.acquire("warm").n_using == 2
    b.gate.set()
    for outcome in waiting:
        outcome.thread.join(5)


def test_two_requests_for_the_same_model_share_one_load(bench):
    b = bench()
    b.gate.clear()
    waiting = [b.in_thread("a"), b.in_thread("a")]
    until(lambda: len(b.pool._queue) == 2)
    b.gate.set()
    for outcome in waiting:
        outcome.thread.join(5)
    assert b.loads == ["a"] and waiting[0].value is waiting[1].value


def test_a_cancelled_request_leaves_the_queue(bench):
    b = bench()
    b.gate.clear()
    handle = RequestHandle()
    waiting = [b.in_thread("a"), b.in_thread("b", handle)]
    until(lambda: len(b.pool._queue) == 2)
    handle.cancel()
    waiting[1].thread.join(5)  # while the other load still runs
    assert isinstance(waiting[1].error, Cancelled)
    b.gate.set()
    waiting[0].thread.join(5)
    assert b.loads == ["a"]


def test_a_load_whose_requests_are_all_cancelled_is_dropped(bench):
    b = bench()
    b.gate.clear()
    handle = RequestHandle()
    outcome = b.in_thread("a", handle)
    until(lambda: b.loads)
    handle.cancel()
    b.gate.set()
    outcome.thread.join(5)
    assert isinstance(outcome.error, Cancelled) and b.names() == []


def test_cancelling_a_wait_for_a_busy_model_keeps_it_in_service(bench):
    b = bench()
    lease, handle = b.acquire(num_ctx=64), RequestHandle()
    outcome = b.in_thread("a", handle, num_ctx=128)
    until(lambda: lease.draining)
    handle.cancel()
    outcome.thread.join(5)
    assert b.acquire(num_ctx=64) is lease


def test_after_a_failed_load_the_model_can_be_loaded_again(bench):
    b = bench()

    def load(progress):
        raise ModelError("broken")

    with pytest.raises(ModelError, match="broken"):
        b.pool.acquire(model("a"), Options(), load, RequestHandle())
    assert b.names() == [] and b.acquire("a")


def test_a_stalled_load_is_abandoned_and_the_next_one_starts(bench):
    b = bench(load_timeout=50 * MS)
    resume, late = threading.Event(), FakeRunner(Options())

    def load(progress):
        progress.report(0.27)
        resume.wait(5)
        return late

    with pytest.raises(LoadStalled) as stalled:
        b.pool.acquire(model("a"), Options(), load, RequestHandle())
    assert str(stalled.value) == "timed out waiting for llama runner to start - progress 0.27 - "  # Ollama's words
    assert b.acquire("b")
    resume.set()
    until(lambda: late.closed)
    assert b.names() == ["b"]


def test_a_load_that_reports_progress_has_no_time_limit(bench):
    b = bench(load_timeout=300 * MS)

    def load(progress):
        for n in range(4):
            time.sleep(0.1)
            progress.report(n / 4)
        return FakeRunner(Options())

    assert b.pool.acquire(model("a"), Options(), load, RequestHandle())


def test_an_abandoned_load_is_cancelled_at_its_next_report(bench):
    b, ended = bench(load_timeout=20 * MS), threading.Event()

    def load(progress):
        time.sleep(0.1)
        try:
            progress.report(0.5)
        except Cancelled:
            ended.set()
            raise

    with pytest.raises(LoadStalled):
        b.pool.acquire(model("a"), Options(), load, RequestHandle())
    assert ended.wait(5)


def test_out_of_memory_unloads_an_idle_model_and_retries(bench):
    b = bench()
    b.pool.release(b.acquire("old"))

    def load(progress):
        if b.names():
            raise OutOfMemory(2, 1, "too big beside another")
        return FakeRunner(Options())

    assert b.pool.acquire(model("big"), Options(), load, RequestHandle())
    assert b.names() == ["big"]


def test_out_of_memory_without_another_model_is_an_error(bench):
    def load(progress):
        raise OutOfMemory(2, 1, "too big")

    with pytest.raises(OutOfMemory, match="too big"):
        bench().pool.acquire(model("big"), Options(), load, RequestHandle())


def test_closing_ends_waiting_and_running_requests(bench):
    b = bench()
    busy = b.acquire("busy")
    b.gate.clear()
    waiting = [b.in_thread("a"), b.in_thread("b")]
    until(lambda: len(b.pool._queue) == 2)
    b.pool.close()
    b.gate.set()
    for outcome in waiting:
        outcome.thread.join(5)
        assert str(outcome.error) == "the server is shutting down"
    assert str(busy.runner.error) == "the server is shutting down" and b.names() == []
    with pytest.raises(ShuttingDown):
        b.acquire("busy")


def test_a_load_continues_while_a_request_waits_for_it(bench):
    b = bench()
    b.gate.clear()
    handle = RequestHandle()
    first = b.in_thread("a", handle)
    until(lambda: b.loads == ["a"])
    second = b.in_thread("a")
    until(lambda: len(b.pool._queue) == 2)
    handle.cancel()
    assert b.pool.is_wanted(model("a"), handle) and not b.pool.is_wanted(model("b"), handle)
    b.gate.set()
    for outcome in (first, second):
        outcome.thread.join(5)
    assert isinstance(first.error, Cancelled) and second.value.n_using == 1 and b.loads == ["a"]
