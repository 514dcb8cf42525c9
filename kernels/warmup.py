"""Compilation of all kernels of the NUMBA set ahead of a first answer, by calling each once.

Machine code is cached on disk (jit.py), so one run after an installation is enough.  In one process Numba compiles one
kernel at a time, so two processes halve the time:

    begin()             starts a second process, which compiles what every model needs
    prepare(names)      compiles a model's kernels: both processes take one after the other, from two ends of a list
    is_compiling()      whether the second one still compiles those of AFTER: decoding goes in steps until then

    python -P -m numllama.kernels.warmup    the second process: names on its input, a line for each on its output

-P: Python would otherwise import modules, and so run code, from the current folder.
"""

from __future__ import annotations

import gc
import hashlib
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Condition, Thread

import llvmlite.binding as llvm
import numpy as np
from numba.core import config

from . import NUMBA, Attention
from .decode_experts import MIX
from .decode_layer import compile_layers
from .folder import cache_folder, can_save, find_cache, warn_once
from .kv import write
from .packed import PRODUCTS
from .quants import FORMATS
from .rope import Rope
from .select import descending
from .tensor import Tensor
from .threads import N_CORE

N_IN = 256  # one block of the largest kind
N_OUT = 512  # with one token, enough work to use the team of threads


def warmups() -> list[tuple[str, Callable[[], object]]]:
    """Return each kernel's name and a call that compiles it: the product of each format, then the other operations."""
    x = np.ones((2, 16, 16), np.float32)
    rows, positions = x.reshape(2, N_IN), np.arange(2, dtype=np.int32)
    jobs: list[tuple[str, Callable[[], object]]] = [
        (f"{FORMATS[type].name} product", partial(_multiply, type, rows)) for type in PRODUCTS
    ]
    k = np.ones((2, 4, 16), np.float16)
    jobs.append(("attention", partial(NUMBA.attention, x, k, k, 0, Attention(1.0))))
    jobs.append(("cache", partial(write, k, x[:, :4])))
    jobs.append(("whole layers", compile_layers))
    jobs.append(("experts", lambda: MIX.address))
    for style in ("norm", "neox"):
        jobs.append((f"rope, {style}", partial(NUMBA.rope, x, positions, Rope(style, 16))))
    weight = np.ones(N_IN, np.float32)
    weight.flags.writeable = False  # as in a mapped file
    jobs.append(("rms_norm", partial(NUMBA.rms_norm, rows, weight, 1e-5)))
    jobs.append(("layer_norm", partial(NUMBA.layer_norm, rows, weight, weight, 1e-5)))
    jobs.append(("silu_mul, gelu_mul", partial(NUMBA.silu_mul, rows, rows)))
    jobs.append(("gelu, gelu_erf, quick_gelu", partial(NUMBA.gelu, rows)))
    jobs.append(("softmax", partial(NUMBA.softmax, rows)))
    jobs.append(("descending", partial(descending, rows[0], 3)))
    jobs.append(("resize", partial(NUMBA.resize, np.zeros((4, 4, 3), np.uint8), 8, 8)))
    return [(name, partial(_run_and_mark, name, job)) for name, job in jobs]


# Approximate seconds to compile a kernel: the second process takes the longest first, so that both end together.
COMPILE_S = {"attention": 2.2, "product": 1.4, "whole layers": 1.0, "experts": 0.7, "cache": 0.6, "rope": 0.4}
OTHER_KERNEL_S = 0.2
COMMON = ("attention", "cache", "silu_mul, gelu_mul", "rms_norm", "descending")  # of every model that generates
AFTER = ("whole layers", "experts")  # the first token needs none of them: layers in steps have the same bits
IDLE_S = 20.0  # that a second process waits for a first model

_begun: list[Pair] = []  # at most one, for the first model
_others: list[subprocess.Popen[str]] = []  # processes that still compile, or have not been seen to end


def begin() -> None:
    """Start a second process for what every model needs and is not compiled.  The first `prepare` goes on with it."""
    if missing := [name for name in COMMON if not config.DISABLE_JIT and not _is_compiled(name)]:
        if N_CORE > 1 and can_save():
            _begun.append(Pair(missing))


def prepare(names: Sequence[str]) -> None:
    """Compile the kernels `names` with a second process, which compiles those of AFTER when this returns.

    Kernels that are already compiled, and names that warmups() lacks, are skipped.  With one core or without a folder
    to save to this does nothing: each kernel is then compiled on its first call.
    """
    folder, problem = find_cache()
    if folder is None:
        warn_once("machine code cannot be saved, every process compiles", problem)
    known = {name for name, _ in warmups()}
    missing = [name for name in names if name in known and not _is_compiled(name)]
    if len(missing) < 2 or N_CORE == 1 or not can_save():
        return
    needed = [name for name in missing if name not in AFTER] or missing
    pair = _begun.pop() if _begun else None
    if pair is None or pair.is_over:
        pair = Pair()
    pair.compile(needed, [name for name in missing if name not in needed])


class Pair:
    """This process and a second one, which gets a name whenever it has compiled one."""

    def __init__(self, names: Iterable[str] = ()):
        self.is_over = False  # whether the second process gets no more names
        self._left, self._after = deque(sorted(names, key=_turn)), list[str]()
        self.theirs: str | None = None  # what the second process compiles now
        self._is_complete = False  # whether all names are known
        self._changed = Condition()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._other = subprocess.Popen([sys.executable, "-P", "-m", __name__], text=True, **pipes)  # type: ignore[call-overload]
        Thread(target=self._feed, name="numllama warmup", daemon=True).start()

    def compile(self, names: Iterable[str], after: Iterable[str]) -> None:
        """Compile `names`, and let the second process go on with `after`.

        If that fails, what it had to do is compiled on its first call.
        """
        with self._changed:
            left = [name for name in names if name != self.theirs and not _is_compiled(name)]
            self._left, self._after, self._is_complete = deque(sorted(left, key=_turn)), [*after], True
            self._changed.notify_all()
        try:
            compile_them(iter(self._take, None))
        finally:
            with self._changed:
                self._left.clear()
                self._changed.wait_for(lambda: self.theirs is None)
            _others.append(self._other)

    def _take(self) -> str | None:
        with self._changed:
            return self._left.pop() if self._left else None

    def _feed(self) -> None:
        """Run as the thread that speaks with the second process."""
        names, answers = self._other.stdin, self._other.stdout
        assert names and answers
        with answers:
            with suppress(OSError), names:  # it may have ended
                for _ in answers:  # a line at its start, and after each name
                    with self._changed:
                        self.theirs = None
                        self._changed.notify_all()
                        self._changed.wait_for(lambda: self._left or self._is_complete, IDLE_S)
                        self.theirs = self._left.popleft() if self._left else None
                        self.is_over = self.theirs is None
                    if self.is_over:
                        print(*self._after, sep="\n", file=names)
                        break
                    print(self.theirs, file=names, flush=True)
            with self._changed:
                self.is_over, self.theirs = True, None
                self._changed.notify_all()
            answers.read()  # so that it can write
        self._other.wait()


def _turn(name: str) -> tuple[bool, float]:
    """Sort products last, from where this process takes: a second format shares a third of its code with the first."""
    return "product" in name, -next((n for kind, n in COMPILE_S.items() if kind in name), OTHER_KERNEL_S)


def is_compiling() -> bool:
    """Check whether another process still compiles kernels of AFTER, for which this one would have to wait."""
    _others[:] = [other for other in _others if other.poll() is None]
    return bool(_others)


def compile_them(names: Iterable[str]) -> None:
    """Compile `names`, in this order, with Python's garbage collector off, which takes a twentieth of the time."""
    collects, jobs = gc.isenabled(), dict(warmups())
    gc.disable()
    try:
        for name in names:
            if name in jobs:
                jobs[name]()
    finally:
        if collects:
            gc.enable()


def _run_and_mark(name, job):
    """Run `job`, then create the marker file of `name` beside the machine code."""
    result = job()
    if marker := _marker(name):
        with suppress(OSError):
            marker.touch()
    return result


def _is_compiled(name) -> bool:
    """Check whether `name` has been compiled, by its marker file."""
    try:
        marker = _marker(name)
        return marker is not None and marker.exists()
    except OSError:
        return False


def _marker(name) -> Path | None:
    """Return the path of the marker file for `name` on this CPU, or None without a cache."""
    cpu = hashlib.sha256(f"{llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}".encode())
    folder = cache_folder()
    return folder and folder / f"{re.sub('[^a-z0-9]+', '-', name.lower())}-{cpu.hexdigest()[:8]}.compiled"


def _multiply(type, x):
    """Multiply one token, then several, by a weight of zeros."""
    format = FORMATS[type]
    blocks = np.zeros((N_OUT, N_IN // format.block_size), format.layout)
    blocks.flags.writeable = False  # as in a mapped file
    w = Tensor("zeros", format, (N_OUT, N_IN), blocks)
    return NUMBA.matmul(w, x[:1]), NUMBA.matmul(w, x)


def compile_what_is_asked() -> None:
    """Run as the second process."""
    print(flush=True)
    for line in sys.stdin:
        compile_them([line.strip()])
        print(flush=True)


if __name__ == "__main__":
    compile_what_is_asked()
