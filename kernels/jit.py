"""`@kernel`: the one place that says how Numba compiles this project's kernels, and where the machine code is kept.

    nogil         other Python threads run on while a kernel works
    error_model   "numpy": x / 0 is inf or nan, so no branch stands in the way of vector code
    fastmath      never: sums keep the order in which they are written, and with it their bits

Numba's own cache looks only at the file that defines a function, so an edit in an imported one would run stale code.
Ours is a folder per state of all kernel sources, `<user cache>/numllama/kernels-<key>`; where none can be written,
every process compiles anew.  NUMBA_CACHE_DIR moves it, NUMBA_DISABLE_JIT=1 leaves plain Python functions.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache, cached_property, partial
from pathlib import Path

import llvmlite
import numba
from numba import types
from numba.core import config
from numba.core.compiler import Compiler
from numba.core.typing.templates import signature
from numba.extending import intrinsic

FLAGS = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
SOURCES = Path(__file__).parent


def kernel(function: Callable | None = None, **options):
    """`function`, compiled on its first call for each set of argument types.  Also `@kernel(inline="always")`."""
    if function is None:
        return lambda function: kernel(function, **options)
    compiled = numba.njit(**FLAGS, **options)(function)
    if not config.DISABLE_JIT:
        keep(compiled, cache_folder())
    return compiled


def inner(function: Callable | None = None, makes_arrays: bool = False):
    """A kernel that only kernels call: their machine code contains it, so it needs no entry from Python and no file.

    makes_arrays   `@inner(makes_arrays=True)` for one that allocates an array or returns one.  The others do not count
                   references, which takes up to four locked instructions wherever an array is handed on.
    """
    if function is None:
        return partial(inner, makes_arrays=makes_arrays)
    options = {"no_cpython_wrapper": True, "pipeline_class": Inner, "_nrt": makes_arrays}
    return numba.njit(**FLAGS, **options)(function)


class Inner(Compiler):
    """Leaves to the kernel that it becomes a part of what LLVM can do for it.

    Numba would optimize it by itself, then once more within each of its callers, and so on upwards.  No machine code is
    made of it here: linked code that calls it by name would find that, as slow as it is, instead of its own.
    """

    def __init__(self, typingctx, targetctx, library, *args):
        library = library or targetctx.codegen().create_library("inner")
        library._optimize_final_module = lambda: None
        library._finalize_final_module = lambda: self.finish(library)
        super().__init__(typingctx, targetctx, library, *args)

    def compile_extra(self, func):
        result = super().compile_extra(func)
        if not self.state.flags.nrt and counted(result.signature.return_type):
            raise TypeError(f"{func.__name__} returns {result.signature.return_type}, so it needs makes_arrays")
        return result

    @staticmethod
    def finish(library) -> None:
        library._finalized = True
        library._get_module_for_linking()  # a copy, for kernels
        for function in library._final_module.functions:
            if not function.is_declaration:
                function.linkage = "available_externally"
        library._codegen._add_module(library._final_module)


def counted(kind: types.Type) -> bool:
    """Whether values of this type refer to memory that is counted."""
    return isinstance(kind, types.Array) or (isinstance(kind, types.BaseTuple) and any(map(counted, kind)))


class Entry:
    """A kernel's machine code for arguments of given types, for another kernel to call by its address.

    Whoever calls so need not contain it: it is compiled once, and its callers quickly.

        entry.address           from Python; compiled by then
        entry.call(address, (a, b))     in a kernel: function(a, b); an array where a read-only one is expected will do
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
    """An intrinsic (address, args): what the machine code there, of signature `callee`, returns for them."""

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


def keep(compiled, folder: Path | None) -> None:
    """Let `compiled` load its machine code from `folder` and save it there; None: keep nothing."""
    if folder is None:
        return
    before, config.CACHE_DIR = config.CACHE_DIR, str(folder)  # read when caching is enabled, not again
    try:
        compiled.enable_caching()
    except RuntimeError:  # Numba cannot write there after all
        pass
    finally:
        config.CACHE_DIR = before


@cache
def cache_folder() -> Path | None:
    """Where machine code is kept: a folder that exists and can be written, or None."""
    try:
        folder = user_cache() / f"kernels-{source_key()}"
        if not folder.exists():
            forget_old(user_cache())
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError):  # read-only, or no home at all
        return None
    return folder


def forget_old(cache: Path, days: float = 30) -> None:
    """Removes the folders of other states of the sources that gained nothing for `days`."""
    for folder in cache.glob("kernels-*"):
        if folder.stat().st_mtime < time.time() - days * 86400:
            shutil.rmtree(folder, ignore_errors=True)


def user_cache() -> Path:
    """The folder for what can be made again, by the platform's custom."""
    if config.CACHE_DIR:
        return Path(config.CACHE_DIR) / "numllama"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local").expanduser() / "numllama"
    if sys.platform == "darwin":
        return Path("~/Library/Caches/numllama").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "numllama"


def source_key() -> str:
    """Hash of everything but the CPU (Numba looks at that) that machine code depends on."""
    key = hashlib.sha256()
    for part in (
        platform.python_version(),
        numba.__version__,
        llvmlite.__version__,
        os.environ.get("NUMLLAMA_SIMD", ""),
    ):
        key.update(part.encode() + b"\0")
    for path in sorted(SOURCES.rglob("*.py")):
        key.update(path.relative_to(SOURCES).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return key.hexdigest()[:16]
