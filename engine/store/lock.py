"""The lock that lets one thread of one process change a store at a time."""

from __future__ import annotations

import os
import threading
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: the lock works among threads only
    fcntl = None  # type: ignore[assignment]


class StoreLock:
    """A reentrant lock, as a context manager, among the threads and processes that use the store.

    It locks the store's folder with flock; the system releases the lock when the process ends.  Ollama does not use it.
    """

    def __init__(self, root: Path):
        self._root = root
        self._thread, self._depth, self._file = threading.RLock(), 0, -1

    def __enter__(self) -> None:
        self._thread.acquire()
        self._depth += 1
        if self._depth == 1 and fcntl and self._root.is_dir():
            try:
                self._file = os.open(self._root, os.O_RDONLY | os.O_CLOEXEC)
                fcntl.flock(self._file, fcntl.LOCK_EX)
            except BaseException:
                self.__exit__()
                raise

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth and self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._thread.release()
