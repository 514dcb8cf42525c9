"""The machine that runs a benchmark: its name and its limits; and the version that is measured."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path
from time import perf_counter

import numpy as np
from numba import literally

from numllama import __version__

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
    about = {"cpu": name, "cores": threads.N_CORE, "simd": simd.LEVEL, "python": platform.python_version()}
    return about | {"kernel": f"{platform.system()} {platform.release()}"}


@cache
def own_version() -> dict[str, str]:
    """Return this package's version, and its commit in a checkout."""
    found = {"version": __version__}
    here = Path(__file__).parents[1]
    if (here / ".git").exists():
        git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        output = subprocess.run(git, capture_output=True, text=True).stdout.strip()
        found |= {"commit": output} if output else {}
    return found


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
