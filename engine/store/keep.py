"""Blobs that running tasks need, so that no deletion of another model takes them away.

A task, such as the creation of a model, writes its manifest last.  Until then no manifest may name a blob that the task
has found or written, and deleting another model that shares it would delete it.  So each task lists its blobs in a file
of its own, which every process that shares the store reads before it deletes a blob:

    manifests/.keep-<random>      one digest per line

The file is locked while its task runs.  A file that can be locked was left by a killed process and is deleted.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PREFIX = ".keep-"
MAX_AGE_S = 86_400.0  # of a file, where files cannot be locked


class KeptBlobs:
    """The digests that one task needs, in a file in `folder`, which exists from the first `add` to `close`."""

    def __init__(self, folder: Path):
        self.folder, self._path = folder, Path()
        self._file = -1

    def add(self, digests: Iterable[str]) -> None:
        """Keep the blobs with these digests, which need not exist yet.  The caller holds the store's lock.

        Raises: OSError
        """
        if self._file < 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file, path = tempfile.mkstemp(prefix=PREFIX, dir=self.folder)
            self._path = Path(path)
            os.chmod(path, 0o644)
            if fcntl:
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(self._file, fcntl.LOCK_EX)
        os.write(self._file, "".join(f"{digest}\n" for digest in digests).encode())

    def close(self) -> None:
        """Keep no blob any longer."""
        if self._file >= 0:
            os.close(self._file)
            self._path.unlink(missing_ok=True)
            self._file = -1


def kept_digests(folder: Path) -> set[str]:
    """Return the digests that running tasks keep, and delete the files of killed ones.

    The caller holds the store's lock.  Raises: OSError
    """
    digests: set[str] = set()
    for name in os.listdir(folder) if folder.is_dir() else ():
        if name.startswith(PREFIX):
            with suppress(FileNotFoundError):  # the task has just ended
                digests |= _read(folder / name)
    return digests


def _read(path: Path) -> set[str]:
    with open(path, "rb") as file:
        if not _is_left_over(file.fileno()):
            return set(file.read().decode("ascii", "replace").split())
    path.unlink()
    return set()


def _is_left_over(descriptor: int) -> bool:
    is_old = time.time() - os.fstat(descriptor).st_mtime > MAX_AGE_S
    if not fcntl:
        return is_old
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return is_old
    return True
