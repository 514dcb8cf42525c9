"""One change of a store at a time, among threads and among processes."""

from __future__ import annotations

import os
import threading
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: threads alone wait for one another there
    fcntl = None  # type: ignore[assignment]


class StoreLock:
    """A context that one thread of one process at a time is in; it may enter again.

    What is locked is the folder itself.  The system gives it up for a process that ends, however it ends.  Ollama does
    not ask for it.
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
