"""Every kernel of the NUMBA set, used once: what Numba would compile in a first answer is compiled ahead of it.

Machine code is kept on disk (jit.py), so this is worth doing once after an installation.  In one process Numba compiles
one kernel at a time, so whoever is in a hurry takes two:

    prepare(names)                              compiles half of them, while
    python -m numllama.kernels.warmup NAMES     a second process compiles the rest, for both
"""

import gc
import hashlib
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np

from . import NUMBA, Attention
from .decode_layer import compile_layers
from .jit import cache_folder
from .kv import write
from .packed import PRODUCTS
from .quants import FORMATS
from .rope import Rope
from .select import descending
from .tensor import Tensor
from .threads import N_CORE

N_IN = 256  # one block of the largest kind
N_OUT = 512  # enough work for one token to wake the team of threads


def warmups() -> list[tuple[str, Callable[[], object]]]:
    """What is compiled, and a call that does it: the product of each format, then the other operations."""
    x = np.ones((2, 16, 16), np.float32)
    rows, positions = x.reshape(2, N_IN), np.arange(2, dtype=np.int32)
    jobs: list[tuple[str, Callable[[], object]]] = [
        (f"{FORMATS[type].name} product", partial(_multiply, type, rows)) for type in PRODUCTS
    ]
    k = np.ones((2, 4, 16), np.float16)
    jobs.append(("attention", partial(NUMBA.attention, x, k, k, 0, Attention(1.0))))
    jobs.append(("cache", partial(write, k, x[:, :4])))
    jobs.append(("whole layers", compile_layers))
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
    return [(name, partial(_noted, name, job)) for name, job in jobs]


# Seconds of compiling, about, for sharing it out: the other process takes one to begin.
SECONDS = {"attention": 3.4, "product": 2.2, "whole layers": 1.4, "cache": 0.7, "rope": 0.5}
OTHER_KERNEL_S, START_S = 0.3, 1.0


def prepare(names: Sequence[str]) -> None:
    """The kernels `names` are compiled, half of the work in a second process.

    Does nothing about those that were compiled before or that warmups() does not know, and nothing at all where there
    is one core or no cache: then each is compiled when it is first called.
    """
    known = {name for name, _ in warmups()}
    missing = [name for name in names if name in known and not _is_compiled(name)]
    if len(missing) < 2 or N_CORE == 1 or cache_folder() is None:
        return
    here, there = split_work(missing)
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    beside = subprocess.Popen([sys.executable, "-m", __name__, *there], **quiet) if there else None
    try:
        compile_them(here)
    finally:
        if beside:
            beside.wait()  # whatever it did not manage is compiled on its first call


def split_work(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is compiled here and what in the other process, each as long as the other, about."""
    here, there, less = [], [], START_S  # less: how much sooner this process is done so far
    seconds = {name: next((n for kind, n in SECONDS.items() if kind in name), OTHER_KERNEL_S) for name in names}
    for name in sorted(names, key=lambda name: -seconds[name]):
        (here if less > 0 else there).append(name)
        less += -seconds[name] if less > 0 else seconds[name]
    return here, there


def compile_them(names: Collection[str]) -> None:
    """The collector of cycles, a twentieth of the time, is put off meanwhile."""
    collects = gc.isenabled()
    gc.disable()
    try:
        for name, job in warmups():
            if name in names:
                job()
    finally:
        if collects:
            gc.enable()


def _noted(name, job):
    """The result of `job`; that `name` is compiled is noted beside the machine code."""
    result = job()
    if note := _note(name):
        note.touch()
    return result


def _is_compiled(name) -> bool:
    note = _note(name)
    return note is not None and note.exists()


def _note(name) -> Path | None:
    cpu = hashlib.sha256(f"{llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}".encode())
    folder = cache_folder()
    return folder and folder / f"{re.sub('[^a-z0-9]+', '-', name.lower())}-{cpu.hexdigest()[:8]}.compiled"


def _multiply(type, x):
    """One token and several, on a weight of zeros."""
    format = FORMATS[type]
    blocks = np.zeros((N_OUT, N_IN // format.block_size), format.layout)
    blocks.flags.writeable = False  # as in a mapped file
    w = Tensor("zeros", format, (N_OUT, N_IN), blocks)
    return NUMBA.matmul(w, x[:1]), NUMBA.matmul(w, x)


if __name__ == "__main__":
    compile_them(sys.argv[1:])
