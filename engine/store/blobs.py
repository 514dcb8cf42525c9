"""Blobs: files named by the SHA-256 of their content.

A blob is written atomically: to a temporary file in the same folder, which is synced to disk, then renamed.
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

CANNOT_REPLACE_OPEN_FILES = os.name == "nt"  # Windows neither replaces nor deletes a mapped file


@contextmanager
def os_errors_as_store_errors(where: Path | None = None) -> Iterator[None]:
    """Raise StoreError, with a one-line message, for an OSError in the block."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{error.filename or where or 'the store'}: {error.strerror or error}") from error


class BlobWriter:
    """A context manager that writes and hashes a blob chunk by chunk; without `commit`, the file is removed at exit.

    is_closed   once it returns True, `write` raises ShuttingDown, so that a long write ends in time
    announce    is called with the digest before the blob is stored
    Raises: StoreError if the disk cannot be written
    """

    def __init__(
        self,
        folder: Path,
        is_closed: Callable[[], bool] = lambda: False,
        announce: Callable[[str], None] = lambda digest: None,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self._is_closed, self._announce = is_closed, announce
        self.folder, self.size = folder, 0
        self._sha256 = hashlib.sha256()
        descriptor, temporary = tempfile.mkstemp(prefix="sha256-", dir=folder)  # a name that Ollama prunes, too
        self._file, self._temporary = os.fdopen(descriptor, "wb"), Path(temporary)

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # buffered bytes that do not fit on a full disk
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def write(self, chunk: bytes | memoryview) -> None:
        if self._is_closed():
            raise ShuttingDown()
        self._sha256.update(chunk)
        with os_errors_as_store_errors(self.folder):
            self._file.write(chunk)
        self.size += len(chunk)

    def commit(self, expected: str | None = None) -> str:
        """Store the blob under the digest of its content, and return that digest.

        Raises: DigestMismatch if it is not `expected`; the blob is stored all the same, as in Ollama
        """
        digest = f"sha256:{self._sha256.hexdigest()}"
        self._announce(digest)
        with os_errors_as_store_errors(self.folder):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.chmod(self._temporary, 0o644)
            path = self.folder / file_name(digest)
            try:
                os.replace(self._temporary, path)
            except PermissionError:
                if not (CANNOT_REPLACE_OPEN_FILES and path.is_file()):
                    raise  # else a loaded model has mapped the same blob
            sync_folder(self.folder)
        if expected is not None and expected != digest:
            raise DigestMismatch(expected, digest)
        return digest


class Blobs:
    """The folder `blobs/` of one store.  Setting `is_closed` ends all running writes."""

    def __init__(self, folder: Path):
        self.folder, self.is_closed = folder, False

    def path(self, digest: str) -> Path:
        """Return the path of the blob, which need not exist.  Raises: BadDigest"""
        return self.folder / file_name(digest)

    def has(self, digest: str) -> bool:
        path = self.path(digest)
        return path.is_file() and self._is_inside(path)

    def find(self, digest: str, size: int | None = None) -> Path:
        """Return the blob's path, after checking that it is a file inside the folder, of `size` bytes.

        Raises: FileNotFoundError, BadManifest
        """
        path = self.path(digest)
        found = path.stat().st_size
        if not self._is_inside(path):
            raise BadManifest(path, f"a link to {os.path.realpath(path)}, which is outside the store")
        if not path.is_file():
            raise BadManifest(path, "not a file")
        if size is not None and found != size:
            raise BadManifest(path, f"{found} bytes, expected {size} as in its manifest")
        return path

    def writer(self, announce: Callable[[str], None] = lambda digest: None) -> BlobWriter:
        return BlobWriter(self.folder, lambda: self.is_closed, announce)

    def put(
        self,
        chunks: Iterable[bytes],
        expected: str | None = None,
        announce: Callable[[str], None] = lambda digest: None,
    ) -> tuple[str, int]:
        """Store `chunks` as a blob; return its digest and size.  Raises: DigestMismatch"""
        with self.writer(announce) as writer:
            for chunk in chunks:
                writer.write(chunk)
            return writer.commit(expected), writer.size

    def copy_from(self, path: Path, digest: str) -> None:
        """Copy the file `path`, whose content must have `digest`.  Raises: DigestMismatch"""
        with self.writer() as writer, open(path, "rb") as file:
            shutil.copyfileobj(file, writer, 1 << 20)
            writer.commit(digest)

    def remove(self, digest: str) -> None:
        """Delete the blob; on Windows, one of a loaded model stays until the next `prune`."""
        try:
            self.path(digest).unlink(missing_ok=True)
        except PermissionError:
            if not CANNOT_REPLACE_OPEN_FILES:
                raise

    def _is_inside(self, path: Path) -> bool:
        """Return False for a symbolic link out of the folder; the folder itself may be a link."""
        return not path.is_symlink() or path.resolve().parent == self.folder.resolve()


def file_name(digest: str) -> str:
    return check_digest(digest).replace(":", "-")


def sync_folder(folder: Path) -> None:
    """Sync `folder`, so that a rename in it survives a power failure; do nothing where that is impossible (Windows)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
