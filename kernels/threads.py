"""One team of threads for all kernels: a job is split into parts, and each idle thread takes the next part.

    run(kernel, work, *args)                  from Python: kernel(team, *args), with helpers if `work` is large enough
    parallel_for(team, part, args, n)         in that kernel: part(*args, first, last) for parts that cover 0 .. n
    limit(n)                                  threads for calls from this Python thread; None: one per core

Helpers are Python threads that stay in compiled code, without the GIL, and poll for work.  After a fraction of a
millisecond without work they sleep on a lock.  The caller takes parts too and waits only for parts that have begun, so
a helper that sleeps, or has no core to run on, delays nothing.  One caller at a time has the team; a second caller runs
its kernel alone.  A forked child creates its own team.  Results do not depend on which thread computes a part.

Numba's own threading layers are not used: with `workqueue` a second caller kills the process; `omp` needs a system
library, and its forked children crash.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import llvmlite.ir as ir
import numpy as np
from numba import types
from numba.core import cgutils, config
from numba.core.typing.templates import signature
from numba.extending import intrinsic

from .jit import inner, kernel

MIN_PARALLEL_WORK = 100_000  # multiply-adds or bytes: about ten microseconds, the cost of waking a helper
MAX_IDLE_POLLS = 5_000  # polls before a helper sleeps, about 50 ns each
PARTS_PER_THREAD = 8  # enough parts to balance the load, large enough parts to read memory in long runs

# The team in compiled code: i64 [32].  Fields that several threads write have cache lines of their own.
LEFT = 0  # parts not yet taken
DONE = 8  # parts finished
SIZE = 16  # threads that may take parts, including the caller
CODE, ARGS, N, N_PART = 17, 18, 19, 20  # the job: N_PART parts of 0 .. N, run by the function at CODE

# --- atomic operations and processor instructions


@intrinsic
def atomic_load(typing, array, i):
    def generate(context, builder, sig, args):
        data = context.make_array(array)(context, builder, args[0]).data
        return builder.load_atomic(builder.gep(data, [args[1]]), "acquire", 8, typ=ir.IntType(64))

    return types.int64(array, types.intp), generate


@intrinsic
def atomic_store(typing, array, i, value):
    def generate(context, builder, sig, args):
        data = context.make_array(array)(context, builder, args[0]).data
        builder.store_atomic(args[2], builder.gep(data, [args[1]]), "release", 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), generate


@intrinsic
def atomic_add(typing, array, i, value):
    """Add `value` to the element and return its previous value."""

    def generate(context, builder, sig, args):
        data = context.make_array(array)(context, builder, args[0]).data
        return builder.atomic_rmw("add", builder.gep(data, [args[1]]), args[2], "acq_rel")

    return types.int64(array, types.intp, types.int64), generate


@intrinsic
def pause(typing):
    """Wait some tens of nanoseconds, in which the core's other hardware thread can work."""

    def generate(context, builder, sig, args):
        machine = platform.machine().lower()
        name, *number = {
            "x86_64": ("llvm.x86.sse2.pause",),
            "amd64": ("llvm.x86.sse2.pause",),
            "aarch64": ("llvm.aarch64.isb", 15),
            "arm64": ("llvm.aarch64.isb", 15),
        }.get(machine, ("llvm.donothing",))
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(32)] * len(number))
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        builder.call(function, [ir.Constant(ir.IntType(32), n) for n in number])
        return context.get_dummy_value()

    return types.void(), generate


if sys.platform == "win32":
    yield_core = inner(lambda: pause())
else:
    yield_core = types.ExternalFunction("sched_yield", types.int32())

PART = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), ir.IntType(64), ir.IntType(64)])


@intrinsic
def call_part(typing, code, args, first, last):
    """Call the PART at address `code` with `args`, the address of its struct."""

    def generate(context, builder, sig, values):
        function = builder.inttoptr(values[0], PART.as_pointer())
        builder.call(function, [builder.inttoptr(values[1], ir.IntType(8).as_pointer()), *values[2:]])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


# --- compiled side


@inner
def take_parts(team):
    """Run parts of the team's job until none is left.  -> the number of parts run

    A taken part keeps the job alive until it is done, so the job's fields are read after taking.
    """
    n = 0
    while atomic_load(team, LEFT) > 0:
        part = atomic_add(team, LEFT, -1) - 1
        if part < 0:
            break
        first, last = team[N] * part // team[N_PART], team[N] * (part + 1) // team[N_PART]
        call_part(team[CODE], team[ARGS], first, last)
        atomic_add(team, DONE, 1)
        n += 1
    return n


@kernel
def run_helper(team, helper_id):
    """Take parts of jobs until MAX_IDLE_POLLS polls find no work.  `helper_id` counts from 1."""
    idle = 0
    while idle < MAX_IDLE_POLLS:
        if helper_id < team[SIZE] and take_parts(team) > 0:
            idle = 0
        pause()
        idle += 1
        if idle > MAX_IDLE_POLLS // 4:
            yield_core()


@inner
def start_job(team, code, args, n):
    """Publish a job to the team, take parts of it, and return when all of 0 .. n is done."""
    if team[SIZE] == 1:
        call_part(code, args, 0, n)
        return
    n_part = min(n, PARTS_PER_THREAD * team[SIZE])
    team[CODE], team[ARGS], team[N], team[N_PART] = code, args, n, n_part
    atomic_store(team, DONE, 0)
    atomic_store(team, LEFT, n_part)
    take_parts(team)
    polls = 0
    while atomic_load(team, DONE) < n_part:
        pause()
        polls += 1
        if polls > 1000:
            yield_core()


@intrinsic
def parallel_for(typing, team, part, args, n):
    """Call part(*args, first, last) for ranges that together cover 0 .. n, each index once.  `part` must not raise."""
    sig = part.get_call_type(typing, (*args.types, types.intp, types.intp), {})
    start = typing.resolve_value_type(start_job).get_call_type(typing, (team, *[types.int64] * 3), {})

    def generate(context, builder, _, values):
        code = builder.ptrtoint(part_function(context, builder, part, sig, values[2].type), ir.IntType(64))
        place = cgutils.alloca_once_value(builder, values[2])  # on the stack of this call, which outlives the job
        job = values[0], code, builder.ptrtoint(place, ir.IntType(64)), values[3]
        call_compiled(context, builder, start_job, start, job)
        return context.get_dummy_value()

    return signature(types.void, team, part, args, types.int64), generate


def part_function(context, builder, part, sig, packed):
    """Build a C function (args *, first, last) that unpacks the struct `packed` and calls the kernel `part`."""
    function = ir.Function(builder.module, PART, builder.module.get_unique_name("part"))
    function.linkage = "internal"
    inside = ir.IRBuilder(function.append_basic_block())
    pointer, first, last = function.args
    args = inside.load(inside.bitcast(pointer, packed.as_pointer()), typ=packed)
    unpacked = [inside.extract_value(args, i) for i in range(len(packed.elements))]
    call_compiled(context, inside, part.dispatcher, sig, [*unpacked, first, last])
    inside.ret_void()
    return function


def call_compiled(context, builder, kernel, sig, args):
    """Build a call of the compiled kernel for signature `sig`."""
    compiled = kernel.overloads[sig.args]
    context.active_code_library.add_linking_library(compiled.library)
    function = context.declare_function(builder.module, compiled.fndesc)
    context.call_conv.call_function(builder, function, sig.return_type, sig.args, args)


# --- Python side


class Team:
    """The helpers, and the i64 [32] through which they receive jobs."""

    def __init__(self):
        self.busy = threading.Lock()
        self.shared = new_team(1)
        self.wake: list[threading.Lock] = []  # of helper i + 1: always held, released once to wake it
        self.asleep: list[bool] = []

    def gather(self, n: int) -> np.ndarray:
        """Return a team of `n` threads with its helpers awake.  The caller holds `busy`."""
        self.shared[SIZE] = n
        while len(self.wake) < n - 1:
            self.wake.append(threading.Lock())
            self.wake[-1].acquire()
            self.asleep.append(False)
            threading.Thread(target=self.helper, args=(len(self.wake),), name="numllama kernels", daemon=True).start()
        for i in range(n - 1):
            if self.asleep[i]:
                self.asleep[i] = False
                self.wake[i].release()
        return self.shared

    def helper(self, helper_id: int) -> None:
        """Run as helper `helper_id`: take parts, then sleep until woken."""
        while True:
            run_helper(self.shared, helper_id)
            self.asleep[helper_id - 1] = True
            self.wake[helper_id - 1].acquire()


def new_team(n: int) -> np.ndarray:
    """Return a team of `n` threads as compiled code sees it."""
    team = np.zeros(32, np.int64)
    team[SIZE] = n
    return team


def count_cores() -> int:
    """Count the cores that this process may use.

    Hardware threads of one core count once.  A container's CPU quota is an upper limit.
    """
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    try:
        siblings = {Path(f"/sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list").read_text() for i in usable}
        n = len(siblings)
    except OSError:
        n = len(usable)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        n = min(n, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # the file is missing, or says "max"
        pass
    return max(1, n)


ONE_THREAD = new_team(1)
N_CORE = count_cores()
_team = Team()
_limit = threading.local()


def _replace_team() -> None:
    global _team
    _team = Team()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_replace_team)


def limit(n: int | None) -> None:
    """Set how many threads kernels called from this Python thread may use; None or 0: one per core."""
    _limit.n = n or N_CORE


def run(function: Callable, work: float, *args):
    """Call function(team, *args).  `work` is in multiply-adds or bytes; below MIN_PARALLEL_WORK no helper is used."""
    n, team = getattr(_limit, "n", N_CORE), _team
    if n == 1 or work < MIN_PARALLEL_WORK or config.DISABLE_JIT or not team.busy.acquire(blocking=False):
        return function(ONE_THREAD, *args)
    try:
        return function(team.gather(n), *args)
    finally:
        team.busy.release()


if config.DISABLE_JIT:

    def parallel_for(team, part, args, n):
        part(*args, 0, n)
