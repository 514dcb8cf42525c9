"""Keys and values on disk: a file for each beginning of a text.

    <folder>/<model, kernels, cache type, window: hash>/<tokens: hash>.safetensors
        tokens   i64 [n]
        0, 1, 2, ...   u8, k of layer 0, v of layer 0, k of layer 1, ...; of layers with a window the last positions
        metadata: version, SHA-256 of all arrays' bytes

Files appear whole, under their name, or not at all.  One that is damaged, cut or of another version is not used: it is
deleted, and the log says so.  The least recently used ones go when all together exceed the budget.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..model.cache import KVCache, first_position
from .prefix import common_prefix

VERSION = "1"
SUFFIX = ".safetensors"
UNFINISHED_S = 3600  # age of a temporary file that no process writes any more
log = logging.getLogger(__name__)


class CacheFiles:
    """The files of one loaded model, and the budget of all models' files.

    folder     of all models
    identity   everything that keys and values depend on, apart from the tokens
    cache      gives the shapes
    n_byte     bytes of all models' files at most
    """

    def __init__(self, folder: Path, identity: dict[str, Any], cache: KVCache, n_byte: int):
        self.root, self.cache, self.n_byte = folder, cache, n_byte
        self.folder = folder / hash_of(json.dumps(identity, sort_keys=True).encode())
        self._tokens: dict[Path, list[int]] = {}
        self._first: dict[Path, int] = {}  # the first position that all layers have
        for path in self.folder.glob(f".*{SUFFIX}.*"):
            with suppress(OSError):
                if time() - path.stat().st_mtime > UNFINISHED_S:
                    path.unlink()
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            try:
                with safe_open(path, "numpy") as file:
                    tokens = file.get_tensor("tokens").tolist()
                    sizes = [file.get_slice(str(i)).get_shape()[0] for i in range(2 * len(cache.k))]
                self._tokens[path], self._first[path] = tokens, len(tokens) - min(sizes)
            except (OSError, SafetensorError, LookupError, ValueError) as error:
                self._drop(path, error)

    def has(self, tokens: Sequence[int]) -> bool:
        """Check whether the beginning has a file."""
        return self._path(tokens) in self._tokens

    def save(self, tokens: Sequence[int], arrays: Sequence[np.ndarray]) -> None:
        """Write a beginning; files of shorter ones of the same text go.  Where it cannot be written, the log says why.

        It ends before the first image, whose ids mean nothing to another process.
        """
        n = next((i for i, token in enumerate(tokens) if token < 0), len(tokens))
        n_cut, tokens, path = len(tokens) - n, list(tokens[:n]), self._path(tokens[:n])
        if not tokens or path in self._tokens:
            return
        plain = [np.ascontiguousarray(array[: max(len(array) - n_cut, 0)]).view(np.uint8) for array in arrays]
        size = sum(array.nbytes for array in plain)
        if size > self.n_byte or not self.cache.sees_back(first_position(plain, n), n):
            return
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(size)
            named = {"tokens": np.array(tokens, np.int64)} | {str(i): array for i, array in enumerate(plain)}
            save_file(named, temporary, {"version": VERSION, "sha256": checksum(tokens, plain)})
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            log.warning("a cache could not be saved: %s: %s", self.folder, error)
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            return
        for other, held in list(self._tokens.items()):
            if held == tokens[: len(held)]:
                self._forget(other)
        self._tokens[path], self._first[path] = tokens, first_position(plain, n)

    def longest(self, prompt: Sequence[int], n_least: int) -> tuple[list[int], list[np.ndarray]] | None:
        """Read the file with the longest beginning of `prompt`, if that has `n_least` tokens.

        -> its tokens, and the arrays of each layer as `KVCache.snapshot` returns them
        """
        lengths = {path: common_prefix(tokens, prompt) for path, tokens in self._tokens.items()}
        for path in sorted(lengths, key=lambda path: -lengths[path]):
            if lengths[path] < n_least:
                return None
            if not self.cache.sees_back(self._first[path], lengths[path]):
                continue
            try:
                arrays = self._read(path)
            except (OSError, SafetensorError, KeyError, ValueError) as error:
                self._drop(path, error)
            else:
                with suppress(OSError):
                    os.utime(path)
                return self._tokens[path], arrays
        return None

    def _read(self, path: Path) -> list[np.ndarray]:
        """Read the arrays of a file.  Raises: ValueError if they are not what was written"""
        with safe_open(path, "numpy") as file:
            told = file.metadata() or {}
            if told.get("version") != VERSION:
                raise ValueError(f"version {told.get('version')}, expected {VERSION}")
            tokens = file.get_tensor("tokens").tolist()
            plain = [file.get_tensor(str(i)) for i in range(2 * len(self.cache.k))]
        if tokens != self._tokens[path] or checksum(tokens, plain) != told.get("sha256"):
            raise ValueError("its checksum differs")
        like = self.cache.snapshot(0, 0)
        return [
            array.view(one.dtype).reshape(len(array), *one.shape[1:]) for array, one in zip(plain, like, strict=True)
        ]

    def _path(self, tokens: Sequence[int]) -> Path:
        return self.folder / (hash_of(np.array(tokens, np.int64).tobytes()) + SUFFIX)

    def _make_room(self, size: int) -> None:
        """Delete the least recently used files of all models until `size` more bytes fit."""
        files = []
        for path in self.root.glob(f"*/*{SUFFIX}"):
            with suppress(OSError):
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        total = sum(n for _, n, _ in files)
        for _, n, path in sorted(files):
            if total + size <= self.n_byte:
                break
            self._forget(path)
            total -= n

    def _forget(self, path: Path) -> None:
        self._tokens.pop(path, None)
        self._first.pop(path, None)
        with suppress(OSError):
            path.unlink(missing_ok=True)

    def _drop(self, path: Path, error: Exception) -> None:
        log.warning("a saved cache is not used and deleted: %s: %s", path, error)
        self._forget(path)


def hash_of(data: bytes) -> str:
    """Return the first 32 hexadecimal digits of the SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()[:32]


def checksum(tokens: Sequence[int], arrays: Sequence[np.ndarray]) -> str:
    """Return the SHA-256 of tokens and arrays."""
    digest = hashlib.sha256(np.array(tokens, np.int64).tobytes())
    for array in arrays:
        digest.update(array.data)
    return digest.hexdigest()
