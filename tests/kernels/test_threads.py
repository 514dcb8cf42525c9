"""The team of threads: every index once, with several callers, after a fork, with one thread and with two."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core import config

from numllama.kernels import threads
from numllama.kernels.jit import kernel
from numllama.kernels.threads import parallel_for, run

MUCH = 1e9  # enough work to use helpers


@kernel
def count_part(visits, first, last):
    for i in range(first, last):
        visits[i] += 1


@kernel
def count(team, visits):
    parallel_for(team, count_part, (visits,), visits.size)


@pytest.fixture(autouse=True)
def two_threads():
    threads.limit(2)
    yield
    threads.limit(None)


@given(n=st.integers(0, 200), n_thread=st.integers(1, 3))
@settings(deadline=None)
def test_every_index_is_visited_once(n, n_thread):
    threads.limit(n_thread)
    visits = np.zeros(n, np.int64)
    run(count, MUCH, visits)
    np.testing.assert_array_equal(visits, 1)


def test_callers_from_several_python_threads_do_not_disturb_each_other():
    wrong = []

    def call_often():
        threads.limit(2)
        for _ in range(500):
            visits = np.zeros(64, np.int64)
            run(count, MUCH, visits)
            if not (visits == 1).all():
                wrong.append(visits)

    callers = [threading.Thread(target=call_often) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.skipif(config.DISABLE_JIT, reason="helpers need compiled kernels")
def test_helpers_take_parts():
    """Two parts that wait for each other finish only if two threads run them."""
    met = np.zeros(2, np.int64)
    for _ in range(100):  # a helper may be too late for some jobs
        met[:] = 0
        run(meet, MUCH, met)
        if met.all():
            return
    pytest.fail("the caller ran every part of a hundred jobs")


@kernel
def meet_part(met, first, last):
    for i in range(first, last):
        threads.atomic_store(met, i, 1)
        polls = 0
        while threads.atomic_load(met, 1 - i) == 0 and polls < 100_000:
            threads.pause()
            polls += 1
        if polls == 100_000:
            threads.atomic_store(met, i, 0)


@kernel
def meet(team, met):
    parallel_for(team, meet_part, (met,), 2)


def test_little_work_starts_no_helpers():
    before = len(threading.enumerate())
    threads.limit(before + 8)
    run(count, threads.MIN_PARALLEL_WORK - 1, np.zeros(64, np.int64))
    assert len(threading.enumerate()) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_its_own_helpers():
    run(count, MUCH, np.zeros(64, np.int64))
    child = os.fork()
    if child == 0:
        visits = np.zeros(64, np.int64)
        run(count, MUCH, visits)
        os._exit(0 if (visits == 1).all() else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_limit_of_zero_means_one_thread_per_core():
    threads.limit(0)
    assert threads._limit.n == threads.count_cores() >= 1


@pytest.mark.skipif(config.DISABLE_JIT or not sys.platform.startswith("linux"), reason="reads /proc/self/maps")
def test_helpers_need_no_threading_library():
    """A job that two threads share loads neither OpenMP nor TBB nor Numba's work queue."""
    program = """
import numpy as np
from numllama.kernels import NUMBA, threads
threads.limit(2)
NUMBA.silu_mul(np.ones((64, 4096), np.float32), np.ones((64, 4096), np.float32))
print(len(threads._team.wake))
print(*(name for name in ("libgomp", "libomp", "libtbb", "workqueue") if name in open("/proc/self/maps").read()))
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["1"]
