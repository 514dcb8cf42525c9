"""The content of models: one file per content, named by its SHA-256.

A blob appears whole or not at all: it is written under another name beside its own, forced to the disk, then renamed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import BadManifest, DigestMismatch, ShuttingDown, StoreError
from .manifest import check_digest


@contextmanager
def refusals(where: Path | None = None) -> Iterator[None]:
    """What the system refuses becomes a StoreError of one line."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{error.filename or where or 'the store'}: {error.strerror or error}") from error


class BlobWriter:
    """A blob on its way in, hashed as it comes; never whole in memory.

    Used as a context: leaving it without `commit` leaves nothing behind.
    Writing raises ShuttingDown once `is_closed` says so: whoever writes a large one ends in time.
    What the disk does not take is a StoreError.
    """

    def __init__(self, folder: Path, is_closed: Callable[[], bool] = lambda: False):
        folder.mkdir(parents=True, exist_ok=True)
        self._is_closed = is_closed
        self.folder, self.size = folder, 0
        self._sha256 = hashlib.sha256()
        descriptor, temporary = tempfile.mkstemp(
            prefix="sha256-", dir=folder
        )  # a name that Ollama's pruning knows, too
        self._file, self._temporary = os.fdopen(descriptor, "wb"), Path(temporary)

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, *_) -> None:
        with suppress(OSError):  # what a full disk did not take
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def write(self, chunk: bytes | memoryview) -> None:
        if self._is_closed():
            raise ShuttingDown()
        self._sha256.update(chunk)
        with refusals(self.folder):
            self._file.write(chunk)
        self.size += len(chunk)

    def commit(self, expected: str | None = None) -> str:
        """The blob is in place, under the digest of what was written.

        Raises: DigestMismatch when that is not `expected`; the bytes then stay, under their own digest, as with Ollama.
        """
        digest = f"sha256:{self._sha256.hexdigest()}"
        with refusals(self.folder):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.chmod(self._temporary, 0o644)
            os.replace(self._temporary, self.folder / file_name(digest))
            sync_folder(self.folder)
        if expected is not None and expected != digest:
            raise DigestMismatch(expected, digest)
        return digest


class Blobs:
    """The folder `blobs/` of one store.  `is_closed` ends whatever is being written."""

    def __init__(self, folder: Path):
        self.folder, self.is_closed = folder, False

    def path(self, digest: str) -> Path:
        """Where the blob of `digest` lies, there or not.  Raises: BadDigest"""
        return self.folder / file_name(digest)

    def has(self, digest: str) -> bool:
        path = self.path(digest)
        return path.is_file() and self._is_inside(path)

    def find(self, digest: str, size: int | None = None) -> Path:
        """The blob's file, looked at: a plain file inside the folder, of `size` bytes.

        Raises: FileNotFoundError, BadManifest
        """
        path = self.path(digest)
        found = path.stat().st_size
        if not self._is_inside(path):
            raise BadManifest(path, f"a link to {os.path.realpath(path)}, which is outside the store")
        if not path.is_file():
            raise BadManifest(path, "not a file")
        if size is not None and found != size:
            raise BadManifest(path, f"{found} bytes, its manifest says {size}")
        return path

    def writer(self) -> BlobWriter:
        return BlobWriter(self.folder, lambda: self.is_closed)

    def put(self, chunks: Iterable[bytes], expected: str | None = None) -> tuple[str, int]:
        """`chunks` stored; their digest and size.  Raises: DigestMismatch"""
        with self.writer() as writer:
            for chunk in chunks:
                writer.write(chunk)
            return writer.commit(expected), writer.size

    def copy_from(self, path: Path, digest: str) -> None:
        """The content of the file `path`, which must have `digest`.  Raises: DigestMismatch"""
        with self.writer() as writer, open(path, "rb") as file:
            shutil.copyfileobj(file, writer, 1 << 20)  # type: ignore[misc]
            writer.commit(digest)

    def remove(self, digest: str) -> None:
        self.path(digest).unlink(missing_ok=True)

    def _is_inside(self, path: Path) -> bool:
        """False for a link that leads out of the folder; a store may itself be a link, as on another disk."""
        return not path.is_symlink() or path.resolve().parent == self.folder.resolve()


def file_name(digest: str) -> str:
    return check_digest(digest).replace(":", "-")


def sync_folder(folder: Path) -> None:
    """A rename in `folder` survives a power cut; a system without this (Windows) goes without."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
