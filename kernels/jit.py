"""`@kernel`: how Numba compiles this project's kernels, and where the machine code is cached.

    nogil         other Python threads run while a kernel works
    error_model   "numpy": x / 0 is inf or nan, so division needs no branch, which would prevent vector code
    fastmath      off: sums keep their written order, and so their bits

Numba's own cache checks only the file that defines a function, so after an edit in an imported file it would run stale
code.  Our cache has one folder per state of all kernel sources, `<user cache>/numllama/kernels-<key>`.  NUMBA_CACHE_DIR
moves the cache, NUMBA_DISABLE_JIT=1 turns compilation off.

The cache saves time and is never needed.  A folder that may only be read is read.  A file that is damaged, or belongs
to another kernel, is ignored and replaced; what cannot be saved stays in this process.  Each is logged once.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import mmap
import os
import pickle
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache, cached_property, partial
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm
import numba
from llvmlite.utils import get_library_name
from numba import types
from numba.core import config
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile
from numba.core.runtime._nrt_python import c_helpers
from numba.core.typing.templates import signature
from numba.extending import intrinsic, overload

from .compiler import InnerCompiler, KernelCompiler

FLAGS = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
SOURCES = Path(__file__).parent
HASH_BYTES = hashlib.sha256().digest_size
log = logging.getLogger(__name__)


def kernel(function: Callable | None = None, **options):
    """Compile `function` on its first call for each set of argument types.  Also `@kernel(inline="always")`."""
    if function is None:
        return lambda function: kernel(function, **options)
    compiled = numba.njit(**FLAGS, pipeline_class=KernelCompiler, **options)(function)
    if not config.DISABLE_JIT:
        enable_cache(compiled, cache_folder())
    return compiled


def inner(function: Callable | None = None, makes_arrays: bool = False, copied: bool = False):
    """Compile a function that only kernels call.  Their code contains it, so it needs no entry from Python and no file.

    makes_arrays   `@inner(makes_arrays=True)` for a function that allocates or returns an array.  Others do not count
                   references, which saves up to four locked instructions each time an array is passed on.
    copied         inline every call in LLVM, however long the function, so that a call's constant argument is constant
                   in its loops
    """
    if function is None:
        return partial(inner, makes_arrays=makes_arrays, copied=copied)
    options = {"no_cpython_wrapper": True, "pipeline_class": InnerCompiler, "_nrt": makes_arrays, "forceinline": copied}
    return numba.njit(**FLAGS, **options)(function)


def by_type(name: str, otherwise: Callable | None = None):
    """Make a function for kernels to call, whose body depends on the type of its first argument.

    scale = by_type("scale")
    @scale.case(A, B)       the body for NamedTuple classes A and B; a vector type will do as well
    otherwise               the body for every other type; without one such a call does not compile
    """
    cases: dict = {}

    def choose(first, *args):
        return cases.get(type(first), otherwise)(first, *args)

    def case(*kinds):
        def add(body):
            cases.update(dict.fromkeys(kinds, body))
            return body

        return add

    choose.__name__, choose.cases, choose.case = name, cases, case
    options = FLAGS | {"no_cpython_wrapper": True, "pipeline_class": InnerCompiler, "_nrt": False}
    body_for = lambda first, *args: cases.get(getattr(first, "instance_class", first), otherwise)  # noqa: E731
    overload(choose, jit_options=options, strict=False)(body_for)
    return choose


class Entry:
    """A kernel's machine code for given argument types, which another kernel calls by its address.

    The caller does not contain the code: it is compiled once, and callers compile quickly.

        entry.address           from Python; compiles the kernel on first use
        entry.call(address, (a, b))     in a kernel: function(a, b); an array is accepted for a read-only one
    """

    def __init__(self, compiled, *args, result=types.void):
        self.compiled, self.signature = compiled, signature(result, *args)
        self.call = caller(self.signature)

    @cached_property
    def address(self) -> int:
        self.compiled.compile(self.signature.args)
        code = self.compiled.overloads[self.signature.args]
        assert code.signature.return_type == self.signature.return_type, code.signature
        return code.library.get_pointer_to_function(code.fndesc.llvm_func_name)


def caller(callee):
    """Return an intrinsic (address, args) that calls the machine code at `address`, of signature `callee`."""

    @intrinsic
    def call(typing, address, args):
        def generate(context, builder, sig, values):
            kind = context.call_conv.get_function_type(callee.return_type, callee.args)
            function = builder.inttoptr(values[0], kind.as_pointer())
            unpacked = [
                context.cast(builder, builder.extract_value(values[1], i), have, want)
                for i, (have, want) in enumerate(zip(args.types, callee.args, strict=True))
            ]
            _, result = context.call_conv.call_function(builder, function, callee.return_type, callee.args, unpacked)
            return result

        return callee.return_type(types.int64, args), generate

    return call


def enable_cache(compiled, folder: Path | None) -> None:
    """Make `compiled` load its machine code from `folder` and save it there; None: no caching."""
    if folder is not None:
        with suppress(OSError):  # a kernel without a source file
            compiled._cache = KernelCache(compiled.py_func, folder)


class KernelCache(FunctionCache):
    """The machine code of one kernel in `folder`.  No state of the folder keeps the kernel from being compiled."""

    def __init__(self, function: Callable, folder: Path):
        self._name, self._py_func, self._folder = repr(function), function, folder
        self._impl = KernelCode(function, folder)
        self._cache_path = str(self._impl.folder)
        self._cache_file = CheckedFile(self._cache_path, self._impl.filename_base, source_hash(self._impl._py_file))
        self.enable()

    def load_overload(self, sig, target_context):
        """Load machine code.  What compiling needs is not loaded: half a second and 40 MiB."""
        try:
            prepare_to_run()
            return self._load_overload(sig, target_context)
        except Exception as error:
            warn_once(f"damaged machine code in {self._folder} is compiled again", error)
            return None
        finally:
            release_llvm()

    def save_overload(self, sig, data):
        try:
            super().save_overload(sig, data)
        except Exception as error:
            warn_once(f"machine code cannot be saved in {self._folder}", error)
        finally:
            release_llvm()


class KernelCode(CompileResultCacheImpl):
    """Numba's form of machine code, in a folder that need not be writable."""

    def __init__(self, function: Callable, folder: Path):
        self._py_file, self._lineno = function.__code__.co_filename, function.__code__.co_firstlineno
        self._filename_base = f"{re.sub('[<>]', '', function.__qualname__)}-{self._lineno}"
        self._locator, self.folder = self, folder / function.__module__

    def ensure_cache_path(self) -> None:
        self.folder.mkdir(exist_ok=True)

    def reduce(self, compiled):
        """Leave out what only other kernels would link, LLVM's form of the code, and Numba's notes on its types."""
        (name, kind, (code, _)), *rest = super().reduce(compiled)
        rest[TYPE_NOTES] = ""
        return (name, kind, (code, llvm.parse_assembly("").as_bitcode())), *rest

    def rebuild(self, target_context, payload):
        names = {payload[1].llvm_func_name, payload[1].llvm_cpython_wrapper_name}
        target_context.codegen()._engine._defined_symbols |= names  # Numba would read them from LLVM's form
        return super().rebuild(target_context, payload)


TYPE_NOTES = 5  # in what CompileResult._reduce returns after the code


@cache
def prepare_to_run() -> None:
    """Let machine code find the functions that it calls, as Numba does before it compiles."""
    for name, address in c_helpers.items():
        llvm.add_symbol(name if name.startswith("_") else f"NRT_{name}", address)


def release_llvm() -> None:
    """Give LLVM's code and constants back to the system, 30 to 70 MiB: what is used again is read from its file."""
    for start, end in llvm_pages():
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


@cache
def llvm_pages() -> list[tuple[int, int]]:
    """Return the parts of memory, from .. to, in which LLVM's library is as in its file and cannot change (Linux)."""
    parts, maps = [], Path("/proc/self/smaps")
    for part in re.split("(?m)^(?=[0-9a-f]+-)", maps.read_text())[1:] if maps.exists() else []:
        first_line, _, sizes = part.partition("\n")
        addresses, rights, *_, path = first_line.split()
        if (
            path.endswith("/" + get_library_name())
            and "w" not in rights
            and re.search("^Anonymous: +0 kB", sizes, re.M)
        ):
            start, end = (int(address, 16) for address in addresses.split("-"))
            parts.append((start, end))
    return parts


_warned: set[str] = set()


def warn_once(problem: str, reason: object) -> None:
    """Log `problem`, unless this process has done so."""
    if problem not in _warned:
        _warned.add(problem)
        log.warning("%s: %s", problem, str(reason) or type(reason).__name__)


class CheckedFile(IndexDataCacheFile):
    """Numba's index of a kernel's machine code, and its files, each with a hash of its content.

    Numba executes what it reads.  A file also says what it is for, because two processes that save at the same time may
    give their files the same name.
    """

    def save(self, key, data):
        super().save(key, (key, data))

    def load(self, key):
        found, data = super().load(key) or (key, None)
        if found != key:
            raise ValueError("a file of other machine code")
        return data

    def _dump(self, obj):
        content = super()._dump(obj)
        return content + hashlib.sha256(content).digest()

    def _load_data(self, name):
        return self._checked(Path(self._data_path(name)).read_bytes())

    def _load_index(self):
        try:
            with open(self._index_path, "rb") as file:
                if pickle.load(file) != self._version:
                    return {}
                stamp, overloads = self._checked(file.read())
        except FileNotFoundError:
            return {}
        except Exception as error:
            warn_once(f"damaged machine code in {Path(self._cache_path).parent} is compiled again", error)
            return {}
        return overloads if stamp == self._source_stamp else {}

    @staticmethod
    def _checked(data: bytes):
        """Return the object in `data`.  Raises: ValueError if the hash at its end is another"""
        content = data[:-HASH_BYTES]
        if hashlib.sha256(content).digest() != data[-HASH_BYTES:]:
            raise ValueError("the content has another hash")
        return pickle.loads(content)


@cache
def find_cache() -> tuple[Path | None, str]:
    """Return the folder for machine code, which exists and may be read-only, and ""; or None, and why."""
    folder = Path("kernels")
    try:
        folder = user_cache() / f"kernels-{source_key()}"
        if not folder.is_dir():
            remove_old_caches(user_cache())
            folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # read-only, or no home directory
        return None, f"cannot make {folder} ({error})"
    return folder, ""


def cache_folder() -> Path | None:
    """Return the folder for machine code, which exists and may be read-only, or None."""
    return find_cache()[0]


@cache
def can_save() -> bool:
    """Check whether machine code can be saved."""
    try:
        tempfile.TemporaryFile(dir=cache_folder()).close()
    except OSError:
        return False
    return cache_folder() is not None


def remove_old_caches(cache: Path, days: float = 30) -> None:
    """Delete the cache folders of other source states that have not changed for `days`."""
    for folder in cache.glob("kernels-*"):
        with suppress(OSError):
            if folder.stat().st_mtime < time.time() - days * 86400:
                shutil.rmtree(folder, ignore_errors=True)


def user_cache() -> Path:
    """Return the platform's folder for cached data.

    From the environment alone: Numba's own setting may come from a file .numba_config.yaml in the current folder, and
    machine code from there would be executed.  For the same reason relative paths in XDG_CACHE_HOME are ignored, as its
    specification demands.
    """
    if folder := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(folder) / "numllama"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local").expanduser() / "numllama"
    if sys.platform == "darwin":
        return Path("~/Library/Caches/numllama").expanduser()
    folder = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (folder if folder.is_absolute() else Path("~/.cache").expanduser()) / "numllama"


@cache
def source_hash(path: str) -> str:
    """Return a hash of the source file at `path`."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def source_key() -> str:
    """Return a hash of everything that machine code depends on, except the CPU, which Numba checks itself."""
    key = hashlib.sha256()
    for part in (
        platform.python_version() + getattr(sys, "abiflags", ""),
        numba.__version__,
        llvmlite.__version__,
        os.environ.get("NUMLLAMA_SIMD", ""),
    ):
        key.update(part.encode() + b"\0")
    for path in sorted(SOURCES.rglob("*.py")):
        key.update(path.relative_to(SOURCES).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return key.hexdigest()[:16]
