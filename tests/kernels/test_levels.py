"""Whole kernels at every level that this machine supports, each in its own process, since a level is chosen at import.

The processes run in parallel: with an empty kernel cache they compile for seconds.
"""

import os
import subprocess
import sys

import pytest
from numba.core import config

from numllama.kernels import simd

pytestmark = pytest.mark.skipif(config.DISABLE_JIT, reason="LLVM's vectors need the compiler")

PROGRAM = """
import numpy as np
from numllama.kernels import NUMBA, Attention, Tensor, simd
from numllama.kernels.rounding import round_activations
from numllama.kernels.attention import attention_numpy
from numllama.kernels.quants import FORMATS_BY_NAME, quantize

rng = np.random.default_rng(0)
x = rng.standard_normal((13, 256), np.float32) * 10.0 ** rng.integers(-4, 2, (13, 1)).astype(np.float32)
for name in ("Q4_0", "Q8_0", "Q6_K", "MXFP4"):
    format = FORMATS_BY_NAME[name]
    w = Tensor("w", format, (24, 256), quantize(format, rng.standard_normal((24, 256), np.float32)))
    expected = round_activations(x, format.dot_with).astype(np.float64) @ w.dequantize().T
    for rows in (slice(None), slice(4, 5)):
        error = np.abs(NUMBA.matmul(w, x[rows]) - expected[rows]) / np.abs(expected[rows]).max(axis=1, keepdims=True)
        assert error.max() < 256 * 2**-24, (name, error.max())
q, k, v = (rng.standard_normal((n, h, 16), np.float32) for n, h in ((6, 4), (300, 2), (300, 2)))
expected = attention_numpy(q.astype(np.float64), k.astype(np.float16), v.astype(np.float16), 294, Attention(0.25))
got = NUMBA.attention(q, k.astype(np.float16), v.astype(np.float16), 294, Attention(0.25))
assert np.abs(got - expected).max() < 1e-5
print(simd.LEVEL)
"""


@pytest.fixture(scope="module")
def processes():
    """Start one process per level, which computes and compares."""
    levels = [
        level
        for level, required in simd.REQUIRED_FEATURES.items()
        if required <= simd.cpu_features() and level != simd.LEVEL
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", PROGRAM]
    begun = {level: subprocess.Popen(command, env=os.environ | {"NUMLLAMA_SIMD": level}, **pipes) for level in levels}
    yield begun
    for process in begun.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize("level", simd.REQUIRED_FEATURES)
def test_kernels_agree_with_their_references(level, processes):
    if not simd.REQUIRED_FEATURES[level] <= simd.cpu_features():
        pytest.skip(f"this CPU cannot run {level}; tests/kernels/test_simd.py lowers it to assembly")
    if level == simd.LEVEL:
        pytest.skip(f"all other tests run at {level}")
    out, err = processes[level].communicate()
    assert (out.strip(), processes[level].returncode) == (level, 0), err
