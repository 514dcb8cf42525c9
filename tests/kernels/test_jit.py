"""The cache of machine code: stored on disk, found again, skipped if no folder is writable."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from numba import float64
from numba.core import config

from numllama.kernels import jit
from numllama.kernels.folder import remove_old_caches
from numllama.kernels.jit import by_type, inner, kernel
from numllama.kernels.llvm_pages import llvm_pages

# Runs a module with one kernel in a fresh process; prints the result, the cache hits, and whether there is a cache.
PROGRAM = """
from numllama.kernels.folder import cache_folder
from numllama.kernels.jit import kernel
import sys; sys.path.insert(0, {folder!r})
from sums import total
import numpy as np
print(total(np.arange(5.0)), sum(total.stats.cache_hits.values()), cache_folder() is not None)
"""
PROGRAM_WITH_LOG = (
    """
import logging, sys; logging.basicConfig(stream=sys.stdout, format="%(message)s")
from numllama.kernels import folder
folder.log.propagate = False
lines = []
class Lines(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())
folder.log.addHandler(Lines())
"""
    + PROGRAM
    + """
print(*lines)
"""
)
# Makes every write into a cache folder fail; root may write to folders that are read-only
READ_ONLY = """
import builtins, errno, tempfile
def open_for_reading(path, mode="r", *args, _open=open, **kwargs):
    if set(mode) & set("wax+"):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))
    return _open(path, mode, *args, **kwargs)
builtins.open = open_for_reading
"""
SUMS = """
from numllama.kernels.jit import inner, kernel
@inner
def plus(s, x):
    return s + x
@kernel
def total(x):
    s = 0.0
    for i in range(x.size):
        s = plus(s, x[i])
    return s
"""


def run(folder: Path, program: str = PROGRAM, **env: str) -> list[str]:
    if not (folder / "sums.py").exists():  # an older Numba compiles again if its time changed
        (folder / "sums.py").write_text(SUMS)
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "NUMLLAMA_"))} | env
    command = [sys.executable, "-c", program.format(folder=str(folder))]
    return subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout.split()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Run the program once, with an empty cache.  -> its folder, in which `cache` is full now"""
    folder = tmp_path_factory.mktemp("compiled")
    assert run(folder, NUMBA_CACHE_DIR=str(folder / "cache")) == ["10.0", "0", "True"]
    return folder


@pytest.fixture
def cache(compiled, tmp_path):
    """Return a copy of the full cache, for the program in `compiled`."""
    return shutil.copytree(compiled / "cache", tmp_path / "cache")


def test_a_second_process_finds_the_machine_code_of_the_first(compiled, cache):
    assert run(compiled, XDG_CACHE_HOME=str(cache), NUMBA_CACHE_DIR=str(cache)) == ["10.0", "1", "True"]


RESIDENT = """
import sys
from pathlib import Path
def resident(size=0):
    \"\"\"Return KiB of LLVM's code that are in memory.\"\"\"
    for line in Path("/proc/self/smaps").read_text().splitlines() if Path("/proc/self/smaps").exists() else ():
        first = line.split()[0]
        if "-" in first:
            counted = "libllvmlite" in line and " r-xp " in line
        elif first == "Rss:" and counted:
            size += int(line.split()[1])
    return size
"""


def test_a_server_that_waits_has_no_page_of_llvm():
    """Importing Numba reads 38 MiB of them."""
    program = """
from numllama.api.cli import commands, serve
serve.serve_forever = lambda **options: print(resident())
commands.serve()
"""
    command = [sys.executable, "-P", "-c", RESIDENT + program]
    assert int(subprocess.run(command, check=True, capture_output=True).stdout) < 10_000  # KiB; the code has 80,000


def test_loading_machine_code_loads_no_compiler_and_leaves_no_page_of_llvm(compiled, cache):
    """Numba's implementations of operations take 40 MiB, LLVM's pages 30 to 70."""
    program = PROGRAM + RESIDENT + 'print("numba.np.linalg" in sys.modules, resident())'
    *_, hits, _, compiler, resident = run(compiled, program, NUMBA_CACHE_DIR=str(cache))
    assert (hits, compiler) == ("1", "False") and int(resident) < 10_000  # KiB; the code has 80,000


def test_where_the_memory_map_cannot_be_read_nothing_is_given_back(monkeypatch, tmp_path):
    llvm_pages.cache_clear()
    monkeypatch.setattr("numllama.kernels.llvm_pages.MAPS", tmp_path)  # reading a folder fails
    assert llvm_pages() == []
    llvm_pages.cache_clear()


def test_a_kernel_that_calls_loaded_machine_code_compiles(compiled, cache):
    program = (
        PROGRAM
        + """
@kernel
def twice(x):
    return 2 * total(x)
print(twice(np.arange(5.0)), twice.py_func(np.arange(5.0)))
"""
    )
    assert run(compiled, program, NUMBA_CACHE_DIR=str(cache)) == ["10.0", "1", "True", "20.0", "20.0"]


def test_inner_functions_have_no_machine_code_of_their_own(tmp_path):
    """Calls by name would find it: kernels were forty times slower in the process that compiled them."""
    program = """
import sys; sys.path.insert(0, {folder!r}); import sums, numpy as np
from numba import float64
def is_there(compiled, args):
    compiled.compile(args)
    code = compiled.overloads[args]
    return code.library.codegen._engine.get_function_address(code.fndesc.llvm_func_name) != 0
print(is_there(sums.plus, (float64, float64)), is_there(sums.total, (float64[::1],)), sums.total(np.arange(5.0)))
"""
    assert run(tmp_path, program, NUMBA_CACHE_DIR=str(tmp_path / "cache")) == ["False", "True", "10.0"]


PLAIN = "inner", "inner(copied=True)", "kernel", "kernel(inline='always')"


def test_functions_that_count_no_references_call_none_that_return_new_arrays():
    """Such a call would leak the arrays.  Numba checks that the functions create none, jit.py that they return none."""
    plain, makers = {}, set()
    for path in Path(jit.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            decorators = [ast.unparse(d) for d in getattr(node, "decorator_list", [])]
            if any(d in PLAIN or ".case(" in d for d in decorators):
                called = {ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}
                plain[f"{path.stem}.{node.name}"] = called
            if "inner(makes_arrays=True)" in decorators:
                if any(isinstance(inside, ast.Return) and inside.value for inside in ast.walk(node)):
                    makers.add(node.name)
    assert len(plain) > 50 and {"new_product", "_new_scratch"} < makers
    assert not {name: called & makers for name, called in plain.items() if called & makers}


class Metres(NamedTuple):
    n: int


class Feet(NamedTuple):
    n: int


def test_the_type_of_the_first_argument_chooses_a_function_s_body():
    length = by_type("length", otherwise=lambda x, factor: -1.0)

    @length.case(Metres)
    def length_in_metres(x, factor):
        return float(factor * x.n)

    @length.case(Feet)
    def length_in_feet(x, factor):
        return 0.3048 * factor * x.n

    @kernel
    def lengths():
        return length(Metres(2), 3), length(Feet(10), 1), length(7, 1)

    assert lengths() == (6.0, 3.048, -1.0)


@pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")
def test_a_function_that_returns_an_array_must_declare_it():
    """Numba itself refuses a function that creates an array."""

    @inner
    def same(x):
        return x, 1

    with pytest.raises(TypeError, match=r"same returns .*array\(float64, 1d, C\).*, so it needs makes_arrays"):
        same.compile((float64[::1],))


def test_without_a_writable_folder_every_process_compiles(tmp_path):
    (tmp_path / "file").write_text("")
    nowhere = str(tmp_path / "file" / "below")  # a folder below a file: even root cannot create it
    assert run(tmp_path, NUMBA_CACHE_DIR=nowhere) == ["10.0", "0", "False"]


def files(folder: Path, suffix: str) -> list[Path]:
    return sorted(folder.rglob(f"*{suffix}"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def flip(path: Path) -> None:
    """Change one bit in the middle, of machine code or of an index."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lock(path: Path) -> None:
    path.unlink()
    path.mkdir()  # reading fails, as of a file of another user; root may read those


DAMAGE = {"empty": lambda path: path.write_bytes(b""), "cut": cut, "flipped": flip, "unreadable": lock}


@pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_damaged_machine_code_is_compiled_again_and_named_once(compiled, cache, suffix, damage):
    (path,) = files(cache, suffix)
    DAMAGE[damage](path)
    result, hits, _, *log = run(compiled, PROGRAM_WITH_LOG, NUMBA_CACHE_DIR=str(cache))
    assert (result, hits) == ("10.0", "0")
    if (suffix, damage) != (".nbc", "unreadable"):  # that counts as a missing file
        assert log.count("again:") == 1 and str(path.parents[1]) in log
    if damage == "flipped":
        assert run(compiled, NUMBA_CACHE_DIR=str(cache)) == ["10.0", "1", "True"]  # mended


@pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")
def test_machine_code_of_another_kernel_is_not_executed(compiled, cache, tmp_path):
    """Two processes that save at once may give their files one name; Numba would run the other's code."""
    other = tmp_path / "other"
    run(compiled, PROGRAM.replace("np.arange(5.0)", "np.arange(5)"), NUMBA_CACHE_DIR=str(other))
    (path,), (foreign,) = files(cache, ".nbc"), files(other, ".nbc")
    path.write_bytes(foreign.read_bytes())
    assert run(compiled, NUMBA_CACHE_DIR=str(cache)) == ["10.0", "0", "True"]


@pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")
def test_a_cache_that_may_only_be_read_is_used(compiled, cache):
    assert run(compiled, READ_ONLY + PROGRAM, NUMBA_CACHE_DIR=str(cache)) == ["10.0", "1", "True"]


@pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")
def test_a_full_disk_keeps_the_machine_code_in_memory_and_is_named_once(tmp_path):
    result, hits, _, *log = run(tmp_path, READ_ONLY + PROGRAM_WITH_LOG, NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    assert (result, hits) == ("10.0", "0")
    assert log.count("saved") == 1 and not files(tmp_path / "cache", ".nbc")


def test_machine_code_of_older_sources_is_removed_after_a_month(tmp_path):
    old, recent = tmp_path / "kernels-old", tmp_path / "kernels-recent"
    for folder in (old, recent):
        folder.mkdir()
        (folder / "index").write_text("")
    os.utime(old, (0, 0))
    remove_old_caches(tmp_path)
    assert not old.exists() and recent.exists()


def test_disable_jit_leaves_plain_functions(tmp_path):
    program = (
        "import sys; sys.path.insert(0, {folder!r}); import sums; print(type(sums.total).__name__, sums.total.__name__)"
    )
    assert run(tmp_path, program, NUMBA_DISABLE_JIT="1") == ["function", "total"]
