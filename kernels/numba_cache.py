"""Numba's own cache of machine code, in place of code_file.py with a release of Numba that this was not tested with."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from numba.core import config

from .folder import can_save, warn_once


def use_numba_cache(compiled, folder: Path | None) -> None:
    """Make `compiled` use Numba's own cache, in `folder`; None or read-only: no caching."""
    if folder is not None and can_save():  # Numba would choose another folder, for any state of the sources
        before, config.CACHE_DIR = config.CACHE_DIR, str(folder)
        with suppress(Exception):  # a kernel without a source file
            compiled.enable_caching()
            compiled._cache = GuardedCache(compiled._cache, folder)
        config.CACHE_DIR = before


class GuardedCache:
    """Numba's cache of one kernel.  No state of its files keeps the kernel from being compiled."""

    def __init__(self, cache, folder: Path):
        self._cache, self._folder = cache, folder

    def __getattr__(self, name):
        return getattr(self._cache, name)

    def load_overload(self, sig, target_context):
        try:
            code = self._cache.load_overload(sig, target_context)
            if code is not None and code.signature.args != getattr(sig, "args", sig):
                raise ValueError("a file of other machine code")  # two processes saved at the same time
            return code
        except Exception as error:
            warn_once(f"damaged machine code in {self._folder} is compiled again", error)
            with suppress(Exception):
                self._cache.flush()
            return None

    def save_overload(self, sig, data):
        try:
            self._cache.save_overload(sig, data)
        except Exception as error:
            warn_once(f"machine code cannot be saved in {self._folder}", error)
