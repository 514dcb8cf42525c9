"""Compilation of all kernels of the NUMBA set ahead of a first answer, by calling each once.

Machine code is cached on disk (jit.py), so one run after an installation is enough.  In one process Numba compiles one
kernel at a time, so two processes halve the time:

    prepare(names)                              compiles one half, while
    python -P -m numllama.kernels.warmup NAMES  a second process compiles the other half, for both, and then AFTER
    is_compiling()                              whether it still does: decoding goes in steps until then

-P: Python would otherwise import modules, and so run code, from the current folder.
"""

from __future__ import annotations

import gc
import hashlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np

from . import NUMBA, Attention
from .decode_experts import MIX
from .decode_layer import compile_layers
from .jit import cache_folder, can_save, find_cache, warn_once
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


# Approximate seconds to compile each kernel, and to start the other process; used to split the work.
COMPILE_S = {"attention": 3.2, "product": 2.0, "whole layers": 1.9, "experts": 1.0, "cache": 1.2, "rope": 0.4}
OTHER_KERNEL_S, START_S = 0.3, 1.0
AFTER = ("whole layers", "experts")  # the first token needs none of them: layers in steps have the same bits

_others: list[subprocess.Popen[bytes]] = []  # processes that still compile, or have not been seen to end


def prepare(names: Sequence[str]) -> None:
    """Compile the kernels `names`, half of them in a second process, which compiles those of AFTER when this returns.

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
    here, there = split_work(needed)
    after = [name for name in missing if name not in needed] if there else []
    here += [name for name in missing if name not in (*needed, *after)]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    other = subprocess.Popen([sys.executable, "-P", "-m", __name__, *there, *after], **quiet) if there else None
    try:
        compile_them(here)
    finally:
        if other:
            _wait(other, there)
            _others.append(other)


def _wait(other: subprocess.Popen[bytes], names: Collection[str]) -> None:
    """Wait until the other process has compiled `names`.  If it fails, they are compiled on their first calls."""
    while other.poll() is None and not all(map(_is_compiled, names)):
        time.sleep(0.005)


def is_compiling() -> bool:
    """Check whether another process still compiles kernels of AFTER, for which this one would have to wait."""
    _others[:] = [other for other in _others if other.poll() is None]
    return bool(_others)


def split_work(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split `names` between this process and the other one, so that both take about the same time."""
    here, there, lead = [], [], START_S  # lead: seconds that this process has left over, so far
    seconds = {name: next((n for kind, n in COMPILE_S.items() if kind in name), OTHER_KERNEL_S) for name in names}
    for name in sorted(names, key=lambda name: -seconds[name]):
        (here if lead > 0 else there).append(name)
        lead += -seconds[name] if lead > 0 else seconds[name]
    return here, there


def compile_them(names: Collection[str]) -> None:
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


if __name__ == "__main__":
    compile_them(sys.argv[1:])
