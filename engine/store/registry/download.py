"""Resumable downloads of blobs, each shared by all clients that pull it.

An incomplete blob is stored in Ollama's format, so that either program can resume a download of the other:

    blobs/sha256-<hex>-partial        the blob, at its full length from the start
    blobs/sha256-<hex>-partial-<N>    {"N":0,"Offset":0,"Size":100000000,"Completed":1234}

The file is renamed to the blob's name only after every part has been received and the whole file has been hashed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

try:
    import fcntl
except ImportError:  # Windows: two processes must not pull the same blob at once
    fcntl = None  # type: ignore[assignment]

from ...errors import BadManifest, Cancelled, RegistryError, ShuttingDown, StoreError, WrongBlob
from ..blobs import Blobs, sync_folder
from ..manifest import ManifestLayer
from .part import READ_BYTES, Part, part_size
from .retry import Interrupted, RangesUnsupported, RetryBudget

if TYPE_CHECKING:  # an HTTP client, which a process that pulls nothing does not load
    from .repository import Repository

RECORD_INTERVAL_S, RECORD_INTERVAL_BYTES = 0.5, 8_000_000  # a part's record is updated after either
CANCEL_WAIT_S = 1.0  # for a cancelled download to record its progress; one that waits for a response may take longer
CLAIM_INTERVAL_S = 0.2  # between checks whether another process has finished the blob
MAX_CONNECTIONS = 16  # for one blob


class Partial:
    """The files of an incomplete blob of `total` bytes, whose final path is `path`."""

    def __init__(self, path: Path, total: int):
        self.path, self.total = path, total
        self.file = path.with_name(f"{path.name}-partial")

    def recorded(self) -> list[Part]:
        """Read the parts from disk; return [] if they do not make up the blob."""
        try:
            parts = sorted((Part.from_bytes(p.read_bytes()) for p in self._records()), key=lambda part: part.offset)
            at = 0
            for part in parts:
                if part.offset != at or not part.completed <= part.size:
                    return []
                at += part.size
            return parts if at == self.total == self.file.stat().st_size else []
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def begin(self, file: IO[bytes], size: int) -> list[Part]:
        """Start over with parts of `size` bytes.  Raises: StoreError if the disk is too full"""
        self.remove_records()
        file.truncate(0)
        if (free := shutil.disk_usage(self.path.parent).free) < self.total:
            raise StoreError(f"{self.path.parent}: not enough disk space, {self.total} bytes needed and {free} free")
        file.truncate(self.total)
        offsets = range(0, self.total, size)
        parts = [Part(n, offset, min(size, self.total - offset)) for n, offset in enumerate(offsets)]
        for part in parts:
            self.record(part)
        return parts

    def record(self, part: Part) -> None:
        """Write the record of `part`, in a single write, so that a reader never sees half a record."""
        data = part.to_bytes()
        with open(os.open(f"{self.file}-{part.n}", os.O_WRONLY | os.O_CREAT, 0o644), "wb", buffering=0) as file:
            file.write(data)
            file.truncate(len(data))

    def remove_records(self) -> None:
        for path in self._records():
            path.unlink(missing_ok=True)

    def _records(self) -> list[Path]:
        return list(self.path.parent.glob(f"{self.file.name}-*"))


class Download:
    """The download of one blob, in a thread of its own, for all clients that wait for it.

    n_resumed   bytes received by an earlier download
    started     is set when `n_resumed` is known
    received    is set when all bytes have been received
    finished    is set when the blob is stored, or `error` is
    n_waiting   number of waiting clients, counted by Downloads
    """

    def __init__(self, blobs: Blobs, layer: ManifestLayer, repository: Repository):
        self.blobs, self.layer, self.repository = blobs, layer, repository
        self.partial = Partial(blobs.path(layer.digest), layer.size)
        self.parts: list[Part] = []
        self.n_resumed, self.n_waiting = 0, 0
        self.started, self.received, self.finished = threading.Event(), threading.Event(), threading.Event()
        self.error: BaseException | None = None
        self._cancel_error: Exception | None = None
        threading.Thread(target=self._run, name=f"pull {layer.digest[7:19]}", daemon=True).start()

    @property
    def completed(self) -> int:
        """Bytes received so far."""
        if self.finished.is_set() and not self.error:
            return self.layer.size
        return sum(part.completed for part in self.parts)

    def cancel(self, error: Exception) -> None:
        """End the download with `error`; its partial files stay."""
        self._cancel_error = error
        self.repository.abort()

    def _run(self) -> None:
        try:
            self.blobs.folder.mkdir(parents=True, exist_ok=True)
            with self._claimed() as file:
                if file:
                    self._complete(file)
        except OSError as error:
            self.error = StoreError(f"{error.filename or self.partial.file}: {error.strerror or error}")
        except BaseException as error:
            self.error = self._cancel_error or error
        finally:
            self.repository.close()
            for event in (self.finished, self.received, self.started):
                event.set()

    @contextmanager
    def _claimed(self) -> Iterator[IO[bytes] | None]:
        """Open the partial file exclusively among all processes; yield None if another process finished the blob."""
        while True:
            with open(os.open(self.partial.file, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0) as file:
                if _lock(file) and _is_at(file, self.partial.file):
                    if self._is_stored():
                        _close_if_it_hinders(file)
                        os.unlink(self.partial.file)
                        break
                    yield file
                    return
            if self._is_stored():
                break
            self.parts = self.partial.recorded() or self.parts
            self.started.set()
            if self.repository.stopped.wait(CLAIM_INTERVAL_S):
                raise Cancelled()
        yield None

    def _is_stored(self) -> bool:
        try:
            return bool(self.blobs.find(self.layer.digest, self.layer.size))
        except (FileNotFoundError, BadManifest):
            return False

    def _complete(self, file: IO[bytes]) -> None:
        """Finish the download.  If resumed data fails the digest, start over once."""
        self.parts = self.partial.recorded()
        self.n_resumed = self.completed
        if not self.n_resumed:
            self.parts = self.partial.begin(file, part_size(self.layer.size))
        self.started.set()
        self._fetch(file)
        self.received.set()
        found = self._digest(file)
        if found != self.layer.digest and self.n_resumed:
            self.parts = self.partial.begin(file, part_size(self.layer.size))
            self._fetch(file)
            found = self._digest(file)
        if found != self.layer.digest:
            _close_if_it_hinders(file)
            os.unlink(self.partial.file)
            self.partial.remove_records()
            raise WrongBlob(self.layer.digest, found)
        os.fsync(file.fileno())
        _close_if_it_hinders(file)
        os.replace(self.partial.file, self.partial.path)
        sync_folder(self.blobs.folder)
        self.partial.remove_records()

    def _digest(self, file: IO[bytes]) -> str:
        sha256, buffer = hashlib.sha256(), bytearray(READ_BYTES)
        file.seek(0)
        while n := file.readinto(buffer):  # type: ignore[attr-defined]
            self._check_cancelled()
            sha256.update(memoryview(buffer)[:n])
        return f"sha256:{sha256.hexdigest()}"

    def _fetch(self, file: IO[bytes]) -> None:
        try:
            self._fetch_parts(file)
        except RangesUnsupported:
            self.repository.close()
            self.repository = self.repository.clone()
            if self._cancel_error:
                raise self._cancel_error from None
            self.parts = self.partial.begin(file, self.layer.size)
            self._fetch_parts(file)

    def _fetch_parts(self, file: IO[bytes]) -> None:
        """Fetch the missing parts in parallel; raise the first error, after all threads have ended."""
        missing = [part for part in self.parts if part.completed < part.size]
        todo = iter(missing)  # threads may share the iterator of a list
        errors: list[BaseException] = []

        def work() -> None:
            try:
                while not errors and (part := next(todo, None)):
                    self._fetch_part(file, part)
            except BaseException as error:
                errors.append(error)
                self.repository.abort()

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(len(missing), MAX_CONNECTIONS))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def _fetch_part(self, file: IO[bytes], part: Part) -> None:
        budget, record_at_s, record_at_bytes = RetryBudget(self.repository.stopped), 0.0, 0
        try:
            while part.completed < part.size:
                first, last = part.offset + part.completed, part.offset + part.size - 1
                try:
                    with self.repository.blob(self.layer.digest, first, last, self.layer.size) as chunks:
                        for chunk in chunks:
                            _write_at(file.fileno(), chunk, part.offset + part.completed)
                            part.completed += len(chunk)
                            budget.progress(len(chunk))
                            self._check_cancelled()
                            if time.monotonic() > record_at_s or part.completed > record_at_bytes:
                                self.partial.record(part)
                                record_at_s = time.monotonic() + RECORD_INTERVAL_S
                                record_at_bytes = part.completed + RECORD_INTERVAL_BYTES
                    if part.completed < part.size:
                        raise Interrupted(f"the response ended {part.size - part.completed} bytes early")
                except Interrupted as error:
                    budget.wait_after(error)
        except RegistryError as error:
            message = f"pulling {self.layer.digest[7:19]}: {error}"
            if n := self.completed:
                message += f"; kept {n} of {self.layer.size} bytes, pull again to resume"
            raise type(error)(message, error.status) from None
        finally:
            self.partial.record(part)

    def _check_cancelled(self) -> None:
        if self.repository.stopped.is_set():
            raise Cancelled()


class Downloads:
    """The running downloads into one store, at most one per blob."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[Path, Download] = {}

    def join(self, blobs: Blobs, layer: ManifestLayer, repository: Repository) -> tuple[Download, bool]:
        """Join the download of the blob of `layer`, or start one from `repository`.

        -> the download, and whether it is new
        """
        path = blobs.path(layer.digest)
        with self._lock:
            download = self._running.get(path)
            is_new = download is None or download.finished.is_set() or download.repository.stopped.is_set()
            if is_new or download is None:
                download = self._running[path] = Download(blobs, layer, repository.clone())
            download.n_waiting += 1
            return download, is_new

    def leave(self, download: Download) -> None:
        """Stop waiting for `download`; it is cancelled with its last waiting client."""
        with self._lock:
            download.n_waiting -= 1
            if download.n_waiting:
                return
            download.cancel(Cancelled())
            if self._running.get(download.partial.path) is download:
                del self._running[download.partial.path]
        download.finished.wait(CANCEL_WAIT_S)

    def close(self) -> None:
        """End all downloads; their partial files stay."""
        with self._lock:
            for download in self._running.values():
                download.cancel(ShuttingDown())


def _lock(file: IO[bytes]) -> bool:
    """Lock the file until it is closed; return False if another process or download has locked it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no locks
        pass
    return True


def _close_if_it_hinders(file: IO[bytes]) -> None:
    """Close the file on Windows, which neither renames nor deletes an open one; elsewhere it holds the lock."""
    if os.name == "nt":
        file.close()


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


_seeking = threading.Lock()  # where a position and a write are two calls


def _write_at(descriptor: int, chunk: bytes, offset: int) -> None:
    while chunk:
        if hasattr(os, "pwrite"):
            n = os.pwrite(descriptor, chunk, offset)
        else:  # Windows
            with _seeking:
                os.lseek(descriptor, offset, os.SEEK_SET)
                n = os.write(descriptor, chunk)
        chunk, offset = chunk[n:], offset + n
