"""The folder for machine code: one for each state of all kernel sources, `<user cache>/numllama/kernels-<key>`.

Numba's own cache checks only the file that defines a function, so after an edit in an imported file it would run stale
code.  NUMBA_CACHE_DIR moves the folder.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

import llvmlite
import numba

SOURCES = Path(__file__).parent
log = logging.getLogger(__name__)


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


_warned: set[str] = set()


def warn_once(problem: str, reason: object) -> None:
    """Log `problem`, unless this process has done so."""
    if problem not in _warned:
        _warned.add(problem)
        log.warning("%s: %s", problem, str(reason) or type(reason).__name__)
