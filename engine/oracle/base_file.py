"""Log-probabilities of a base model, in the file of llama-perplexity's option --kl-divergence-base.

"_logits_"                8 bytes
n_ctx, n_vocab, n_chunk   three i32
tokens                    i32 [n_chunk, n_ctx]
rows                      u16 [n_chunk, n_ctx - 1 - n_ctx / 2, 4 + n_vocab], n_vocab rounded up to an even number

A row's first four u16 are two f32, scale and least; log-probability = scale * code + least.  Log-probabilities are cut
off 16 below the largest.  Source: llama.cpp 0c1e57098, tools/perplexity/perplexity.cpp.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import numpy as np

from ..errors import RequestError
from .score import n_scored

MAGIC = b"_logits_"
RANGE = np.float32(16)  # log-probabilities further below the largest are stored as the least
COPY_BYTES = 1 << 24


def row_length(n_vocab: int) -> int:
    """Return the number of u16 in a row."""
    return 2 * ((n_vocab + 1) // 2) + 4


def encode_rows(logits: np.ndarray) -> np.ndarray:
    """Encode the log-probabilities of `logits`, in float32 as llama-perplexity does.  f32 [n, n_vocab] -> u16 rows"""
    logits = logits.astype(np.float32, copy=False)
    largest = logits.max(axis=1, keepdims=True)
    least = np.maximum(logits.min(axis=1, keepdims=True), largest - RANGE)
    ln_sum = np.log(np.exp(logits - largest).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
    scale = (largest - least) / np.float32(65535)
    rows = np.zeros((len(logits), row_length(logits.shape[1])), np.uint16)
    rows[:, :4] = np.concatenate([scale, least - largest - ln_sum], axis=1).astype("<f4").view("<u2")
    per_step = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    codes = np.rint(per_step * np.maximum(logits - least, np.float32(0)))
    rows[:, 4 : 4 + logits.shape[1]] = codes.astype(np.int32)
    return rows


def decode_rows(rows: np.ndarray, n_vocab: int) -> np.ndarray:
    """Decode log-probabilities.  u16 [n, row_length] -> f32 [n, n_vocab]"""
    head = np.ascontiguousarray(rows[:, :4]).view("<f4")
    decoded: np.ndarray = head[:, :1] * rows[:, 4 : 4 + n_vocab].astype(np.float32) + head[:, 1:]
    return decoded


class BaseWriter:
    """A base file as it is written, a chunk after the other.  It takes its name when closed; fewer chunks are valid."""

    def __init__(self, path: Path, chunks: np.ndarray, n_vocab: int):
        """Begin the file for `chunks`, i32 [n_chunk, n_ctx].  Raises: RequestError if it cannot be written"""
        self.path, self.chunks, self.n_vocab = path, chunks, n_vocab
        self.part = path.with_name(f"{path.name}.part")
        try:
            self.file = open(self.part, "w+b")
        except OSError as error:
            raise RequestError(f"{self.part} cannot be written: {error.strerror}") from None
        self.n_row = 0
        self.file.write(self._header(len(chunks)))

    def _header(self, n_chunk: int) -> bytes:
        sizes = np.array([self.chunks.shape[1], self.n_vocab, n_chunk], "<i4")
        return MAGIC + sizes.tobytes() + self.chunks[:n_chunk].astype("<i4").tobytes()

    def write(self, logits: np.ndarray) -> None:
        """Append rows.  f32 [n, n_vocab]"""
        self.file.write(encode_rows(logits).astype("<u2", copy=False).tobytes())
        self.n_row += len(logits)

    def __enter__(self) -> BaseWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Keep the whole chunks that were written; remove the file if there are none."""
        n_done = self.n_row // n_scored(self.chunks.shape[1])
        with self.file:
            if n_done < len(self.chunks):
                self._keep(n_done)
        if n_done:
            os.replace(self.part, self.path)
        else:
            self.part.unlink()

    def _keep(self, n_done: int) -> None:
        """Shorten header and rows to n_done chunks, in place."""
        header, source = self._header(n_done), len(self._header(len(self.chunks)))
        left = n_done * n_scored(self.chunks.shape[1]) * row_length(self.n_vocab) * 2
        self.file.seek(0)
        self.file.write(header)
        target = len(header)
        while left:
            self.file.seek(source)
            block = self.file.read(min(left, COPY_BYTES))
            self.file.seek(target)
            self.file.write(block)
            source, target, left = source + len(block), target + len(block), left - len(block)
        self.file.truncate(target)


class BaseReader:
    """A base file: its chunks, and the log-probabilities of each.

    chunks    i32 [n_chunk, n_ctx]
    """

    def __init__(self, path: Path):
        """Open `path` and read its chunks.  Raises: RequestError"""
        self.path = path
        try:
            with open(path, "rb") as file:
                magic, sizes, size = file.read(8), file.read(12), os.fstat(file.fileno()).st_size
                if magic != MAGIC or len(sizes) < 12:
                    raise RequestError(f"{path}: not a file of log-probabilities: begins {magic!r}, expected {MAGIC!r}")
                n_ctx, self.n_vocab, n_chunk = (int(n) for n in np.frombuffer(sizes, "<i4"))
                if n_ctx < 4 or self.n_vocab < 1 or n_chunk < 1:
                    raise RequestError(f"{path}: n_ctx {n_ctx}, n_vocab {self.n_vocab}, {n_chunk} chunks: not valid")
                self.chunk_bytes = n_scored(n_ctx) * row_length(self.n_vocab) * 2
                self.offset = 20 + 4 * n_ctx * n_chunk
                if size < self.offset + n_chunk * self.chunk_bytes:
                    expected = self.offset + n_chunk * self.chunk_bytes
                    raise RequestError(f"{path}: truncated: {size} bytes, expected {expected} for {n_chunk} chunks")
                self.chunks = np.fromfile(file, "<i4", n_ctx * n_chunk).reshape(n_chunk, n_ctx)
        except OSError as error:
            raise RequestError(f"{path} cannot be read: {error.strerror}") from None
        if self.chunks.min() < 0 or self.chunks.max() >= self.n_vocab:
            raise RequestError(f"{path}: token id {self.chunks.max()}, expected 0 to {self.n_vocab - 1}")

    def log_probs(self, chunk: int, start: int, end: int) -> np.ndarray:
        """Read rows start .. end - 1 of a chunk.  -> f32 [end - start, n_vocab]"""
        n = row_length(self.n_vocab)
        at = self.offset + chunk * self.chunk_bytes + 2 * n * start
        rows = np.fromfile(self.path, "<u2", n * (end - start), offset=at)
        return decode_rows(rows.reshape(-1, n), self.n_vocab)
