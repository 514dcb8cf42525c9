"""The compiler of kernels: Numba's, with fewer passes, or Numba's own where its release was not tested with them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core import config

from numllama.kernels.compiler import InnerCompiler, KernelCompiler
from numllama.kernels.jit import FLAGS, TESTED_NUMBA, inner, kernel

# Prints which of two modules were imported, whether kernels were loaded and whether compiled, and the results' bits
PROGRAM = """
import gc, hashlib, sys, numba
numba.__version__ = sys.argv[1]
import numpy as np
from numllama.kernels import NUMBA, Attention
from numllama.kernels.quants import FORMATS
from numllama.kernels.rope import Rope
from numllama.kernels.tensor import Tensor
random = np.random.default_rng(0)
x, weight = random.standard_normal((5, 4, 64), np.float32), random.standard_normal(256, np.float32)
q4_0 = next(format for format in FORMATS.values() if format.name == "Q4_0")
blocks = np.frombuffer(random.integers(0, 60, 8 * 32 * q4_0.block_bytes, np.uint8), q4_0.layout).reshape(32, 8)
calls = {
    "rms_norm": lambda: NUMBA.rms_norm(x.reshape(5, 256), weight, 1e-5),
    "rope": lambda: NUMBA.rope(x, np.arange(5, dtype=np.int32), Rope("neox", 64)),
    "matmul": lambda: NUMBA.matmul(Tensor("w", q4_0, (32, 256), blocks), x.reshape(5, 256)),
    "attention": lambda: NUMBA.attention(x, x.astype(np.float16), x.astype(np.float16), 0, Attention(0.125)),
}
results = [calls[name]() for name in sys.argv[2:]]
assert all(np.isfinite(result).all() and result.any() for result in results)
kernels = [kernel for kernel in gc.get_objects() if issubclass(type(kernel), numba.core.dispatcher.Dispatcher)]
print(*(f"numllama.kernels.{name}" in sys.modules for name in ("compiler", "code_file")))
stats = [kernel.stats for kernel in kernels]
print(sum(s.cache_hits.total() for s in stats) > 0, sum(s.cache_misses.total() for s in stats) > 0)
print(*(hashlib.sha256(result.tobytes()).hexdigest() for result in results))
"""


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


@pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")
def test_this_release_of_numba_compiles_kernels_with_the_faster_compiler():
    """If it does not: CONTRIBUTING.md, "A new release of Numba"."""
    chosen = [decorate(smoothed)._compiler.pipeline_class for decorate in (kernel, inner)]
    assert chosen == [KernelCompiler, InnerCompiler]
    assert not any(
        version.startswith(TESTED_NUMBA) for version in ("0.99.0", "0.7.0", "1.0.0rc1", "1.62.0", "0+unknown")
    )


def run(version, operations, folder, before=""):
    environ = os.environ | {"NUMBA_CACHE_DIR": str(folder)}
    command = [sys.executable, "-c", before + PROGRAM, version, *operations]
    return subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")
@pytest.mark.parametrize(
    "operations", [["rms_norm"], pytest.param(["rope", "matmul", "attention"], marks=pytest.mark.slow)], ids="-".join
)
def test_a_later_release_of_numba_compiles_kernels_by_itself_to_the_same_bits(tmp_path, operations):
    modules, loaded_compiled, expected = run(numba.__version__, operations, tmp_path)
    assert (modules, loaded_compiled) == ("True True", "False True")
    assert run("0.99.0", operations, tmp_path) == ["False False", "False True", expected]  # loads none of the other's
    assert run("0.99.0", operations, tmp_path) == ["False False", "True False", expected]
    assert len(list(Path(tmp_path, "numllama").glob("kernels-*"))) == 2


@pytest.mark.slow
@pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")
def test_a_later_release_of_numba_saves_nothing_where_the_folder_is_read_only(tmp_path):
    """Numba would save beside the sources, where it would not notice an edit of another file."""
    read_only = f"""
import tempfile
def temporary_file(*args, dir=None, _make=tempfile.TemporaryFile, **kwargs):
    if str(dir).startswith({str(tmp_path)!r}):
        raise OSError("read-only")
    return _make(*args, dir=dir, **kwargs)
tempfile.TemporaryFile = temporary_file
"""
    for _ in range(2):
        assert run("0.99.0", ["rms_norm"], tmp_path, read_only)[:2] == ["False False", "False True"]


@pytest.mark.slow
@pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")
def test_no_state_of_the_files_stops_a_later_release_of_numba(tmp_path):
    """A full disk, machine code of another kernel, a file that was cut."""
    full_disk = """
import builtins
def open_for_reading(path, mode="r", *args, _open=open, **kwargs):
    if set(mode) & set("wax+"):
        raise OSError("No space left on device")
    return _open(path, mode, *args, **kwargs)
builtins.open = open_for_reading
"""
    compiled, loaded = "False True", "True False"
    _, made, expected = run("0.99.0", ["rms_norm"], tmp_path, full_disk)
    assert made == compiled
    assert run("0.99.0", ["rms_norm"], tmp_path)[1:] == [compiled, expected]
    run("0.99.0", ["rope"], tmp_path)
    ((norm,), (rope,)) = (list(tmp_path.rglob(f"*{name}*.nbc")) for name in ("norm_rows", "rotate_tokens"))
    index = norm.with_suffix("").with_suffix(".nbi")
    for path, damaged in (norm, rope.read_bytes()), (norm, norm.read_bytes()[:40]), (index, index.read_bytes()[:40]):
        path.write_bytes(damaged)
        assert run("0.99.0", ["rms_norm"], tmp_path)[1:] == [compiled, expected]
        assert run("0.99.0", ["rms_norm"], tmp_path)[1:] == [loaded, expected]
