"""Files of machine code, as Numba's cache keeps them, but checked, and without what only compiling needs.

The cache saves time and is never needed.  A folder that may only be read is read.  A file that is damaged, or belongs
to another kernel, is ignored and replaced; what cannot be saved stays in this process.  Each is logged once.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile
from numba.core.runtime._nrt_python import c_helpers

from .folder import source_hash, warn_once
from .llvm_pages import release_llvm

HASH_BYTES = hashlib.sha256().digest_size


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
