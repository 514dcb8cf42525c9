"""The pool with models that are nothing but their options: what is loaded when, and who waits for what."""

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
    """A runner that knows its options; `closed` once it was unloaded."""

    def __init__(self, options):
        self.options, self.closed = options, False

    def serves(self, options):
        return not self.options.needs_reload(options)

    def close(self):
        self.closed = True

    def stop(self, why):
        self.why = why


def model(name, adapters=(), projectors=()):
    short = SimpleNamespace(short=f"{name}:latest")
    return SimpleNamespace(weights=Path(name), name=short, adapters=[*adapters], projectors=[*projectors])


class Bench:
    """A pool, and how often it loaded; `gate` holds a load back until it is set."""

    def __init__(self, **kwargs):
        self.pool, self.loads, self.gate = Pool(**kwargs), [], threading.Event()
        self.gate.set()

    def acquire(self, name="a", handle=None, keep_alive=None, attached=None, **options):
        wanted = Options(**options)

        def load(progress):
            self.loads.append(name)
            self.gate.wait(5)
            return FakeRunner(wanted)

        return self.pool.acquire(model(name, **(attached or {})), wanted, load, handle or RequestHandle(), keep_alive)

    def in_thread(self, *args, **kwargs):
        """The result or error of `acquire`, in a thread of its own."""
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
    """Waits for what other threads bring about."""
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "this never came true"
        time.sleep(0.002)


def test_a_loaded_model_is_used_again(bench):
    b = bench()
    assert b.acquire(temperature=0.1) is b.acquire(temperature=0.9)
    assert b.loads == ["a"]


def test_other_load_options_load_it_anew_once_it_is_idle(bench):
    b = bench()
    first = b.acquire(num_ctx=64)
    second = b.in_thread(num_ctx=128)
    until(lambda: b.pool._queue)
    assert second.value is None and not first.runner.closed  # the first is still in use
    b.pool.release(first)
    second.thread.join(5)
    assert second.value.runner.options.num_ctx == 128 and first.runner.closed
    assert b.names() == ["a"]


@pytest.mark.parametrize("kind", ["adapters", "projectors"])
def test_the_same_weights_with_something_else_attached_are_loaded_anew(bench, kind):
    b = bench()
    b.pool.release(b.acquire(attached={kind: [Path("x")]}))
    b.pool.release(b.acquire(attached={kind: [Path("x")]}))
    assert b.loads == ["a"]
    b.pool.release(b.acquire(attached={kind: [Path("y")]}))
    b.pool.release(b.acquire())
    assert b.loads == ["a"] * 3 and b.names() == ["a"]


def test_a_model_goes_when_its_keep_alive_is_over(bench):
    b = bench(keep_alive=30 * MS)
    lease = b.acquire()
    time.sleep(0.06)
    assert b.names() == ["a"]  # the countdown has not begun
    b.pool.release(lease)
    assert b.names() == ["a"]
    until(lambda: not b.names())
    assert lease.runner.closed


def test_use_starts_the_countdown_again(bench):
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


def test_unloading_waits_for_whoever_is_served(bench):
    b = bench()
    lease = b.acquire()
    b.pool.unload(model("a"))
    assert b.names() == ["a"] and not lease.runner.closed
    b.pool.release(lease)
    assert b.names() == [] and lease.runner.closed


def test_unloading_what_is_not_loaded_is_fine(bench):
    bench().pool.unload(model("a"))


def test_the_idle_one_with_the_shortest_keep_alive_makes_room(bench):
    b = bench(max_loaded=2)
    b.acquire("busy", keep_alive=1)
    b.pool.release(b.acquire("short", keep_alive=1000 * SECOND))
    b.acquire("new")
    assert sorted(b.names()) == ["busy", "new"]


def test_a_busy_one_makes_room_once_it_is_idle(bench):
    b = bench(max_loaded=1)
    first = b.acquire("a")
    second = b.in_thread("b")
    until(lambda: b.pool._queue)
    assert b.names() == ["a"]
    b.pool.release(first)
    second.thread.join(5)
    assert b.names() == ["b"]


def test_one_model_loads_at_a_time_in_the_order_of_asking(bench):
    b = bench()
    b.gate.clear()
    waiting = []
    for n, name in enumerate("abc"):
        waiting.append(b.in_thread(name))
        until(lambda n=n: len(b.pool._queue) == n + 1)
    assert b.loads == ["a"]
    b.gate.set()
    for outcome in waiting:
        outcome.thread.join(5)
    assert b.loads == ["a", "b", "c"]


def test_a_full_queue_refuses_at_once_but_not_what_is_loaded(bench):
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


def test_two_who_want_the_same_model_share_one_load(bench):
    b = bench()
    b.gate.clear()
    waiting = [b.in_thread("a"), b.in_thread("a")]
    until(lambda: len(b.pool._queue) == 2)
    b.gate.set()
    for outcome in waiting:
        outcome.thread.join(5)
    assert b.loads == ["a"] and waiting[0].value is waiting[1].value


def test_whoever_leaves_the_queue_is_skipped(bench):
    b = bench()
    b.gate.clear()
    handle = RequestHandle()
    waiting = [b.in_thread("a"), b.in_thread("b", handle)]
    until(lambda: len(b.pool._queue) == 2)
    handle.cancel()
    waiting[1].thread.join(5)  # while the other still loads
    assert isinstance(waiting[1].error, Cancelled)
    b.gate.set()
    waiting[0].thread.join(5)
    assert b.loads == ["a"]


def test_a_load_that_nobody_wants_any_more_is_dropped(bench):
    b = bench()
    b.gate.clear()
    handle = RequestHandle()
    outcome = b.in_thread("a", handle)
    until(lambda: b.loads)
    handle.cancel()
    b.gate.set()
    outcome.thread.join(5)
    assert isinstance(outcome.error, Cancelled) and b.names() == []


def test_giving_up_on_a_busy_model_leaves_it_in_service(bench):
    b = bench()
    lease, handle = b.acquire(num_ctx=64), RequestHandle()
    outcome = b.in_thread("a", handle, num_ctx=128)
    until(lambda: lease.leaving)
    handle.cancel()
    outcome.thread.join(5)
    assert b.acquire(num_ctx=64) is lease


def test_a_failed_load_leaves_nothing_behind(bench):
    b = bench()

    def load(progress):
        raise ModelError("broken")

    with pytest.raises(ModelError, match="broken"):
        b.pool.acquire(model("a"), Options(), load, RequestHandle())
    assert b.names() == [] and b.acquire("a")


def test_a_load_that_stalls_is_left_behind_and_the_next_one_goes_on(bench):
    b = bench(load_timeout=50 * MS)
    go_on, late = threading.Event(), FakeRunner(Options())

    def load(progress):
        progress.tell(0.27)
        go_on.wait(5)
        return late

    with pytest.raises(LoadStalled) as stalled:
        b.pool.acquire(model("a"), Options(), load, RequestHandle())
    assert str(stalled.value) == "timed out waiting for llama runner to start - progress 0.27 - "  # Ollama's words
    assert b.acquire("b")
    go_on.set()
    until(lambda: late.closed)
    assert b.names() == ["b"]


def test_a_load_that_gets_on_may_take_as_long_as_it_likes(bench):
    b = bench(load_timeout=300 * MS)

    def load(progress):
        for n in range(4):
            time.sleep(0.1)
            progress.tell(n / 4)
        return FakeRunner(Options())

    assert b.pool.acquire(model("a"), Options(), load, RequestHandle())


def test_a_stalled_load_ends_when_it_tells_again(bench):
    b, ended = bench(load_timeout=20 * MS), threading.Event()

    def load(progress):
        time.sleep(0.1)
        try:
            progress.tell(0.5)
        except Cancelled:
            ended.set()
            raise

    with pytest.raises(LoadStalled):
        b.pool.acquire(model("a"), Options(), load, RequestHandle())
    assert ended.wait(5)


def test_too_little_memory_unloads_what_is_idle_and_tries_again(bench):
    b = bench()
    b.pool.release(b.acquire("old"))

    def load(progress):
        if b.names():
            raise OutOfMemory(2, 1, "too big beside another")
        return FakeRunner(Options())

    assert b.pool.acquire(model("big"), Options(), load, RequestHandle())
    assert b.names() == ["big"]


def test_too_little_memory_for_anything_is_an_error(bench):
    def load(progress):
        raise OutOfMemory(2, 1, "too big")

    with pytest.raises(OutOfMemory, match="too big"):
        bench().pool.acquire(model("big"), Options(), load, RequestHandle())


def test_closing_tells_whoever_waits_or_is_answered(bench):
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
    assert str(busy.runner.why) == "the server is shutting down" and b.names() == []
    with pytest.raises(ShuttingDown):
        b.acquire("busy")


def test_a_load_goes_on_while_anybody_wants_it(bench):
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
