"""Blobs on their way in: shared by all who wait for one, gone on with where they were broken off, never wrong.

A blob that is not whole yet lies beside its place, in Ollama's form, so that either program ends what the other began:

    blobs/sha256-<hex>-partial        as long as the blob will be
    blobs/sha256-<hex>-partial-<N>    {"N":0,"Offset":0,"Size":100000000,"Completed":1234}

One happens after the other, whoever dies in between: every part arrives, all bytes are hashed, the file gets its name.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: there, let one process at a time pull a blob
    fcntl = None  # type: ignore[assignment]

from ...errors import BadManifest, Cancelled, RegistryError, ShuttingDown, StoreError, WrongBlob
from ..blobs import Blobs, sync_folder
from ..manifest import ManifestLayer
from .http import CHUNK, Registry, part_size
from .retry import Interrupted, RangesUnsupported, RetryBudget

RECORD, RECORD_BYTES = 0.5, 8_000_000  # seconds, and bytes, after which a part's record is written anew
LEAVE = 1.0  # seconds that a download gets to end in; one that waits for an answer may need more
N_CONNECTIONS = 16  # at most, for one blob


@dataclass
class Part:
    """Bytes `offset` to `offset + size` of a blob, of which the first `completed` have arrived."""

    n: int
    offset: int
    size: int
    completed: int = 0

    def to_bytes(self) -> bytes:
        n, offset, size, completed = self.n, self.offset, self.size, self.completed
        return b'{"N":%d,"Offset":%d,"Size":%d,"Completed":%d}\n' % (n, offset, size, completed)

    @classmethod
    def from_bytes(cls, data: bytes) -> Part:
        """Raises: ValueError, KeyError, TypeError"""
        value = json.loads(data)
        numbers = [value[key] for key in ("N", "Offset", "Size", "Completed")]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError(f"no part of a blob: {data[:100]!r}")
        return cls(*numbers)


class Partial:
    """The files of a blob of `total` bytes that is to be `path` and is not whole yet."""

    def __init__(self, path: Path, total: int):
        self.path, self.total = path, total
        self.file = path.with_name(f"{path.name}-partial")

    def recorded(self) -> list[Part]:
        """The parts as the disk has them; none where they do not make up the blob."""
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
        """Parts of `size` bytes of which nothing has arrived.  Raises: StoreError where there is no room for them"""
        self.forget()
        file.truncate(0)
        if (free := shutil.disk_usage(self.path.parent).free) < self.total:
            raise StoreError(f"{self.path.parent}: {self.total} bytes are to come, and there is room for {free}")
        file.truncate(self.total)
        offsets = range(0, self.total, size)
        parts = [Part(n, offset, min(size, self.total - offset)) for n, offset in enumerate(offsets)]
        for part in parts:
            self.record(part)
        return parts

    def record(self, part: Part) -> None:
        """In one write over what is there, so that a record is never seen half."""
        data = part.to_bytes()
        with open(os.open(f"{self.file}-{part.n}", os.O_WRONLY | os.O_CREAT, 0o644), "wb", buffering=0) as file:
            file.write(data)
            file.truncate(len(data))

    def forget(self) -> None:
        for path in self._records():
            path.unlink(missing_ok=True)

    def _records(self) -> list[Path]:
        return list(self.path.parent.glob(f"{self.file.name}-*"))


class Download:
    """One blob on its way in, for all who wait for it; a thread of its own does the work.

    kept       bytes that an earlier download had left
    begun      is set when that is known
    arrived    is set when all bytes are there
    over       is set when they are a blob, or `error` says why they are not
    n_waiting  how many wait; Downloads counts them
    """

    def __init__(self, blobs: Blobs, layer: ManifestLayer, registry: Registry):
        self.blobs, self.layer, self.registry = blobs, layer, registry
        self.partial = Partial(blobs.path(layer.digest), layer.size)
        self.parts: list[Part] = []
        self.kept, self.n_waiting = 0, 0
        self.begun, self.arrived, self.over = threading.Event(), threading.Event(), threading.Event()
        self.error: BaseException | None = None
        self._why: Exception | None = None
        threading.Thread(target=self._run, name=f"pull {layer.digest[7:19]}", daemon=True).start()

    @property
    def completed(self) -> int:
        return self.layer.size if self.over.is_set() and not self.error else sum(part.completed for part in self.parts)

    def cancel(self, why: Exception) -> None:
        self._why = why
        self.registry.abort()

    def _run(self) -> None:
        try:
            self.blobs.folder.mkdir(parents=True, exist_ok=True)
            with self._claimed() as file:
                if file:
                    self._complete(file)
        except OSError as error:
            self.error = StoreError(f"{error.filename or self.partial.file}: {error.strerror or error}")
        except BaseException as error:
            self.error = self._why or error
        finally:
            self.registry.close()
            for event in (self.over, self.arrived, self.begun):
                event.set()

    @contextmanager
    def _claimed(self) -> Iterator[IO[bytes] | None]:
        """The partial file, for this one download of all in all processes; None if another has made it a blob."""
        while True:
            with open(os.open(self.partial.file, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0) as file:
                if _lock(file) and _is_at(file, self.partial.file):
                    if self._is_there():
                        os.unlink(self.partial.file)
                        break
                    yield file
                    return
            if self._is_there():
                break
            self.parts = self.partial.recorded() or self.parts
            self.begun.set()
            if self.registry.stopped.wait(0.2):
                raise Cancelled()
        yield None

    def _is_there(self) -> bool:
        try:
            return bool(self.blobs.find(self.layer.digest, self.layer.size))
        except (FileNotFoundError, BadManifest):
            return False

    def _complete(self, file: IO[bytes]) -> None:
        """The blob is in its place.  Where what an earlier download left turns out wrong, all comes anew, once."""
        self.parts = self.partial.recorded()
        self.kept = self.completed
        if not self.kept:
            self.parts = self.partial.begin(file, part_size(self.layer.size))
        self.begun.set()
        self._fetch(file)
        self.arrived.set()
        found = self._digest(file)
        if found != self.layer.digest and self.kept:
            self.parts = self.partial.begin(file, part_size(self.layer.size))
            self._fetch(file)
            found = self._digest(file)
        if found != self.layer.digest:
            os.unlink(self.partial.file)
            self.partial.forget()
            raise WrongBlob(self.layer.digest, found)
        os.fsync(file.fileno())
        os.replace(self.partial.file, self.partial.path)
        sync_folder(self.blobs.folder)
        self.partial.forget()

    def _digest(self, file: IO[bytes]) -> str:
        sha256, buffer = hashlib.sha256(), bytearray(CHUNK)
        file.seek(0)
        while n := file.readinto(buffer):  # type: ignore[attr-defined]
            self._check()
            sha256.update(memoryview(buffer)[:n])
        return f"sha256:{sha256.hexdigest()}"

    def _fetch(self, file: IO[bytes]) -> None:
        try:
            self._fetch_parts(file)
        except RangesUnsupported:
            self.registry.close()
            self.registry = self.registry.again()
            if self._why:
                raise self._why from None
            self.parts = self.partial.begin(file, self.layer.size)
            self._fetch_parts(file)

    def _fetch_parts(self, file: IO[bytes]) -> None:
        """All parts are there.  Raises what first went wrong with one of them, once the others have ended, too."""
        missing = [part for part in self.parts if part.completed < part.size]
        todo = iter(missing)  # of a list: threads may share it
        errors: list[BaseException] = []

        def work() -> None:
            try:
                while not errors and (part := next(todo, None)):
                    self._fetch_part(file, part)
            except BaseException as error:
                errors.append(error)
                self.registry.abort()

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(len(missing), N_CONNECTIONS))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def _fetch_part(self, file: IO[bytes], part: Part) -> None:
        patience, due, enough = RetryBudget(self.registry.stopped), 0.0, 0
        try:
            while part.completed < part.size:
                first, last = part.offset + part.completed, part.offset + part.size - 1
                try:
                    with self.registry.blob(self.layer.digest, first, last, self.layer.size) as chunks:
                        for chunk in chunks:
                            _write_at(file.fileno(), chunk, part.offset + part.completed)
                            part.completed += len(chunk)
                            patience.came(len(chunk))
                            self._check()
                            if time.monotonic() > due or part.completed > enough:
                                self.partial.record(part)
                                due, enough = time.monotonic() + RECORD, part.completed + RECORD_BYTES
                    if part.completed < part.size:
                        raise Interrupted(f"it ended {part.size - part.completed} bytes early")
                except Interrupted as error:
                    patience.failed(error)
        except RegistryError as error:
            said = f"pulling {self.layer.digest[7:19]}: {error}"
            if n := self.completed:
                said += f"; what has come is kept, {n} of {self.layer.size} bytes: pull again"
            raise type(error)(said, error.status) from None
        finally:
            self.partial.record(part)

    def _check(self) -> None:
        if self.registry.stopped.is_set():
            raise Cancelled()


class Downloads:
    """The downloads into one store: of each blob one at a time, however many wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[Path, Download] = {}

    def join(self, blobs: Blobs, layer: ManifestLayer, registry: Registry) -> tuple[Download, bool]:
        """The download of that blob, and whether it is a new one, from the repository of `registry`."""
        path = blobs.path(layer.digest)
        with self._lock:
            download = self._running.get(path)
            is_new = download is None or download.over.is_set() or download.registry.stopped.is_set()
            if is_new or download is None:
                download = self._running[path] = Download(blobs, layer, registry.again())
            download.n_waiting += 1
            return download, is_new

    def leave(self, download: Download) -> None:
        """With the last one who leaves, the download ends, and has recorded how far it came."""
        with self._lock:
            download.n_waiting -= 1
            if download.n_waiting:
                return
            download.cancel(Cancelled())
            if self._running.get(download.partial.path) is download:
                del self._running[download.partial.path]
        download.over.wait(LEAVE)

    def close(self) -> None:
        """All downloads end; what has come is kept."""
        with self._lock:
            for download in self._running.values():
                download.cancel(ShuttingDown())


def _lock(file: IO[bytes]) -> bool:
    """Whether no other process has the file, or another download of this one; it is ours until it is closed."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _write_at(descriptor: int, chunk: bytes, offset: int) -> None:
    while chunk:
        n = os.pwrite(descriptor, chunk, offset)
        chunk, offset = chunk[n:], offset + n
