"""The compiler of kernels: Numba's, with fewer passes."""

import re

import numba
import numpy as np

from numllama.kernels.compiler import KernelCompiler
from numllama.kernels.jit import FLAGS


def smoothed(x, n):
    """Do what kernels do: arrays, tuples, branches, a variable that changes its type, smallest and largest numbers."""
    sums, span = np.zeros(x.size, np.float32), (0, x.size)
    for i in range(span[0], span[1]):
        s, weight = 0, np.float32(0)
        for j in range(max(0, i - n), min(x.size, i + n + 1)):
            if x[j] > 0:
                s, weight = s + x[j], weight + np.float32(1)
        sums[i] = s / weight if weight else np.sqrt(abs(x[i]))
    return sums, n // 2


def instructions(compiled):
    (text,) = compiled.inspect_asm().values()
    lines = [line.split("#")[0].strip() for line in text.splitlines() if re.match(r"\t[a-z]", line)]
    return [re.sub(r"[._A-Za-z]\w*[.$%@]\w*[\w.$%@]*|_Z\w+|\.L\w+", "NAME", line) for line in lines]


def test_kernels_have_the_machine_code_of_numbas_own_passes():
    x, compiled = np.linspace(-1, 1, 40, dtype=np.float32), []
    for options in ({}, {"pipeline_class": KernelCompiler}):
        compiled.append(numba.njit(**FLAGS, **options)(smoothed))
        assert np.allclose(compiled[-1](x, 3)[0], smoothed(x, 3)[0], rtol=1e-5)  # sums in another order of roundings
    theirs, ours = map(instructions, compiled)
    assert len(theirs) > 100 and ours == theirs
