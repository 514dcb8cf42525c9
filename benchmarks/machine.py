"""The machine that runs a benchmark: its name, its limits, and the load from other processes."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from numba import literally

from ..kernels import simd, threads
from ..kernels.jit import inner, kernel
from ..kernels.packed import arena
from ..kernels.simd import dot4, f32x16, fma, i8x64, i32x16, load, registers, splat, store, u8x64
from ..kernels.threads import parallel_for, run


def describe() -> dict[str, object]:
    """Return the facts that a reader needs to compare figures."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"cpu": name, "cores": threads.N_CORE, "simd": simd.LEVEL, "python": platform.python_version()}


@dataclass
class Share:
    """Cores that other processes used during a block; None if unknown, or if the block was too short."""

    others: float | None = None


@contextmanager
def watch() -> Iterator[Share]:
    """Measure the cores that other processes use during the block."""
    share, all_before, own_before, began = Share(), busy_seconds(), own_cpu_seconds(), perf_counter()
    yield share
    all_after = busy_seconds()
    passed = perf_counter() - began
    if all_before is not None and all_after is not None and passed > 0.25:  # the system counts in 1/100 s
        others = all_after - all_before - (own_cpu_seconds() - own_before)
        share.others = round(max(0.0, others / passed), 2)


def busy_seconds() -> float | None:
    """Return the busy seconds of all cores together, or None."""
    try:
        fields = [int(x) for x in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    except OSError:
        return None
    return (sum(fields[:3]) + sum(fields[5:8])) / os.sysconf("SC_CLK_TCK")  # everything except idle and iowait


def own_cpu_seconds() -> float:
    """Return the CPU seconds of this process and its children."""
    return sum(os.times()[:4])


# --- limits


def read_bandwidth(n_bytes: int = 1 << 29) -> float:
    """Measure the memory bandwidth of reading with all threads, in GB/s."""
    a = arena.zeros(n_bytes)
    a[:] = 1
    out = np.zeros(threads.PARTS_PER_THREAD * threads.N_CORE * 16, np.float32)
    return n_bytes / best(lambda: run(_read, n_bytes, a, out)) / 1e9


@inner
def _read_part(a, out, first, last):
    sums = registers(i32x16, 4)
    for j in range(4):
        sums[j] = splat(i32x16, 0)
    for i in range(first * 4096, last * 4096, 256):
        for j in range(4):
            sums[j] = sums[j] + load(i32x16, a, i + 64 * j)
    store(out, 16 * (first % 2), simd.convert(f32x16, sums[0] + sums[1] + sums[2] + sums[3]))


@kernel
def _read(team, a, out):
    parallel_for(team, _read_part, (a, out), a.size // 4096)


def dot_peak() -> float:
    """Measure the peak rate of `dot4` on registers, in GOP/s; a multiply-add counts as two operations."""
    n, n_part = 200_000, 2 * threads.N_CORE
    out = np.zeros(n_part * 12 * 16, np.int32)
    return n_part * n * 12 * 128 / best(lambda: run(_dots, 1e9, n, n_part, out)) / 1e9


@inner
def _dots_part(n, out, T, first, last):
    literally(T)
    s = registers(i32x16, T)
    for part in range(first, last):
        for t in range(T):
            s[t] = load(i32x16, out, (part * T + t) * 16)
        u, x = simd.bits(u8x64, splat(i32x16, part)), simd.bits(i8x64, splat(i32x16, 1))
        for _ in range(n):
            for t in range(T):
                s[t] = dot4(s[t], u, x)
        for t in range(T):
            store(out, (part * T + t) * 16, s[t])


@kernel
def _dots(team, n, n_part, out):
    parallel_for(team, _dots_part, (n, out, 12), n_part)


def fma_peak() -> float:
    """Measure the peak rate of float32 `fma` on registers, in GFLOP/s; a multiply-add counts as two operations."""
    n, n_part = 200_000, 2 * threads.N_CORE
    out = np.zeros(n_part * 12 * 16, np.float32)
    return n_part * n * 12 * 32 / best(lambda: run(_fmas, 1e9, n, n_part, out)) / 1e9


@inner
def _fmas_part(n, out, T, first, last):
    literally(T)
    s = registers(f32x16, T)
    for part in range(first, last):
        for t in range(T):
            s[t] = load(f32x16, out, (part * T + t) * 16)
        x = splat(f32x16, 0.5)
        for _ in range(n):
            for t in range(T):
                s[t] = fma(s[t], x, x)
        for t in range(T):
            store(out, (part * T + t) * 16, s[t])


@kernel
def _fmas(team, n, n_part, out):
    parallel_for(team, _fmas_part, (n, out, 12), n_part)


def best(call, n: int = 5) -> float:
    """Return the seconds of the fastest of `n` calls, after a warm-up call."""
    call()
    times = []
    for _ in range(n):
        began = perf_counter()
        call()
        times.append(perf_counter() - began)
    return min(times)
