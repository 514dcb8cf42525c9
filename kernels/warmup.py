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
from .cached import write
from .jit import cache_folder
from .layer import compile_layers
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


def prepare(names: Sequence[str]) -> None:
    """The kernels `names` are compiled: the first in a second process, two here, two there, and so on.

    So the halves take about as long where those that take longest come first.

    Does nothing about those that were compiled before or that warmups() does not know, and nothing at all where there
    is one core or no cache: then each is compiled when it is first called.
    """
    known = {name for name, _ in warmups()}
    missing = [name for name in names if name in known and not _is_compiled(name)]
    if len(missing) < 2 or N_CORE == 1 or cache_folder() is None:
        return
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    here = [name for i, name in enumerate(missing) if i % 4 in (1, 2)]
    there = [name for name in missing if name not in here]
    beside = subprocess.Popen([sys.executable, "-m", __name__, *there], **quiet)
    try:
        compile_them(here)
    finally:
        beside.wait()  # whatever it did not manage is compiled on its first call


def compile_them(names: Collection[str]) -> None:
    for name, job in warmups():
        if name in names:
            job()


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
    gc.disable()  # a twentieth of the time, in a process that is soon over
    compile_them(sys.argv[1:])
